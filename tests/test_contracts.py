"""Every encoder, decoder and dynamics that a configuration names keeps its contract."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.check import check_decoder, check_dynamics, check_slot_encoder
from ocrl.checkpoint import build
from ocrl.types import Camera

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES = ["+image_size=[32,32]", "+num_slots=4", "+slot_dim=64", "+plane=[0.3,14.0]"]


def _names(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert names, f"no configuration in {group}"
    return names


def _build_twins(group: str, name: str, vit: str, *options: str) -> list[torch.nn.Module]:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+{group}={name}", f"+vit={vit}", *SIZES, *options])
    twins = []
    for seed in range(2):
        torch.manual_seed(seed)
        twins.append(build(config)[group])
    return twins


@pytest.mark.parametrize("name", _names("encoder"))
def test_encoder(name: str, small_vit: str) -> None:
    encoder, twin = _build_twins("encoder", name, small_vit)
    if encoder.backbone.needs_camera:
        check_slot_encoder(encoder, twin=twin, num_views=2, camera=_cameras(2))
        return
    check_slot_encoder(encoder, twin=twin)


@pytest.mark.parametrize("name", ["slot_attention", "savi", "smooth_sa", "located"])
def test_encoder_with_modulated_updates(name: str, small_vit: str) -> None:
    encoder, twin = _build_twins("encoder", name, small_vit, "encoder.modulation=0.5")
    check_slot_encoder(encoder, twin=twin)
    plain, _ = _build_twins("encoder", name, small_vit)
    # Configurations that were saved before there was such a thing have no such key.
    earlier, _ = _build_twins("encoder", name, small_vit, "~encoder.modulation")
    video, is_first = torch.rand(1, 2, 3, 32, 32), torch.zeros(1, 2).bool()
    slots = [model.eval()(video, is_first).slots for model in (encoder, plain, earlier)]
    assert torch.equal(slots[1], slots[2]) and not torch.allclose(slots[0], slots[1])


def _cameras(num_views: int) -> Camera:
    """Cameras of 3 clips of 5 frames, all different, that look at the middle of the world."""
    generator = torch.Generator().manual_seed(2)
    back = torch.nn.functional.normalize(
        torch.randn(3, 5, num_views, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0]), dim=-1
    )
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(back)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
    extrinsics = torch.eye(4).repeat(3, 5, num_views, 1, 1)
    extrinsics[..., :3, :3] = torch.stack([right, torch.linalg.cross(right, back), -back], dim=-1)
    extrinsics[..., :3, 3] = 10.0 * back
    intrinsics = torch.tensor([[50.0, 0.0, 16.0], [0.0, 50.0, 16.0], [0.0, 0.0, 1.0]])
    return Camera(intrinsics.expand(3, 5, num_views, 3, 3), extrinsics)


@pytest.mark.parametrize("name", ["psb", "savi", "slot_attention", "slot_ssm"])
def test_encoder_of_posed_views(name: str, small_vit: str) -> None:
    encoder, twin = _build_twins("encoder", name, small_vit, "backbone@encoder.backbone=scene")
    check_slot_encoder(encoder, twin=twin, num_views=2, camera=_cameras(2))


@pytest.mark.parametrize("name", _names("decoder"))
def test_decoder(name: str, small_vit: str) -> None:
    decoder, twin = _build_twins("decoder", name, small_vit)
    target = torch.rand(3, 5, 3, 32, 32)
    if decoder.space == "rays":
        # A row of rays from a height of 10 units down to the middle of the world.
        directions = torch.nn.functional.normalize(torch.randn(3, 5, 1, 12, 3) - 10.0, dim=-1)
        target = torch.cat([-10.0 * directions, directions], dim=-1)
        check_decoder(decoder, num_slots=4, slot_dim=64, twin=twin, target=target)
        return
    # Decoders that draw where the encoder saw a slot do so on their own grid; a set has none.
    tokens = 64 if decoder.space == "set" else math.prod(decoder.grid)
    check_decoder(decoder, num_slots=4, slot_dim=64, twin=twin, target=target, num_tokens=tokens)


@pytest.mark.parametrize("actions", [(0, 0), (5, 0), (0, 3)], ids=["none", "discrete", "box"])
@pytest.mark.parametrize("name", _names("dynamics"))
def test_dynamics(name: str, actions: tuple[int, int], small_vit: str) -> None:
    sizes = [f"+num_actions={actions[0]}", f"+action_dim={actions[1]}", "+code_sizes=[5,3,4]"]
    dynamics, twin = _build_twins("dynamics", name, small_vit, *sizes)
    # Layers that start at zero would hide what happens in those before them.
    with torch.no_grad():
        for parameter in dynamics.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    check_dynamics(dynamics, num_slots=4, twin=twin)
