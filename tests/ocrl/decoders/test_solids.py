import math

import pytest
import torch

from ocrl.check import check_decoder
from ocrl.decoders.solids import SolidsDecoder
from ocrl.nn.location import join_placed


def make(**changes):
    torch.manual_seed(0)
    arguments = {
        "min_radius": 0.2,
        "max_radius": 1.0,
        "sharpness": 6.0,
        "num_octaves": 2,
        "first_octave": -3,
        "hidden_dims": [8],
        "ground_dims": [8],
    }
    return SolidsDecoder(10, **(arguments | changes))


def rays_from(origin, *targets):
    """Rays (1,1,1,P,6) from a point to others."""
    start = torch.tensor(origin).expand(len(targets), 3)
    direction = torch.nn.functional.normalize(torch.tensor(targets) - start, dim=-1)
    return torch.cat([start, direction], dim=-1)[None, None, None]


def placed(*places, num_grounds=1):
    """Slots (1,1,K,10): grounds, then things at places."""
    torch.manual_seed(1)
    points = torch.tensor([*[[0.0, 0.0, 0.0]] * num_grounds, *places])
    is_placed = (torch.arange(len(points)) >= num_grounds).float()[:, None]
    return join_placed(torch.randn(len(points), 6), points, is_placed)[None, None]


def opaque(decoder):
    with torch.no_grad():
        decoder.shape.layers[-1].bias[0] = 40.0
    return decoder


@pytest.mark.parametrize("changes", [{}, {"sharpness": 2.0, "hidden_dims": [8, 8]}])
def test_contract(changes):
    torch.manual_seed(2)
    rays = torch.randn(3, 5, 4, 4, 6)
    rays[..., 3:] = torch.nn.functional.normalize(rays[..., 3:], dim=-1)
    check_decoder(make(**changes), num_slots=4, slot_dim=10, target=rays)


def test_one_ray_written_out():
    """A sphere of radius 0.6, for all is zero but the opacity; the ray passes it at 0.3."""
    decoder, slots = make(), placed([0.0, 0.0, 0.0])
    rays = rays_from((5.0, 0.3, 0.0), (0.0, 0.3, 0.0))
    logit = 6.0 * (1 - math.sqrt((0.3 / 0.6) ** 2 + 1e-4)) - 2.0
    share = 1 / (1 + math.exp(-logit))
    output = decoder(slots, rays)
    expected = torch.tensor([1 - share, share])
    torch.testing.assert_close(output.masks[0, 0, :, 0, 0], expected)
    ground, thing = output.parts[0, 0, :, :, 0, 0]
    recon = (1 - share) * ground + share * thing
    torch.testing.assert_close(output.recon[0, 0, :, 0, 0], recon)
    look = decoder.look(slots[0, 0, 1, :6])
    # Where the ray enters the unit sphere: across by half a radius, towards the camera.
    normal = torch.tensor([math.sqrt(1 - 0.25 + 1e-4 / 0.36), 0.5, 0.0])
    shaded = look[:3] + look[3:].view(3, 3) @ normal
    torch.testing.assert_close(thing, shaded.sigmoid(), atol=1e-4, rtol=0.0)


def test_places_are_exact_under_autocast():
    """Far from the origin bfloat16 knows places to half a unit."""
    decoder, slots = make(), placed([100.0, 0.3, 0.0], [100.0, -0.7, 0.0])
    rays = rays_from((108.0, 0.4, 0.0), (100.0, 0.4, 0.0), (100.0, -0.5, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(slots, rays).masks
    torch.testing.assert_close(mixed, decoder(slots, rays).masks, atol=0.02, rtol=0.0)


def test_what_is_nearer_hides_what_is_behind():
    decoder = opaque(make())
    slots = placed([-2.0, 0.0, 0.0], [2.0, 0.0, 0.0])
    front = decoder(slots, rays_from((8.0, 0.0, 0.0), (0.0, 0.0, 0.0))).masks[0, 0, :, 0, 0]
    back = decoder(slots, rays_from((-8.0, 0.0, 0.0), (0.0, 0.0, 0.0))).masks[0, 0, :, 0, 0]
    torch.testing.assert_close(front, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(back, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0.0)


def test_nothing_is_seen_behind_the_camera_or_beside_the_ray():
    slots = placed([2.0, 0.0, 0.0])
    away = rays_from((0.0, 0.0, 0.0), (-1.0, 0.0, 0.0))
    assert opaque(make())(slots, away).masks[0, 0, 1] < 1e-6
    beside = rays_from((5.0, 4.0, 0.0), (-5.0, 4.0, 0.0))
    assert make()(slots, beside).masks[0, 0, 1] < 1e-6


def test_solids_turn_with_the_world():
    """A long solid is seen long from one side and small from its end."""
    decoder = make()
    with torch.no_grad():
        decoder.shape.layers[-1].bias[:] = torch.tensor([0.0, 9.0, -9.0, -9.0, 0.0, 0.0, 0.0])
    slots = placed([0.0, 0.0, 0.0])
    side = decoder(slots, rays_from((0.8, 5.0, 0.0), (0.8, 0.0, 0.0))).masks[0, 0, 1]
    end = decoder(slots, rays_from((5.0, 0.8, 0.0), (0.0, 0.8, 0.0))).masks[0, 0, 1]
    assert side > 0.7 and end < 1e-3


def test_several_grounds_share_and_none_is_normalised():
    rays = rays_from((5.0, 0.2, 0.0), (0.0, 0.2, 0.0), (0.0, 3.0, 0.0))
    decoder = make()
    one, two = (
        decoder(placed([0.0, 0.0, 0.0], num_grounds=number), rays).masks[0, 0, :, 0]
        for number in (1, 2)
    )
    torch.testing.assert_close(two[:2], one[:1].expand(2, -1) / 2)
    torch.testing.assert_close(two[2], one[1])
    none = decoder(placed([0.0, 0.0, 0.0], [0.0, 1.0, 0.0], num_grounds=0), rays)
    torch.testing.assert_close(none.masks.sum(2), torch.ones(1, 1, 1, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_radius": 1.0}, "expected 0 < min_radius < max_radius, got 1.0 and 1.0"),
        ({"min_radius": 0.0}, "expected 0 < min_radius"),
        ({"sharpness": 0.0}, "sharpness must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)
