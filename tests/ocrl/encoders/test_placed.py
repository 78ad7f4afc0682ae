import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from ocrl.backbones.scene import SceneBackbone
from ocrl.encoders.placed import PlacedSlots
from ocrl.initializers import LearnedInitializer
from ocrl.interfaces import Backbone
from ocrl.nn.attention import standardize
from ocrl.nn.location import split_placed
from ocrl.nn.triangulation import NUM_AXES, distances, log_density, meeting_points, token_rays
from ocrl.types import Camera

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
posed_clip, CENTERS, SIZE = WORLD["posed_clip"], WORLD["CENTERS"], WORLD["SIZE"]


def make(backbone=None, **changes):
    torch.manual_seed(0)
    arguments = {
        "num_slots": 4,
        "slot_dim": 10,
        "num_grounds": 1,
        "center": [0.0, 0.0, 0.3],
        "radius": 1.5,
        "num_iterations_first": 3,
        "num_iterations_rest": 2,
        "num_prior_tokens": 0.3,
        "min_scale": 0.1,
        "mlp_dim": 12,
        "eps_placement": "attn",
        **changes,
    }
    return PlacedSlots(
        backbone or scene(),
        initializer=LearnedInitializer(arguments["num_slots"], slot_dim=arguments["slot_dim"]),
        **arguments,
    )


def scene(**changes):
    arguments = {
        "strides": [2],
        "kernel_size": 3,
        "num_residual": 0,
        "num_octaves": 2,
        "first_octave": -3,
        "image_size": SIZE,
        "out_dim": 8,
        "num_layers": 0,
        "num_heads": 2,
        "mlp_dim": 8,
        "has_rays": True,
    }
    return SceneBackbone([8], **(arguments | changes))


def test_the_backbones_rays_are_those_of_its_tokens():
    backbone, clip = scene(), posed_clip().to_float()
    frames, camera = clip.video[:, 0], clip.camera[:1]
    tokens = backbone(frames, camera=camera)
    assert tokens.shape == (2, 3 * 48, 15) and backbone.out_dim == 15
    rays = token_rays(camera.intrinsics, camera.extrinsics, size=SIZE, grid=(6, 8))
    torch.testing.assert_close(tokens[..., 8:], rays.flatten(1, 3))
    plain = scene(has_rays=False)
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(plain(frames, camera=camera), tokens[..., :8])


def test_two_rounds_written_out():
    encoder = make(num_iterations_first=2).double()
    nn.init.normal_(encoder.corrector.attention.to_q.weight)
    clip = posed_clip(num_frames=1).to_float()
    camera = clip.camera.map(lambda value: value.double())
    tokens = encoder.backbone(clip.video[:, 0].double(), camera=camera)
    features, rays = tokens[..., :8], tokens[..., 8:]
    corrector = encoder.corrector
    slots = encoder.initializer(features)[..., :6]
    places = torch.cat([encoder.ground_place[None], encoder.places]).expand(2, -1, -1)
    log_scales = torch.cat([torch.zeros(1, 1).double(), encoder.log_scales]).expand(2, -1, -1)
    prior = log_scales.exp()
    for _ in range(2):
        density = log_density(*distances(places, rays), log_scales, rays)
        bias = density - math.log(3)
        bias[:, 0] = 0.0
        slots, attn = corrector.iterate(slots, standardize(features), bias=bias)
        places = meeting_points(attn, rays, places=places, num_prior_tokens=0.3)
        squares = (attn * distances(places, rays)[0]).sum(-1, keepdim=True) / 2
        total = attn.sum(-1, keepdim=True)
        log_scales = 0.5 * ((squares + 0.3 * prior**2) / (total + 0.3) + 0.1**2).log()
    output = encoder(clip.video.double(), clip.is_first, camera=camera)
    torch.testing.assert_close(output.attn[:, 0], attn)
    found = split_placed(output.slots[:, 0], num_axes=NUM_AXES)
    torch.testing.assert_close(found[0], slots)
    torch.testing.assert_close(found[1], places)
    assert found[2][..., 0].tolist() == [[0, 1, 1, 1]] * 2
    torch.testing.assert_close(output.aux["scales"][:, 0], log_scales.exp())


class _Brightness(Backbone):
    """Tokens that say how bright a pixel is, and its ray."""

    out_dim, image_size, grid, needs_camera, has_rays = 9, SIZE, SIZE, True, True

    def forward(self, frames, *, camera=None):
        light = frames.amax(dim=-3).flatten(1)
        rays = token_rays(camera.intrinsics, camera.extrinsics, size=SIZE, grid=SIZE)
        return torch.cat([torch.stack([light, 1 - light], dim=-1), rays.flatten(1, 3)], dim=-1)


def test_slots_are_triangulated_and_follow_things_of_one_look():
    encoder = make(
        _Brightness(), slot_dim=6, mlp_dim=None, num_iterations_first=8, num_iterations_rest=3
    )
    attention, gru = encoder.corrector.attention, encoder.corrector.gru
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        gru.bias_hh[2:4] = 100.0  # the state is kept
        # The ground asks for dark tokens and the others for bright ones.
        looks = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
        encoder.initializer.slots.copy_(nn.functional.pad(looks, (0, 4)))
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight.copy_(3 * torch.eye(2))
        shifts = torch.tensor([[0.3, 0.2, -0.2], [-0.2, 0.3, 0.2], [0.2, -0.3, 0.2]])
        encoder.places.copy_(CENTERS + shifts)
    clip = posed_clip(num_views=4).to_float()
    slots = encoder(clip.video, clip.is_first, camera=clip.camera).slots
    for t in range(3):
        _, places, _ = split_placed(slots[:, t], num_axes=NUM_AXES)
        apart = (places[:, 1:] - CENTERS * (1 + 0.05 * t)).norm(dim=-1)
        # Surfaces are seen and not centres, and a pixel is 0.35 units there.
        assert apart.max() < 0.2


def test_places_are_exact_under_autocast():
    """A hundred units from the origin bfloat16 knows places to half a unit."""
    encoder, clip = make(center=[100.0, 0.0, 0.3]).eval(), posed_clip(num_frames=1).to_float()
    extrinsics = clip.camera.extrinsics.clone()
    extrinsics[..., 0, 3] += 100.0
    camera = Camera(clip.camera.intrinsics, extrinsics)
    with torch.no_grad():
        plain = encoder(clip.video, clip.is_first, camera=camera).slots
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = encoder(clip.video, clip.is_first, camera=camera).slots
    _, expected, _ = split_placed(plain, num_axes=NUM_AXES)
    _, places, _ = split_placed(mixed, num_axes=NUM_AXES)
    torch.testing.assert_close(places, expected, atol=0.2, rtol=0.0)


def test_grounds_come_first_and_have_no_place():
    encoder, clip = make(num_grounds=2), posed_clip().to_float()
    output = encoder(clip.video, clip.is_first, camera=clip.camera)
    _, _, is_placed = split_placed(output.slots, num_axes=NUM_AXES)
    assert is_placed[..., 0].tolist() == [[[0, 0, 1, 1]] * 3] * 2


def test_looks_that_are_not_kept_come_from_the_views_and_the_last_places_alone():
    encoder, clip = make(keeps_looks=False), posed_clip().to_float()
    tokens = encoder.backbone(clip.video[:, 0], camera=clip.camera[:1])
    goes_on = torch.zeros(2, dtype=torch.bool)
    _, state = encoder.bind(tokens, encoder.initial_state(2), ~goes_on)
    again = encoder.bind(tokens, state, goes_on)[0].slots
    other = {**state, "slots": torch.randn_like(state["slots"])}
    assert torch.equal(encoder.bind(tokens, other, goes_on)[0].slots, again)
    moved = {**state, "places": state["places"] + 0.5}
    assert not torch.allclose(encoder.bind(tokens, moved, goes_on)[0].slots, again)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_grounds": 4}, r"num_grounds must be in \[0, num_slots=4\), got 4"),
        ({"radius": 0.0}, "radius must be positive, got 0.0"),
        ({"num_prior_tokens": 0.0}, "num_prior_tokens must be positive"),
        ({"min_scale": -1.0}, "min_scale must be positive"),
        ({"slot_dim": 4}, "expected slot_dim above 4"),
        ({"backbone": scene(has_rays=False)}, "tokens end with their rays, .* has_rays"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)
