"""Every decoder that a configuration names draws edited scenes, or says that it draws nothing."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.checkpoint import build
from ocrl.inspection.edit import apply_edits, draw, parse_edit, scenes_of
from ocrl.interfaces import Decoder
from ocrl.types import SlotOutput

CONFIGS = Path(__file__).parents[3] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "decoder").glob("*.yaml"))
SIZES = ["+image_size=[32,32]", "+num_slots=4", "+slot_dim=16", "+plane=[0.3,14.0]"]


def test_decoders_are_found():
    assert len(NAMES) > 8


@pytest.mark.parametrize("name", NAMES)
def test_more_and_fewer_slots_are_drawn(name, small_vit):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+decoder={name}", f"+vit={small_vit}", *SIZES])
    torch.manual_seed(0)
    decoder = build(config)["decoder"].eval()
    # Heads for properties have no grid of their own.
    grid = getattr(decoder, "grid", (4, 4))
    attn = torch.rand(1, 2, 4, math.prod(grid)).softmax(2)
    before = scenes_of(SlotOutput(torch.randn(1, 2, 4, 16), attn))
    frame = torch.rand(3, 32, 32)
    edits = [parse_edit(text) for text in ("drop 1@0", "copy 2@0 new@1", "copy 0@0 3@1")]
    after = apply_edits(before, edits, encoder=torch.nn.Identity())
    can_depict = type(decoder).depict is not Decoder.depict and decoder.space != "features"
    with torch.no_grad():
        if decoder.space != "pixels" and not can_depict:
            with pytest.raises(ValueError, match=f"which makes {decoder.space}"):
                draw(decoder, after[0], frame=frame)
            return
        for scene, num_slots in ((before[0], 4), (after[0], 3), (after[1], 5)):
            picture, masks = draw(decoder, scene, frame=frame)
            assert picture.shape == (3, 32, 32) and len(masks) == num_slots
            assert picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 1
            torch.testing.assert_close(masks.sum(0), torch.ones_like(masks[0]))
        first, second = (draw(decoder, scenes[1], frame=frame)[1] for scenes in (before, after))
        assert first.shape[0] + 1 == second.shape[0]
