import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl.objectives.views import PLACE, Views
from ocrl.objectives.views_agreement import ViewsAgreement
from ocrl.types import DecoderOutput

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
SIZE = WORLD["SIZE"]


@pytest.fixture
def asked():
    """Colours asked for, what the encoder attends to, and whose the rays are (B,T,K,1,P)."""
    torch.manual_seed(0)
    clip = WORLD["posed_clip"](num_views=4)
    seen, asked, rays = Views(2, num_rays=60, held_out_share=0.5, rare_share=0.0).choose(clip)
    encoded = WORLD["Told"]()(seen.video, seen.is_first, camera=seen.camera)
    hit = torch.stack([WORLD["balls_seen"](rays[:, t], t) for t in range(3)], dim=1)
    owner = torch.nn.functional.one_hot((hit - 1) % 4, 4).movedim(-1, 2).float()
    return asked, encoded, owner


def agreement(asked, encoded, masks):
    decoded = DecoderOutput(asked.video.float(), masks)
    return ViewsAgreement(2, image_size=SIZE)(asked, encoded, decoded)


def test_masks_that_are_the_attention_cost_nothing(asked):
    clip, encoded, owner = asked
    assert agreement(clip, encoded, owner).item() == pytest.approx(0.0, abs=1e-6)
    uniform = torch.full_like(owner, 0.25)
    assert agreement(clip, encoded, uniform).item() == pytest.approx(math.log(4), rel=1e-6)
    # Another view, row or column is another place: the balls are elsewhere there.
    for axis in range(3):
        moved = clip.properties[PLACE].clone()
        is_seen = moved[..., 0] >= 0
        other = 1 - moved[..., axis]
        moved[..., axis] = torch.where(is_seen, other, moved[..., axis])
        there = replace(clip, properties={PLACE: moved})
        assert agreement(there, encoded, owner).item() > 0.5


def test_rays_of_other_cameras_do_not_count(asked):
    clip, encoded, owner = asked
    is_seen = clip.properties[PLACE][..., 0] >= 0
    assert is_seen.sum(-1).tolist() == [[30] * 3] * 2
    wrong = owner.roll(1, dims=2)
    where = is_seen[:, :, None, None]
    assert agreement(clip, encoded, owner.where(where, wrong)).item() < 1e-6
    assert agreement(clip, encoded, wrong.where(where, owner)).item() > 5
    none = replace(clip, properties={PLACE: torch.full_like(clip.properties[PLACE], -1.0)})
    assert agreement(none, encoded, wrong) == 0


def test_the_attention_is_the_teacher(asked):
    clip, encoded, owner = asked
    attn = encoded.attn.clone().requires_grad_()
    masks = (owner * 0.5 + 0.125).requires_grad_()
    agreement(clip, replace(encoded, attn=attn), masks).backward()
    assert attn.grad is None and masks.grad.abs().sum() > 0


def test_it_needs_rays(asked):
    clip, encoded, owner = asked
    with pytest.raises(ValueError, match="that the objective views drew"):
        agreement(replace(clip, properties={}), encoded, owner)
    with pytest.raises(ValueError, match="tokens on a grid with the proportions of a view"):
        agreement(clip, replace(encoded, attn=encoded.attn[..., :14]), owner)
