import math

import pytest
import torch

from ocrl.nn.factor_binding import CodeMemory, PrototypeMemory
from ocrl.nn.quantize import EMAQuantizer, FSQQuantizer, GumbelQuantizer, Quantizer

K, D, M, P = 5, 12, 3, 7
ZERO = torch.zeros(())


def slots_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantizer(kind: str = "ema", *, is_blockwise: bool = True) -> Quantizer:
    torch.manual_seed(0)
    sizes = {"sizes": [P] * M, "code_dim": 6, "is_blockwise": is_blockwise}
    if kind == "ema":
        return EMAQuantizer(D, decay=0.9, revive_below=0.1, **sizes)
    if kind == "fsq":
        return FSQQuantizer(D, levels=[[3, 3]] * M, is_blockwise=is_blockwise)
    heat = {"temperature_start": 1.0, "temperature_end": 0.1, "anneal_until": 0.5}
    return GumbelQuantizer(D, is_straight_through=True, **heat, **sizes)


def plain_binding(memory: PrototypeMemory, slots: torch.Tensor) -> torch.Tensor:
    """Factor binding, block after block, number after number."""

    def normal(values: list[float]) -> list[float]:
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        return [(v - mean) / deviation for v in values]

    size = D // M
    bound = torch.empty_like(slots)
    for sample in range(slots.shape[0]):
        for k in range(slots.shape[1]):
            for m in range(M):
                place = slice(m * size, (m + 1) * size)
                block = normal(slots[sample, k, place].tolist())
                concepts = [normal(memory.to_prototypes(s).tolist()) for s in memory.seeds[m]]
                likeness = [
                    math.exp(sum(q * c for q, c in zip(block, concept, strict=True)) / size**0.5)
                    for concept in concepts
                ]
                bound[sample, k, place] = torch.tensor(
                    [
                        sum(w * c[i] for w, c in zip(likeness, concepts, strict=True))
                        / sum(likeness)
                        for i in range(size)
                    ]
                )
    return bound


def test_soft_binding_is_the_papers() -> None:
    torch.manual_seed(0)
    memory = PrototypeMemory(D, num_blocks=M, num_prototypes=P).double()
    bound = memory(slots_of(), progress=ZERO)
    torch.testing.assert_close(bound.slots, plain_binding(memory, slots_of()))
    assert bound.codes is None and not bound.costs and memory.code_sizes == ()


def test_prototypes_differ_from_the_start_and_so_do_the_slots_they_make() -> None:
    torch.manual_seed(0)
    memory = PrototypeMemory(64, num_blocks=4, num_prototypes=64)
    slots = torch.randn(50, 64)
    bound = memory(slots, progress=ZERO).slots
    assert bound.std(0).mean() > 0.05


def test_soft_binding_is_float32_under_autocast() -> None:
    memory = PrototypeMemory(D, num_blocks=M, num_prototypes=P)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = memory(slots_of().float(), progress=ZERO)
    assert bound.slots.dtype == torch.float32
    exact = memory(slots_of().float(), progress=ZERO).slots
    torch.testing.assert_close(bound.slots, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", ["ema", "gumbel", "fsq"])
def test_a_code_is_chosen_by_its_block_and_stands_for_it(kind: str) -> None:
    memory = CodeMemory(D, quantizer=quantizer(kind)).eval()
    slots = slots_of().float() * 3
    bound = memory(slots, progress=ZERO)
    assert bound.codes is not None and bound.codes.shape == (2, K, M)
    assert memory.code_sizes == ((9,) * M if kind == "fsq" else (P,) * M)
    torch.testing.assert_close(memory.embed(bound.codes), bound.slots)
    # Whatever happens to the other blocks, a block keeps its code.
    changed = slots.clone()
    changed[..., 4:] = slots_of(1).float()[..., 4:]
    again = memory(changed, progress=ZERO)
    assert torch.equal(again.codes[..., 0], bound.codes[..., 0])
    assert torch.equal(again.slots[..., :4], bound.slots[..., :4])
    assert not torch.equal(again.codes[..., 1:], bound.codes[..., 1:])


def test_codes_differ_from_the_start_and_make_blocks_of_unit_variance() -> None:
    torch.manual_seed(0)
    sizes = {"sizes": [64] * 4, "code_dim": 8, "is_blockwise": True}
    memory = CodeMemory(64, quantizer=EMAQuantizer(64, decay=0.9, revive_below=0.1, **sizes))
    spread = memory(torch.randn(200, 64), progress=ZERO).slots.std(0)
    assert spread.mean().item() == pytest.approx(1.0, abs=0.15)


def test_the_nearest_code_in_float64() -> None:
    memory = CodeMemory(D, quantizer=quantizer()).double().eval()
    codebook = memory.quantizer.codebook
    weight = memory.quantizer.to_codes.weight
    codes = memory(slots_of(), progress=ZERO).codes
    assert codes is not None
    for sample, k, m in torch.cartesian_prod(torch.arange(2), torch.arange(K), torch.arange(M)):
        mapped = slots_of()[sample, k].view(M, -1)[m] @ weight[m]
        distance = (mapped / mapped.norm() - codebook[m]).norm(dim=-1)
        assert codes[sample, k, m] == distance.argmin()


def test_gradients_pass_straight_through_to_each_block() -> None:
    memory = CodeMemory(D, quantizer=quantizer()).train()
    slots = slots_of().float().requires_grad_()
    memory(slots, progress=ZERO).slots[..., :4].sum().backward()
    assert slots.grad is not None
    assert slots.grad[..., :4].abs().min() > 0 and not slots.grad[..., 4:].any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="is_blockwise=True, got one whose groups read all"):
        CodeMemory(D, quantizer=quantizer(is_blockwise=False))
    with pytest.raises(ValueError, match="got 5 blocks for slot_dim 12"):
        PrototypeMemory(D, num_blocks=5, num_prototypes=P)
    with pytest.raises(ValueError, match="got 12 blocks for slot_dim 12"):
        PrototypeMemory(D, num_blocks=12, num_prototypes=P)
    with pytest.raises(ValueError, match="expected a memory of codes"):
        memory = PrototypeMemory(D, num_blocks=M, num_prototypes=P)
        memory.embed(torch.zeros(1, M, dtype=torch.long))
    with pytest.raises(ValueError, match="of equally many numbers"):
        FSQQuantizer(D, levels=[[3], [3, 3]], is_blockwise=True)
