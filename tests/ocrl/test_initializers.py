import pytest
import torch
from torch import Tensor, nn

from ocrl.initializers import (
    BoxInitializer,
    GaussianInitializer,
    LearnedInitializer,
    PreheatedInitializer,
    preheat_aux,
    start_queries,
)
from ocrl.interfaces import Initializer

TOKENS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[0.5, 0.5, 1.0, 1.0]], [[-1.0, -1.0, -1.0, -1.0]]])


def preheated(
    detach_until: float = 0.1, cold: Initializer | None = None, *, is_normalised: bool = False
) -> PreheatedInitializer:
    torch.manual_seed(0)
    return PreheatedInitializer(
        cold or GaussianInitializer(4, slot_dim=8, is_learned=True),
        token_dim=6,
        slot_dim=8,
        num_heads=2,
        mlp_dim=16,
        detach_until=detach_until,
        is_normalised=is_normalised,
    )


def test_normalised_queries_are_of_one_size_however_large_the_tokens() -> None:
    plain, normalised = preheated(), preheated(is_normalised=True)
    for scale in (1.0, 1000.0):
        queries = normalised.eval().preheat(scale * TOKENS)
        torch.testing.assert_close(queries.mean(-1), torch.zeros(3, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            queries.var(-1, unbiased=False), torch.ones(3, 4), atol=1e-3, rtol=0
        )
        assert torch.equal(normalised(scale * TOKENS), queries)
    assert plain.eval().preheat(1000 * TOKENS).abs().max() > 100


def box(*, has_background: bool = True, is_noisy: bool = False) -> BoxInitializer:
    return BoxInitializer(
        4, slot_dim=8, hidden_dim=16, has_background=has_background, is_noisy=is_noisy
    )


@pytest.mark.parametrize("is_learned", [True, False])
def test_gaussian_in_training_has_its_moments(is_learned: bool) -> None:
    initializer = GaussianInitializer(4, slot_dim=2, is_learned=is_learned)
    with torch.no_grad():
        initializer.mean.fill_(3.0)
        initializer.log_std.copy_(torch.tensor([0.5, 2.0]).log())
    torch.manual_seed(0)
    queries = initializer(torch.zeros(5000, 1, 6))
    assert queries.shape == (5000, 4, 2)
    torch.testing.assert_close(queries.mean((0, 1)), torch.full((2,), 3.0), atol=0.1, rtol=0)
    torch.testing.assert_close(queries.std((0, 1)), torch.tensor([0.5, 2.0]), atol=0.1, rtol=0)
    assert [name for name, _ in initializer.named_parameters()] == (
        ["mean", "log_std"] if is_learned else []
    )


def test_gaussian_is_reparameterised() -> None:
    initializer = GaussianInitializer(4, slot_dim=2, is_learned=True)
    initializer(TOKENS).square().sum().backward()
    for parameter in initializer.parameters():
        assert parameter.grad is not None and parameter.grad.abs().min() > 0


@pytest.mark.parametrize(
    "initializer",
    [GaussianInitializer(4, slot_dim=8, is_learned=True), preheated(), box(is_noisy=True)],
    ids=["gaussian", "preheated", "box"],
)
def test_noise_is_drawn_in_training_and_fixed_in_eval(initializer: Initializer) -> None:
    initializer.train()
    condition = BOXES if isinstance(initializer, BoxInitializer) else None

    def queries(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return initializer(TOKENS, condition=condition, generator=generator)

    assert torch.equal(queries(0), queries(0))
    assert not torch.equal(queries(0), queries(1))
    initializer.eval()
    assert torch.equal(queries(0), queries(1))
    # The same frame has the same queries wherever it stands in a batch, and slots differ.
    alone = initializer(TOKENS[2:], condition=None if condition is None else condition[2:])
    torch.testing.assert_close(queries(0)[2:], alone)
    assert (alone[0, 2] - alone[0, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("is_training", [False, True])
def test_gaussian_takes_noise_that_is_given(is_training: bool) -> None:
    gaussian = GaussianInitializer(3, slot_dim=8, is_learned=True).train(is_training)
    tokens, noise = torch.zeros(2, 5, 4), torch.randn(2, 3, 8)
    expected = gaussian.mean + noise * gaussian.log_std.exp()
    torch.testing.assert_close(gaussian(tokens, condition=noise), expected)
    # Boxes are for other initializers.
    plain = gaussian.eval()(tokens)
    torch.testing.assert_close(gaussian(tokens, condition=torch.rand(2, 3, 4)), plain)


def test_fixed_noise_travels_with_the_weights() -> None:
    torch.manual_seed(0)
    first = GaussianInitializer(4, slot_dim=2, is_learned=False).eval()
    second = GaussianInitializer(4, slot_dim=2, is_learned=False).eval()
    assert not torch.equal(first(TOKENS), second(TOKENS))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(TOKENS), second(TOKENS))


def test_learned_is_one_vector_per_slot() -> None:
    initializer = LearnedInitializer(4, slot_dim=2)
    queries = initializer(TOKENS)
    assert queries.shape == (3, 4, 2)
    assert torch.equal(queries[0], queries[2]) and torch.equal(queries[0], initializer.slots)
    wide = LearnedInitializer(100, slot_dim=100)
    assert wide.slots.std().item() == pytest.approx(1.0, rel=0.05)


def test_noise_fades_as_training_goes_on_and_is_not_there_after_it() -> None:
    tokens = torch.zeros(500, 5, 4)
    initializer = LearnedInitializer(3, slot_dim=8, noise_until=0.2)
    assert torch.equal(initializer(tokens)[7], initializer.slots)
    for fraction, expected in ((0.0, 1.0), (0.1, 0.5), (0.2, 0.0), (0.9, 0.0)):
        initializer.set_progress(fraction)
        noise = (initializer(tokens) - initializer.slots).detach()
        assert noise.std().item() == pytest.approx(expected, abs=0.03)
        assert noise.mean().item() == pytest.approx(0.0, abs=0.03)
    initializer.set_progress(0.0)
    drawn = [
        initializer(tokens, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(initializer.eval()(tokens)[7], initializer.slots)
    # Weights of before fit, which know nothing of how far training is.
    assert list(initializer.state_dict()) == ["slots"]
    with pytest.raises(ValueError, match=r"expected noise_until in \[0,1\], got 2"):
        LearnedInitializer(3, slot_dim=8, noise_until=2)


def test_boxes_fill_slots_in_order() -> None:
    initializer = box()
    queries = initializer(TOKENS, condition=BOXES)

    def expected(values: list[float]) -> Tensor:
        return initializer.norm(initializer.mlp(torch.tensor(values)))

    torch.testing.assert_close(queries[0, 0], expected([0.0] * 4))
    torch.testing.assert_close(queries[0, 1], expected([0.1, 0.2, 0.3, 0.4]))
    torch.testing.assert_close(queries[1, 3], expected([-1.0] * 4))
    torch.testing.assert_close(queries[2, 1], expected([-1.0] * 4))
    without = box(has_background=False)
    without.load_state_dict(initializer.state_dict())
    torch.testing.assert_close(without(TOKENS, condition=BOXES)[0, 0], queries[0, 1])


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "got none"),
        (torch.zeros(3, 2, 2), r"got shape \(3, 2, 2\)"),
        (torch.zeros(3, 4, 4), "at most 4 boxes with the background, got 5"),
    ],
)
def test_bad_boxes_are_refused(condition: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box()(TOKENS, condition=condition)


def test_preheater_by_hand() -> None:
    initializer = preheated().eval()
    memory = initializer.to_memory(TOKENS)
    queries = initializer.cold(TOKENS)
    queries = queries + initializer.cross_attention(queries, memory)
    queries = queries + initializer.self_attention(initializer.norm_self(queries))
    queries = queries + initializer.mlp(queries)
    torch.testing.assert_close(initializer.preheat(TOKENS), queries)
    torch.testing.assert_close(initializer(TOKENS), queries.detach())
    # The block has no bias; the map of the tokens has one.
    biased = [name for name, _ in initializer.named_parameters() if name.endswith("bias")]
    assert biased == ["to_memory.bias"]


def test_queries_train_the_noise_only_and_the_objective_the_rest() -> None:
    initializer = preheated()
    queries, warm = start_queries(initializer, TOKENS, condition=None)
    assert warm is not None

    def reached(value: Tensor) -> set[str]:
        initializer.zero_grad()
        value.square().sum().backward()
        return {name for name, p in initializer.named_parameters() if p.grad is not None}

    assert reached(queries) == {"log_std"}
    assert reached(warm) == {name for name, _ in initializer.named_parameters()} - {"log_std"}


@pytest.mark.parametrize(("fraction", "is_attached"), [(0.0, False), (0.09, False), (0.1, True)])
def test_the_objective_reaches_the_backbone_late(fraction: float, is_attached: bool) -> None:
    initializer = preheated(detach_until=0.1)
    initializer.set_progress(fraction)
    tokens = TOKENS.clone().requires_grad_()
    initializer.preheat(tokens).square().sum().backward()
    assert (tokens.grad is not None and bool(tokens.grad.abs().sum() > 0)) is is_attached
    assert initializer.state_dict()["progress"].item() == pytest.approx(fraction)


def test_progress_outside_of_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        preheated().set_progress(1.5)
    with pytest.raises(ValueError, match="detach_until"):
        preheated(detach_until=2.0)


def test_preheated_boxes() -> None:
    initializer = preheated(cold=box(is_noisy=True))
    assert initializer(TOKENS, condition=BOXES).shape == (3, 4, 8)


def test_aux_has_queries_where_samples_start_and_slots_elsewhere() -> None:
    initializer = preheated()
    warm = torch.ones(2, 4, 8, requires_grad=True)
    slots = torch.zeros(2, 4, 8, requires_grad=True)
    aux = preheat_aux(initializer, warm, slots, torch.tensor([True, False]))["preheat_queries"]
    assert aux.shape == (2, 1, 4, 8)
    assert aux[0].min() == 1 and aux[1].max() == 0
    aux.sum().backward()
    assert slots.grad is None and warm.grad is not None and warm.grad[1].abs().max() == 0
    aux = preheat_aux(initializer, None, slots, False)["preheat_queries"]
    assert aux.max() == 0 and not aux.requires_grad


def test_other_initializers_have_no_aux() -> None:
    initializer: nn.Module = LearnedInitializer(4, slot_dim=8)
    assert isinstance(initializer, Initializer)
    queries, warm = start_queries(initializer, TOKENS, condition=None)
    assert warm is None and queries.shape == (3, 4, 8)
    assert preheat_aux(initializer, None, queries, True) == {}
