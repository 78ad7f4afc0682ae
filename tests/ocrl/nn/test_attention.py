"""Competitive attention against the textbook form in float64, and multi-head attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ocrl.nn.attention import (
    EPS,
    CompetitiveAttention,
    MultiHeadAttention,
    _read,
    competition,
    competitive_read,
    standardize,
)


def textbook_read(
    queries: Tensor, tokens: Tensor, eps_placement: str, eps: float
) -> tuple[Tensor, Tensor]:
    attn = torch.einsum("bkf,bnf->bnk", queries, tokens).softmax(dim=-1)
    if eps_placement == "attn":
        weights = attn + eps
        weights = weights / weights.sum(dim=1, keepdim=True)
    else:
        weights = attn / (attn.sum(dim=1, keepdim=True) + eps)
    return torch.einsum("bnk,bnf->bkf", weights, tokens), attn.mT


def textbook_attention(
    module: CompetitiveAttention, slots: Tensor, tokens: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Keys and values made, as the paper writes it."""
    tokens = module.norm_inputs(tokens)
    key, value = module.to_k(tokens), module.to_v(tokens)
    attn = (key @ module.to_q(slots).mT * slots.shape[-1] ** -0.5).softmax(dim=-1)
    weights = attn + eps if module.eps_placement == "attn" else attn
    below = weights.sum(dim=1, keepdim=True) + (eps if module.eps_placement == "sum" else 0)
    return (weights / below).mT @ value, attn.mT


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    total = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in outputs
    )
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, inputs))


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    eps_placement=st.sampled_from(["attn", "sum"]),
    eps=st.sampled_from([1e-8, 0.1]),
    scale=st.sampled_from([0.1, 5.0]),
)
def test_read_and_its_gradients_equal_the_textbook_form(
    sizes: tuple[int, int, int, int], eps_placement: str, eps: float, scale: float
) -> None:
    batch, num_slots, num_tokens, dim = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    queries = torch.randn(batch, num_slots, dim, generator=generator, dtype=torch.float64) * scale
    tokens = torch.randn(batch, num_tokens, dim, generator=generator, dtype=torch.float64)
    inputs = [queries.requires_grad_(), tokens.requires_grad_()]
    ours = competitive_read(queries, tokens, eps_placement=eps_placement, eps=eps)
    expected = textbook_read(queries, tokens, eps_placement, eps)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("eps_placement", ["attn", "sum"])
def test_attention_with_absorbed_maps_equals_keys_and_values(eps_placement: str) -> None:
    torch.manual_seed(0)
    eps = 0.05
    module = CompetitiveAttention(6, slot_dim=5, eps_placement=eps_placement, eps=eps).double()
    torch.nn.init.normal_(module.norm_inputs.weight)
    torch.nn.init.normal_(module.norm_inputs.bias)
    slots = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    inputs = [slots, tokens, *module.parameters()]
    ours = module(slots, standardize(tokens))
    expected = textbook_attention(module, slots, tokens, eps)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, inputs), gradients(expected, inputs))


def test_modulated_weights_are_those_of_the_papers_figure() -> None:
    # Figure 3 of arXiv 2606.12601, which shows the power 1; tokens that are axes give the weights.
    first = torch.tensor([0.95, 0.93, 0.90, 0.92, 0.91], dtype=torch.float64)
    logits = torch.stack([first, 1 - first])[None].log()
    tokens = torch.eye(5, dtype=torch.float64)[None]
    read, share, attn = _read(logits, tokens, None, "sum", None, 1.0)
    figure = [[0.196, 0.188, 0.176, 0.184, 0.180], [0.006, 0.013, 0.026, 0.016, 0.021]]
    torch.testing.assert_close(read[0], torch.tensor(figure).double(), atol=6e-4, rtol=0)
    torch.testing.assert_close(share[0, :, 0], read[0].sum(-1))
    torch.testing.assert_close(attn[0, 0], first)


@pytest.mark.parametrize("eps_placement", ["attn", "sum"])
@pytest.mark.parametrize("modulation", [0.5, 1.0])
def test_modulated_attention_equals_keys_and_values(eps_placement: str, modulation: float) -> None:
    torch.manual_seed(0)
    module = CompetitiveAttention(
        6,
        slot_dim=5,
        eps_placement=eps_placement,  # type: ignore[arg-type]
        modulation=modulation,
    ).double()
    torch.nn.init.normal_(module.norm_inputs.weight)
    torch.nn.init.normal_(module.norm_inputs.bias)
    slots = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    normal = module.norm_inputs(tokens)
    logits = module.to_k(normal) @ module.to_q(slots).mT * 5**-0.5
    attn = logits.softmax(-1)
    # Equations 2, 5 and 6: renormalised over tokens, times the softmax, and not again.
    weights = attn / attn.sum(1, keepdim=True) * attn**modulation
    expected = (weights.mT @ module.to_v(normal), attn.mT)
    ours = module(slots, standardize(tokens))
    close = {"atol": 1e-4, "rtol": 1e-4}  # eps
    torch.testing.assert_close(ours, expected, **close)
    inputs = [slots, tokens, *module.parameters()]
    torch.testing.assert_close(gradients(ours, inputs), gradients(expected, inputs), **close)


def test_a_slot_that_wins_nothing_is_updated_by_nothing() -> None:
    torch.manual_seed(0)
    module = CompetitiveAttention(2, slot_dim=2, eps_placement="attn", modulation=0.5)
    tokens = (torch.rand(1, 50, 2) + 1).requires_grad_()
    bias = torch.tensor([500.0, 0.0]).view(1, 2, 1)
    updates, _ = module(torch.randn(1, 2, 2), tokens, bias=bias)
    assert updates[0, 1].abs().max() < 1e-3 < updates[0, 0].abs().max()
    updates.sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        CompetitiveAttention(2, slot_dim=2, eps_placement="attn", modulation=-1.0)


def test_modulated_attention_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module = CompetitiveAttention(6, slot_dim=5, eps_placement="sum", modulation=0.5)
    slots, tokens = torch.randn(2, 3, 5), standardize(torch.randn(2, 9, 6))
    expected, _ = module(slots, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        updates, attn = module(slots, tokens)
    assert attn.dtype == torch.float32
    torch.testing.assert_close(updates.float(), expected, atol=0.03, rtol=0.03)


def test_eps_defaults_are_the_papers() -> None:
    assert EPS == {"attn": 1e-8, "sum": 1e-5}
    queries, tokens = torch.randn(1, 2, 3).double(), torch.randn(1, 4, 3).double()
    for placement, eps in EPS.items():
        torch.testing.assert_close(
            competitive_read(queries, tokens, eps_placement=placement),
            textbook_read(queries, tokens, placement, eps),
            rtol=0,
            atol=1e-14,
        )


def test_a_slot_that_wins_nothing_reads_the_mean_or_zero() -> None:
    tokens = torch.rand(1, 50, 2) + 1
    queries = torch.tensor([[[200.0, 200.0], [-200.0, -200.0]]])
    read, attn = competitive_read(queries, tokens, eps_placement="attn")
    assert attn[0, 1].max() == 0
    torch.testing.assert_close(read[0, 1], tokens[0].mean(0))
    read, _ = competitive_read(queries, tokens, eps_placement="sum")
    assert read[0, 1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_competition_is_float32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    queries, tokens = 3 * torch.randn(2, 4, 8), torch.randn(2, 64, 8)
    queries.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        read, attn = competitive_read(queries, tokens, eps_placement="sum")
    assert read.dtype == attn.dtype == torch.float32
    torch.testing.assert_close(attn.sum(1), torch.ones(2, 64), atol=1e-6, rtol=0)
    expected, _ = competitive_read(queries, tokens, eps_placement="sum")
    torch.testing.assert_close(read, expected, atol=0.03, rtol=0.03)
    read.sum().backward()
    assert queries.grad is not None and torch.isfinite(queries.grad).all()


def test_competition_keeps_float64_and_raises_half() -> None:
    assert competition(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert competition(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_map_is_not_kept_for_backward() -> None:
    queries = torch.randn(2, 4, 8, requires_grad=True)
    tokens = torch.randn(2, 1000, 8, requires_grad=True)
    kept: list[torch.Size] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(saved.shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        competitive_read(queries, tokens, eps_placement="attn")
    assert torch.Size((2, 1000, 8)) in kept
    assert all(shape[-1] != 1000 for shape in kept)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_standardize_is_layer_norm(scale: float) -> None:
    torch.manual_seed(0)
    tokens = (scale * torch.randn(3, 5, 7, dtype=torch.float64) + 2).requires_grad_()
    ours, expected = standardize(tokens), functional.layer_norm(tokens, (7,))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients((ours,), [tokens]), gradients((expected,), [tokens]))


def test_standardize_under_autocast() -> None:
    tokens = torch.randn(3, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normal = standardize(tokens)
    assert normal.dtype == torch.bfloat16
    torch.testing.assert_close(
        normal.float(), functional.layer_norm(tokens, (7,)), atol=0.02, rtol=0.02
    )
    normal.sum().backward()
    assert tokens.grad is not None and tokens.grad.dtype == torch.float32


def test_compiled_is_the_same() -> None:
    torch.manual_seed(0)
    module = CompetitiveAttention(6, slot_dim=5, eps_placement="sum")
    slots, tokens = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 9, 6)

    def attend(slots: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return module(slots, standardize(tokens))

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    ours, expected = compiled(slots, tokens), attend(slots, tokens)
    torch.testing.assert_close(ours, expected)
    inputs = [slots, *module.parameters()]
    torch.testing.assert_close(gradients(ours, inputs), gradients(expected, inputs))


def test_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="eps_placement must be one of"):
        CompetitiveAttention(4, slot_dim=4, eps_placement="mean")  # type: ignore[arg-type]


def test_multi_head_attention_by_hand() -> None:
    torch.manual_seed(0)
    module = MultiHeadAttention(6, num_heads=2, context_dim=4).double()
    queries, context = torch.randn(2, 3, 6).double(), torch.randn(2, 5, 4).double()
    heads = []
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        query, key = module.to_q(queries)[..., part], module.to_k(context)[..., part]
        attn = (query @ key.mT / math.sqrt(3)).softmax(-1)
        heads.append(attn @ module.to_v(context)[..., part])
    torch.testing.assert_close(module(queries, context), module.to_out(torch.cat(heads, -1)))


def test_multi_head_attention_masks() -> None:
    torch.manual_seed(0)
    module = MultiHeadAttention(4, num_heads=2)
    sequence = torch.randn(1, 5, 4)
    causal = module(sequence, is_causal=True)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(causal, module(sequence, mask=mask))
    changed = sequence.clone()
    changed[:, 3:] = 0
    torch.testing.assert_close(causal[:, :3], module(changed, is_causal=True)[:, :3])


def test_multi_head_attention_drops_only_in_training() -> None:
    module = MultiHeadAttention(4, num_heads=2, dropout=0.9)
    sequence = torch.randn(1, 5, 4)
    assert not torch.equal(module(sequence), module(sequence))
    module.eval()
    assert torch.equal(module(sequence), module(sequence))


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="3 heads and dim 4"):
        MultiHeadAttention(4, num_heads=3)
