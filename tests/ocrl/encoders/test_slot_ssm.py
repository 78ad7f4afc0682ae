from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from ocrl.checkpoint import build
from ocrl.encoders.psb import PSB
from ocrl.nn.scan import GatedScan

CONFIGS = Path(__file__).parents[3] / "configs"


def make(*overrides: str) -> PSB:
    sizes = ["+image_size=[16,16]", "+num_slots=3", "+slot_dim=8", "+encoder=slot_ssm"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[*sizes, "encoder.object_heads=2", *overrides])
    torch.manual_seed(0)
    return build(config)["encoder"].eval()


def test_is_the_psb_block_with_a_scan_over_the_present_frame() -> None:
    encoder = make()
    assert isinstance(encoder, PSB)
    assert all(isinstance(block.time_mixer, GatedScan) for block in encoder.blocks)
    assert all(block.bottom_up.window == 1 for block in encoder.blocks)


def test_state_does_not_grow_with_time() -> None:
    encoder = make("encoder.num_blocks=2", "encoder.time_mixer.hidden_dim=12")
    state = encoder.initial_state(2)
    shapes = [tuple(memory.shape) for memory in state["blocks"]]
    assert shapes == [(2, 3, 12), (2, 3, 12)] and state["tokens"].numel() == 0
    with torch.no_grad():
        for _ in range(3):
            _, state = encoder.step(torch.rand(2, 3, 16, 16), state, torch.zeros(2).bool())
    assert [tuple(memory.shape) for memory in state["blocks"]] == shapes
    assert state["tokens"].numel() == 0


def test_remembers_beyond_any_window() -> None:
    encoder = make()
    video, is_first = torch.rand(1, 40, 3, 16, 16), torch.zeros(1, 40, dtype=torch.bool)
    changed = video.clone()
    changed[:, 0] = 0.0
    with torch.no_grad():
        before, after = encoder(video, is_first).slots, encoder(changed, is_first).slots
    assert (before[:, 39] - after[:, 39]).abs().max().item() > 0


def test_takes_attention_for_its_mixer() -> None:
    encoder = make("time_mixer@encoder.time_mixer=attention", "encoder.time_mixer.num_heads=2")
    assert encoder(torch.rand(1, 2, 3, 16, 16), torch.zeros(1, 2).bool()).slots.shape[2:] == (3, 8)
