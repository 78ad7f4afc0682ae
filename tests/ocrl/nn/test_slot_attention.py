"""The corrector against Slot Attention as the paper writes it, and its gradients."""

import pytest
import torch
from torch import Tensor

from ocrl.nn.slot_attention import Corrector, correct_frame, resolve_start, select_start


def make(gradient: str = "full", *, mlp_dim: int | None = 8, eps: str = "attn") -> Corrector:
    torch.manual_seed(0)
    corrector = Corrector(
        6,
        slot_dim=5,
        mlp_dim=mlp_dim,
        gradient=gradient,  # type: ignore[arg-type]
        eps_placement=eps,  # type: ignore[arg-type]
    ).double()
    for parameter in corrector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return corrector


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    tokens = torch.randn(2, 11, 6, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), tokens.requires_grad_()


def textbook(
    corrector: Corrector, queries: Tensor, tokens: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of arXiv 2006.15055, with the parameters of a corrector."""
    attention, gru = corrector.attention, corrector.gru
    normal = attention.norm_inputs(tokens)
    key, value = attention.to_k(normal), attention.to_v(normal)
    slots = queries
    for _ in range(num_iterations):
        query = attention.to_q(corrector.norm_slots(slots))
        attn = (torch.einsum("bnd,bkd->bnk", key, query) / 5**0.5).softmax(dim=2)
        weights = attn + 1e-8 if attention.eps_placement == "attn" else attn
        below = weights.sum(1, keepdim=True)
        weights = weights / (below + 1e-5 if attention.eps_placement == "sum" else below)
        updates = torch.einsum("bnk,bnd->bkd", weights, value)
        reset_in, gate_in, new_in = (updates @ gru.weight_ih.mT + gru.bias_ih).chunk(3, -1)
        reset_hid, gate_hid, new_hid = (slots @ gru.weight_hh.mT + gru.bias_hh).chunk(3, -1)
        reset = (reset_in + reset_hid).sigmoid()
        gate = (gate_in + gate_hid).sigmoid()
        slots = (1 - gate) * (new_in + reset * new_hid).tanh() + gate * slots
        if corrector.mlp is not None:
            slots = slots + corrector.mlp(slots)
    return slots, attn.mT


@pytest.mark.parametrize("mlp_dim", [8, None])
@pytest.mark.parametrize("eps", ["attn", "sum"])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_slots_and_gradients_equal_the_textbook_form(
    mlp_dim: int | None, eps: str, num_iterations: int
) -> None:
    corrector = make(mlp_dim=mlp_dim, eps=eps)
    queries, tokens = inputs()
    ours = corrector(queries, tokens, num_iterations=num_iterations)
    expected = textbook(corrector, queries, tokens, num_iterations)
    torch.testing.assert_close(ours, expected)
    sources = [queries, tokens, *corrector.parameters()]
    weight = torch.randn_like(ours[0])
    torch.testing.assert_close(
        torch.autograd.grad((ours[0] * weight).sum(), sources),
        torch.autograd.grad((expected[0] * weight).sum(), sources),
    )


def test_modulation_reaches_every_round() -> None:
    queries, tokens = inputs()
    corrector = make()
    slots, _ = corrector(queries, tokens, num_iterations=1)
    corrector.attention.modulation = 0.5
    once, _ = corrector(queries, tokens, num_iterations=1)
    assert not torch.allclose(slots, once)
    twice, _ = corrector(once, tokens, num_iterations=1)
    torch.testing.assert_close(corrector(queries, tokens, num_iterations=2)[0], twice)
    options = {"slot_dim": 5, "mlp_dim": None, "gradient": "full", "eps_placement": "sum"}
    assert Corrector(6, **options).attention.modulation == 0.0  # type: ignore[arg-type]
    assert Corrector(6, **options, modulation=0.3).attention.modulation == 0.3  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", ["full", "truncated", "bilevel"])
def test_the_gradient_changes_no_value(gradient: str) -> None:
    queries, tokens = inputs()
    slots, attn = make(gradient)(queries, tokens, num_iterations=3)
    torch.testing.assert_close((slots, attn), make()(queries, tokens, num_iterations=3))
    torch.testing.assert_close(attn.sum(1), torch.ones(2, 11, dtype=torch.float64))


@pytest.mark.parametrize("gradient", ["truncated", "bilevel"])
def test_only_the_last_iteration_has_a_gradient(gradient: str) -> None:
    corrector = make(gradient)
    queries, tokens = inputs()
    slots, _ = corrector(queries, tokens, num_iterations=3)
    with torch.no_grad():
        before, _ = corrector(queries, tokens, num_iterations=2)
    before.requires_grad_()
    last, _ = make()(before, tokens, num_iterations=1)
    torch.testing.assert_close(
        torch.autograd.grad(slots.sum(), tokens, retain_graph=True),
        torch.autograd.grad(last.sum(), tokens, retain_graph=True),
    )
    (to_queries,) = torch.autograd.grad(slots.sum(), queries, allow_unused=True)
    if gradient == "truncated":
        assert to_queries is None
    else:
        # Straight through: as if the queries were what the last iteration started from.
        torch.testing.assert_close(to_queries, torch.autograd.grad(last.sum(), before)[0])


@pytest.mark.parametrize("gradient", ["truncated", "bilevel"])
def test_one_iteration_has_the_full_gradient(gradient: str) -> None:
    queries, tokens = inputs()
    (ours,) = torch.autograd.grad(
        make(gradient)(queries, tokens, num_iterations=1)[0].sum(), queries
    )
    (full,) = torch.autograd.grad(make()(queries, tokens, num_iterations=1)[0].sum(), queries)
    torch.testing.assert_close(ours, full)


def test_permuted_queries_give_permuted_slots() -> None:
    corrector = make()
    queries, tokens = inputs()
    order = torch.tensor([2, 0, 1])
    slots, attn = corrector(queries, tokens, num_iterations=3)
    moved, moved_attn = corrector(queries[:, order], tokens, num_iterations=3)
    torch.testing.assert_close(moved, slots[:, order])
    torch.testing.assert_close(moved_attn, attn[:, order])


def test_slots_are_float32_under_autocast() -> None:
    corrector = make().float()
    queries, tokens = (value.detach().float() for value in inputs())
    expected, _ = corrector(queries, tokens, num_iterations=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slots, attn = corrector(queries.bfloat16(), tokens, num_iterations=3)
    assert slots.dtype == attn.dtype == torch.float32
    torch.testing.assert_close(slots, expected, atol=0.2, rtol=0.1)


def test_the_gru_is_float32_under_autocast() -> None:
    corrector = make(mlp_dim=None).float()
    queries, tokens = (value.detach().float() for value in inputs())
    with torch.no_grad():
        corrector.gru.bias_ih[5:10] = 50.0  # the gate that keeps the state, exactly
        with torch.autocast("cpu", dtype=torch.bfloat16):
            slots, _ = corrector(queries, tokens, num_iterations=1)
    assert torch.equal(slots, queries)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient must be"):
        make("implicit")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make()(*inputs(), num_iterations=0)


@pytest.mark.parametrize(
    ("is_first", "is_fresh", "expected"),
    [
        ([False, False], [False, False], False),
        ([True, False], [False, True], True),
        (True, [False, False], True),
        (False, [False, False], False),
    ],
)
def test_starts_that_all_share_are_one_answer(
    is_first: list[bool] | bool, is_fresh: list[bool], expected: bool
) -> None:
    first = is_first if isinstance(is_first, bool) else torch.tensor(is_first)
    assert resolve_start(first, torch.tensor(is_fresh)) is expected


def test_mixed_starts_stay_a_tensor() -> None:
    start = resolve_start(torch.tensor([True, False]), torch.tensor([False, False]))
    assert isinstance(start, Tensor) and start.tolist() == [True, False]
    chosen = select_start(start, torch.ones(2, 3), torch.zeros(2, 3))
    assert chosen.tolist() == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("num_iterations_rest", [1, 3])
def test_each_sample_has_its_own_number_of_iterations(num_iterations_rest: int) -> None:
    corrector = make()
    fresh, tokens = inputs()
    ongoing = fresh + 1
    counts = {"num_iterations_first": 3, "num_iterations_rest": num_iterations_rest}
    mixed = correct_frame(
        corrector,
        tokens,
        start=torch.tensor([True, False]),
        fresh=fresh,
        ongoing=ongoing,
        **counts,
    )
    first = correct_frame(corrector, tokens, start=True, fresh=fresh, ongoing=None, **counts)
    rest = correct_frame(corrector, tokens, start=False, fresh=None, ongoing=ongoing, **counts)
    for ours, started, continued in zip(mixed, first, rest, strict=True):
        torch.testing.assert_close(ours, torch.stack([started[0], continued[1]]))
    expected, _ = textbook(corrector, ongoing, tokens, num_iterations_rest)
    torch.testing.assert_close(rest[0], expected)
