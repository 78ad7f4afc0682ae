"""The round with its own backward pass against the modules that it stands for."""

import pytest
import torch
from torch import Tensor, nn

from ocrl.nn.attention import CompetitiveAttention
from ocrl.nn.slot_round import slot_round


def make(eps_placement: str) -> tuple[nn.LayerNorm, CompetitiveAttention, nn.GRUCell]:
    torch.manual_seed(0)
    attention = CompetitiveAttention(6, slot_dim=5, eps_placement=eps_placement, eps=0.05)  # type: ignore[arg-type]
    parts = nn.ModuleList([nn.LayerNorm(5, eps=1e-3), attention, nn.GRUCell(5, 5)]).double()
    for parameter in parts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return tuple(parts)  # type: ignore[return-value]


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 3, 5), (2, 11, 6), (2, 3, 11))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def by_modules(
    slots: Tensor, tokens: Tensor, parts: tuple[nn.Module, ...], bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    norm, attention, gru = parts
    updates, attn = attention(norm(slots), tokens, bias=bias)
    return gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots), attn


@pytest.mark.parametrize("eps_placement", ["attn", "sum"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("read", ["slots", "attn", "both"])
def test_equals_its_modules_with_all_gradients(
    eps_placement: str, has_bias: bool, read: str
) -> None:
    parts = make(eps_placement)
    slots, tokens, bias = inputs()
    sources = [slots, tokens, *([bias] if has_bias else [])]
    sources += [parameter for part in parts for parameter in part.parameters()]
    norm, attention, gru = parts
    results = []
    for output in (
        slot_round(
            slots, tokens, norm=norm, attention=attention, gru=gru, bias=bias if has_bias else None
        ),
        by_modules(slots, tokens, parts, bias if has_bias else None),
    ):
        chosen = output if read == "both" else output[:1] if read == "slots" else output[1:]
        loss = sum((number + 2) * value.sin().sum() for number, value in enumerate(chosen))
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, sources, allow_unused=True)
        results.append([*output, *[torch.zeros(()) if g is None else g for g in gradients]])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected.expand_as(ours).to(ours.dtype))


def test_tokens_that_need_no_gradient_get_none() -> None:
    norm, attention, gru = make("attn")
    slots, tokens, _ = inputs()
    result, _ = slot_round(slots, tokens.detach(), norm=norm, attention=attention, gru=gru)
    result.sum().backward()
    assert slots.grad is not None and slots.grad.abs().sum() > 0


def test_no_map_is_kept_for_backward() -> None:
    torch.manual_seed(0)
    norm, gru = nn.LayerNorm(5), nn.GRUCell(5, 5)
    attention = CompetitiveAttention(6, slot_dim=5, eps_placement="attn")
    kept: list[torch.Size] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(saved.shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        slot_round(
            torch.randn(2, 3, 5), torch.randn(2, 99, 6), norm=norm, attention=attention, gru=gru
        )
    assert torch.Size((2, 99, 6)) in kept
    assert all(99 not in shape[2:] for shape in kept)
