from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional

from ocrl.check import check_slot_encoder
from ocrl.checkpoint import build
from ocrl.encoders.sysbinder import SysBinder
from ocrl.inspection.edit import apply_edits, parse_edit, scenes_of

CONFIGS = Path(__file__).parents[3] / "configs"
SIZES = ["+image_size=[16,16]", "+num_slots=3", "+slot_dim=16", "encoder.mlp_dim=32"]
SIZES += ["backbone@encoder.backbone=cnn_small"]
SOFT = ("sysbinder", "encoder.memory.num_blocks=4")
HARD = ("svq", "encoder.memory.quantizer.sizes=[5,5,5,5]", "encoder.memory.quantizer.code_dim=6")


def make(name: str, *overrides: str, seed: int = 0) -> SysBinder:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+encoder={name}", *SIZES, *overrides])
    torch.manual_seed(seed)
    return build(config)["encoder"]


def frames(seed: int = 3) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantizer", ["ema", "gumbel", "fsq"])
def test_contract_of_the_quantisers(quantizer: str) -> None:
    name, *options = HARD
    if quantizer == "fsq":
        options = ["encoder.memory.quantizer.levels=[[4,4],[4,4],[4,4],[4,4]]"]
        options += ["~encoder.memory.quantizer.sizes", "~encoder.memory.quantizer.code_dim"]
    overrides = [f"quantizer@encoder.memory.quantizer={quantizer}", *options]
    if quantizer != "ema":
        overrides.append("~encoder.memory.quantizer.revive_below")
    check_slot_encoder(make(name, *overrides), twin=make(name, *overrides, seed=1))


def plain_rounds(encoder: SysBinder, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The paper's algorithm with keys and values, block after block, in float64."""
    attention, size = encoder.attention, encoder.slot_dim // 4
    normal = attention.norm_inputs(tokens)
    keys, values = attention.to_k(normal), attention.to_v(normal)
    slots = queries
    for _ in range(encoder.num_iterations):
        asked = attention.to_q(encoder.norm_slots(slots)) * encoder.slot_dim**-0.5
        attn = (asked @ keys.mT).softmax(1) + 1e-8
        updates = attn / attn.sum(2, keepdim=True) @ values
        blocks = []
        for m in range(4):
            place = slice(m * size, (m + 1) * size)
            gates = slice(3 * m * size, 3 * (m + 1) * size)
            gru = torch.nn.GRUCell(size, size, dtype=torch.float64)
            for source, kind in ((encoder.gru.from_input, "ih"), (encoder.gru.from_state, "hh")):
                getattr(gru, f"weight_{kind}").data = source.weight[m].mT
                getattr(gru, f"bias_{kind}").data = source.bias[gates]
            block = gru(updates[..., place].flatten(0, 1), slots[..., place].flatten(0, 1))
            first, last = encoder.mlp.to_hidden, encoder.mlp.to_out
            hidden = functional.layer_norm(block, (size,)) @ first.weight[m]
            hidden = functional.relu(hidden + first.bias[8 * m : 8 * (m + 1)])
            block = block + hidden @ last.weight[m] + last.bias[place]
            concepts = encoder.memory.to_prototypes(encoder.memory.seeds[m])
            concepts = functional.layer_norm(concepts, (size,))
            likeness = functional.layer_norm(block, (size,)) @ concepts.mT * size**-0.5
            blocks.append(likeness.softmax(-1) @ concepts)
        slots = torch.cat(blocks, dim=-1).view_as(slots)
    return slots


def test_it_is_the_papers_algorithm() -> None:
    encoder = make(*SOFT).double().eval()
    output = encoder.encode(frames().double(), condition=None)
    assert output.queries is not None and output.codes is None and encoder.code_sizes == ()
    with torch.no_grad():
        tokens = encoder.backbone(frames().double())
        expected = plain_rounds(encoder, output.queries[:, 0], tokens)
    torch.testing.assert_close(output.slots[:, 0], expected)


def test_codes_are_hard_and_nothing_is_drawn_in_evaluation() -> None:
    encoder = make(*HARD).eval()
    output = encoder.encode(frames(), condition=None)
    assert output.codes is not None and output.codes.shape == (2, 1, 3, 4)
    assert encoder.code_sizes == (5, 5, 5, 5) and (output.codes < 5).all()
    torch.testing.assert_close(encoder.slots_of(output.codes), output.slots)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(9)
    encoder.set_progress(1.0)
    again = encoder.encode(frames(), condition=None)
    assert torch.equal(again.codes, output.codes) and torch.equal(again.slots, output.slots)
    after = encoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "progress")


def test_training_moves_the_codebook_in_every_iteration() -> None:
    encoder = make(*HARD).train()
    seen = []
    quantizer = encoder.memory.quantizer
    quantizer.register_forward_hook(lambda *_: seen.append(quantizer.totals.clone()))
    output = encoder.encode(frames(), condition=None)
    assert len(seen) == encoder.num_iterations == 3
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert output.aux["code_commitment"].shape == (2, 1, 3)


def test_an_edit_of_a_code_changes_one_block_of_one_slot() -> None:
    encoder = make(*HARD).eval()
    codes = encoder.encode(frames(), condition=None).codes
    assert codes is not None
    edited = codes.clone()
    edited[1, 0, 2, 3] = (edited[1, 0, 2, 3] + 1) % 5
    moved = (encoder.slots_of(edited) - encoder.slots_of(codes)).abs() > 1e-6
    assert moved.nonzero().tolist() == [[1, 0, 2, number] for number in range(12, 16)]
    scenes = scenes_of(encoder(frames()[None], torch.ones(1, 2, dtype=torch.bool)))
    assert scenes[1].codes is not None
    edit = parse_edit(f"code 2@1 3:{(int(scenes[1].codes[2, 3]) + 1) % 5}")
    after = apply_edits(scenes, [edit], encoder=encoder)[1]
    moved = (after.slots - scenes[1].slots).abs() > 1e-6
    assert moved.nonzero().tolist() == [[2, number] for number in range(12, 16)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a memory of codes"):
        make(*SOFT).slots_of(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected no coordinates .* got shape \(1, 2\)"):
        make(*HARD).slots_of(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="got 4 blocks for 16 to 30"):
        make(*SOFT, "encoder.mlp_dim=30")
    with pytest.raises(ValueError, match="got 'half'"):
        make(*SOFT, "encoder.gradient=half")
