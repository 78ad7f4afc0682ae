from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.checkpoint import build
from ocrl.encoders.vq_sa import VQSA

CONFIGS = Path(__file__).parents[3] / "configs"
SIZES = ["+image_size=[16,16]", "+num_slots=3", "+slot_dim=16"]


def make(*overrides: str, seed: int = 0) -> VQSA:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=["+encoder=vq_sa", *SIZES, *overrides])
    torch.manual_seed(seed)
    return build(config)["encoder"]


def clip(num_frames: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    video = torch.rand(2, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return video, torch.zeros(2, num_frames, dtype=torch.bool)


@pytest.mark.parametrize("quantizer", ["gumbel", "ema", "fsq"])
@pytest.mark.parametrize("coordinates", ["continuous", "grid", "none"])
def test_contract_of_the_variants(quantizer: str, coordinates: str) -> None:
    inner = "savi" if coordinates == "grid" else "slot_attention"
    overrides = [
        f"quantizer@encoder.quantizer={quantizer}",
        f"encoder.coordinates={coordinates}",
        f"encoder@encoder.encoder={inner}",
    ]
    check_slot_encoder(make(*overrides), twin=make(*overrides, seed=1))


@pytest.mark.parametrize("inner", ["psb", "smooth_sa", "slot_mixture_video"])
def test_any_encoder_can_be_wrapped(inner: str) -> None:
    overrides = [f"encoder@encoder.encoder={inner}", "quantizer@encoder.quantizer=fsq"]
    encoder = make(*overrides).eval()
    video, is_first = clip()
    output, continuous = encoder(video, is_first), encoder.encoder(video, is_first)
    assert output.codes is not None and output.codes.shape == (2, 3, 3, 4)
    torch.testing.assert_close(output.attn, continuous.attn)
    assert set(continuous.aux) <= set(output.aux)


@pytest.mark.parametrize("quantizer", ["gumbel", "ema", "fsq"])
@pytest.mark.parametrize("coordinates", ["continuous", "grid", "none"])
def test_slots_are_what_their_codes_say(quantizer: str, coordinates: str) -> None:
    encoder = make(
        f"quantizer@encoder.quantizer={quantizer}",
        f"encoder.coordinates={coordinates}",
        "encoder.coordinate_bins=5",
    ).eval()
    output = encoder(*clip())
    assert output.codes is not None
    is_grid = coordinates == "grid"
    assert encoder.code_sizes[4:] == ((5, 5) if is_grid else ())
    assert output.codes.shape == (2, 3, 3, len(encoder.code_sizes))
    assert (output.codes < torch.tensor(encoder.code_sizes)).all()
    places = output.aux.get("coordinates")
    assert (places is not None) == (coordinates == "continuous")
    torch.testing.assert_close(encoder.slots_of(output.codes, places), output.slots)
    # An edit of one code of one slot changes that slot only.
    edited = output.codes.clone()
    edited[0, 1, 2, 0] = (edited[0, 1, 2, 0] + 1) % encoder.code_sizes[0]
    changed = (encoder.slots_of(edited, places) - output.slots).abs().sum(-1) > 1e-6
    assert changed.nonzero().tolist() == [[0, 1, 2]]


def test_every_bin_of_the_grid_can_be_reached() -> None:
    encoder = make("encoder.coordinates=grid", "encoder.coordinate_bins=5").eval()
    assert encoder.grid is not None
    slots = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)) * 2
    codes = encoder.grid(slots, progress=encoder.progress).codes
    assert len(codes.unique(dim=0)) == 25


def test_evaluation_draws_nothing_and_training_follows_progress() -> None:
    encoder = make()
    video, is_first = clip()
    encoder.eval()
    expected = encoder(video, is_first).slots
    encoder.set_progress(1.0)
    torch.manual_seed(9)
    assert torch.equal(encoder(video, is_first).slots, expected)
    seen = []
    encoder.quantizer.register_forward_hook(
        lambda module, inputs, kwargs, output: seen.append(kwargs["progress"].item()),
        with_kwargs=True,
    )
    for progress in (0.0, 0.5):
        encoder.train().set_progress(progress)
        encoder(video, is_first)
    assert seen == [0.0, 0.5]


def test_costs_are_told_per_slot() -> None:
    video, is_first = clip()
    assert make()(video, is_first).aux["code_divergence"].shape == (2, 3, 3)
    ema = make("quantizer@encoder.quantizer=ema")
    assert ema(video, is_first).aux["code_commitment"].shape == (2, 3, 3)


def test_the_stream_of_the_wrapped_encoder_keeps_its_continuous_slots() -> None:
    encoder = make("encoder@encoder.encoder=savi").eval()
    video, is_first = clip()
    state = encoder.initial_state(2)
    _, state = encoder.step(video[:, 0], state, is_first[:, 0])
    torch.testing.assert_close(
        state["slots"], encoder.encoder(video[:, :1], is_first[:, :1]).slots[:, 0]
    )


def test_there_is_one_backbone() -> None:
    encoder = make("backbone@encoder.backbone=patches", "encoder.backbone.out_dim=24")
    assert encoder.backbone is encoder.encoder.backbone
    assert encoder.backbone.out_dim == 24 and type(encoder.backbone).__name__ == "Patches"
    names = [name for name, _ in encoder.named_parameters() if "backbone" in name]
    assert names and all(name.startswith("encoder.backbone.") for name in names)
    assert {name for name in encoder.state_dict() if "backbone" in name} >= set(names)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'grid' or 'none', got 'polar'"):
        make("encoder.coordinates=polar")
    encoder = make()
    codes = torch.zeros(1, 3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected continuous coordinates .* got none"):
        encoder.slots_of(codes)
    with pytest.raises(ValueError, match=r"expected no coordinates .* got shape \(1, 3, 2\)"):
        make("encoder.coordinates=none").slots_of(codes, torch.zeros(1, 3, 2))
    wide = CNN([8], kernel_size=3, strides=[2], out_dim=9, image_size=[16, 16], position="none")
    with pytest.raises(ValueError, match="out_dim 64 for the encoder, got 9"):
        VQSA(
            encoder.encoder,
            backbone=wide,
            quantizer=encoder.quantizer,
            coordinates="none",
            coordinate_dim=2,
            coordinate_bins=4,
        )
