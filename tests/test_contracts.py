"""Every encoder and decoder that a configuration names keeps its contract."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.check import check_decoder, check_slot_encoder
from ocrl.checkpoint import build

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES = ["+image_size=[32,32]", "+num_slots=4", "+slot_dim=64"]


def _names(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert names, f"no configuration in {group}"
    return names


def _build_twins(group: str, name: str, vit: str) -> list[torch.nn.Module]:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+{group}={name}", f"+vit={vit}", *SIZES])
    twins = []
    for seed in range(2):
        torch.manual_seed(seed)
        twins.append(build(config)[group])
    return twins


@pytest.mark.parametrize("name", _names("encoder"))
def test_encoder(name: str, small_vit: str) -> None:
    encoder, twin = _build_twins("encoder", name, small_vit)
    check_slot_encoder(encoder, twin=twin)


@pytest.mark.parametrize("name", _names("decoder"))
def test_decoder(name: str, small_vit: str) -> None:
    decoder, twin = _build_twins("decoder", name, small_vit)
    target = torch.rand(3, 5, 3, 32, 32)
    # Decoders that draw where the encoder saw a slot do so on their own grid.
    tokens = math.prod(decoder.grid)
    check_decoder(decoder, num_slots=4, slot_dim=64, twin=twin, target=target, num_tokens=tokens)
