import runpy
from pathlib import Path

import pytest
import torch

from ocrl.decoders.light_field import LightFieldDecoder
from ocrl.decoders.ray_mixer import RayMixerDecoder

TEXTBOOK = runpy.run_path(str(Path(__file__).with_name("textbook_osrt.py")))


def make_mixer(**changes):
    arguments = dict(
        num_octaves=3,
        first_octave=-3,
        query_dim=12,
        num_layers=2,
        num_heads=2,
        head_dim=5,
        mlp_dim=16,
        hidden_dims=[16, 14],
    )
    torch.manual_seed(0)
    return RayMixerDecoder(10, **(arguments | changes))


def make_field(**changes):
    torch.manual_seed(0)
    arguments = dict(num_octaves=3, first_octave=-3, hidden_dims=[16, 14])
    return LightFieldDecoder(10, **(arguments | changes))


def rays(*shape):
    directions = torch.nn.functional.normalize(torch.randn(*shape, 3), dim=-1)
    return torch.cat([3 * torch.randn(*shape, 3), directions], dim=-1)


@pytest.mark.parametrize("make", [make_mixer, make_field])
def test_any_picture_of_rays_is_painted(make):
    decoder, slots = make(), torch.randn(2, 3, 5, 10)
    target = rays(2, 3, 4, 6)
    output = decoder(slots, target)
    assert output.recon.shape == (2, 3, 3, 4, 6) and output.masks.shape == (2, 3, 5, 4, 6)
    assert (output.recon > 0).all() and (output.recon < 1).all()
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 3, 4, 6))
    # Rays do not touch each other: the same in one row, and alone.
    row = decoder(slots, target.flatten(2, 3)[:, :, None])
    torch.testing.assert_close(row.recon.unflatten(-1, (4, 6)).squeeze(3), output.recon)
    alone = decoder(slots, target[:, :, 2:3, 1:2])
    torch.testing.assert_close(alone.masks, output.masks[..., 2:3, 1:2])


@pytest.mark.parametrize("make", [make_mixer, make_field])
def test_slots_may_come_in_any_order(make):
    decoder, slots, target = make(), torch.randn(1, 2, 5, 10), rays(1, 2, 3, 3)
    order = torch.tensor([4, 2, 0, 3, 1])
    left, right = decoder(slots, target), decoder(slots[:, :, order], target)
    torch.testing.assert_close(left.recon, right.recon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left.masks[:, :, order], right.masks, rtol=1e-4, atol=1e-5)


def test_the_mixer_draws_the_mixed_slot():
    # The mixture of mapped slots is the map of the mixture.
    decoder, slots, target = make_mixer(), torch.randn(1, 1, 4, 10), rays(1, 1, 1, 7)
    output = decoder(slots, target)
    mixed = torch.einsum("kp,kd->pd", output.masks[0, 0, :, 0], decoder.norm_slots(slots)[0, 0])
    code = decoder.encoding(target)[0, 0, 0]
    expected = decoder.draw(decoder.draw.of_slots(mixed), code).sigmoid()
    torch.testing.assert_close(output.recon[0, 0, :, 0].T, expected, atol=1e-5, rtol=1e-5)


def test_a_light_field_mixes_what_each_slot_alone_paints():
    decoder, slots, target = make_field(), torch.randn(1, 1, 4, 10), rays(1, 1, 2, 3)
    output = decoder(slots, target)
    for index in range(4):
        alone = decoder(slots[:, :, index : index + 1], target)
        torch.testing.assert_close(alone.recon, output.parts[:, :, index])
        torch.testing.assert_close(alone.masks, torch.ones_like(alone.masks))
    mixed = (output.masks[:, :, :, None] * output.parts).sum(2)
    torch.testing.assert_close(mixed, output.recon)


@pytest.mark.parametrize("make", [make_mixer, make_field])
def test_frames_are_no_rays(make):
    slots = torch.randn(1, 2, 5, 10)
    with pytest.raises(ValueError, match=r"expected rays \(B,T,h,w,6\) .* got none"):
        make()(slots)
    with pytest.raises(ValueError, match=r"got shape \(1, 2, 3, 8, 8\): this decoder draws posed"):
        make()(slots, torch.rand(1, 2, 3, 8, 8))


@pytest.mark.parametrize(("make", "name"), [(make_mixer, "mix"), (make_field, "broadcast")])
def test_they_are_the_papers_decoders(make, name):
    decoder, slots, target = make(), torch.randn(3, 1, 5, 10), rays(3, 1, 1, 9)
    output = decoder(slots, target)
    colours, masks = TEXTBOOK[name](decoder, slots[:, 0], target[:, 0, 0])
    torch.testing.assert_close(output.recon[:, 0, :, 0].mT, colours, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.masks[:, 0, :, 0], masks, atol=1e-5, rtol=1e-4)


def test_rays_belong_to_the_slots_that_they_pass_by():
    decoder = make_mixer(reads_places=True)
    assert decoder.num_axes == 3
    # Looking down from (0, 0, 5): at places 0, .8 and 2.4 along x, and away from all of them.
    points = torch.tensor([[0.0, 0.0, 0.5], [0.8, 0.0, 0.5], [2.4, 0.0, 0.5], [-4.0, 3.0, 0.5]])
    origin = torch.tensor([0.0, 0.0, 5.0])
    directions = torch.nn.functional.normalize(points - origin, dim=-1)
    target = torch.cat([origin.expand_as(directions), directions], dim=-1)[None, None, None]
    features = torch.zeros(4, 6)
    places = torch.cat([torch.zeros(1, 3), points[:3]])
    is_placed = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    slots = torch.cat([features, places, is_placed], dim=-1)[None, None]
    masks = decoder(slots, target).masks[0, 0, :, 0]
    assert masks.argmax(0).tolist() == [1, 2, 3, 0]
    # Equal features: what parts slots is the Gaussian alone, at first 0.4 wide.
    across = 0.8 * (4.5 / torch.tensor([0.8, 4.5]).norm())
    expected = torch.tensor([0.0, -0.5 * across.item() ** 2 / 0.4**2]).softmax(0)
    found = masks[[2, 1], 1] / masks[[2, 1], 1].sum()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    # What is behind a camera is not seen.
    up = torch.cat([origin, -directions[0]])[None, None, None, None]
    assert decoder(slots, up).masks[0, 0, 1:].max() < 1e-6
