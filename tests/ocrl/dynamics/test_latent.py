"""Latents around a dynamics: what it imagines, and codes of real encoders."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ocrl.checkpoint import build
from ocrl.interfaces import CodeReader

CONFIGS = Path(__file__).parents[3] / "configs"
B, T, K = 2, 4, 3


def make(name, *options, code_sizes="[8,8,8,8]"):
    sizes = ["+image_size=[32,32]", "+num_slots=3", "+slot_dim=32", "+num_actions=3"]
    sizes += ["+action_dim=0", f"+code_sizes={code_sizes}"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=[f"+{name}", *sizes, *options])
    torch.manual_seed(0)
    return build(config)[name.split("=")[0]]


def clip():
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(B, T, K, 32, generator=generator)
    action = torch.randint(3, (B, T), generator=generator)
    return slots, action, torch.zeros(B, T, dtype=torch.bool)


def test_what_is_imagined_goes_on_from_latents_not_from_slots_encoded_again():
    dynamics = make("dynamics=transformer_categorical").eval()
    slots, action, _ = clip()
    state = dynamics.initial_state(B)
    imagined = dynamics.imagine(slots[:, 0], state, action, T)
    goes_on = torch.zeros(B, 1, dtype=torch.bool)
    carried = dynamics.latent.encode(slots[:, :1])
    for t in range(T):
        said, state = dynamics.dynamics.advance(carried, action[:, t : t + 1], state, goes_on)
        carried, logits = dynamics.latent.predict(said.slots)
        torch.testing.assert_close(imagined.prediction.logits[:, t], logits[:, 0])
        torch.testing.assert_close(imagined.slots[:, t], dynamics.latent.decode(carried)[:, 0])


def test_futures_differ_in_training_and_are_one_in_evaluation():
    dynamics = make("dynamics=transformer_categorical")
    slots, action, _ = clip()

    def future():
        return dynamics.imagine(slots[:, 0], dynamics.initial_state(B), action, T).slots

    assert not torch.equal(future(), future())
    dynamics.eval()
    assert torch.equal(future(), future())


ENCODERS = {
    "vq_sa": ("encoder=vq_sa", "encoder.coordinates=none", "[8,8,8,8]"),
    "vq_sa with a grid": ("encoder=vq_sa", "encoder.coordinates=grid", "[8,8,8,8,16,16]"),
    "svq": ("encoder=svq", "encoder.memory.quantizer.sizes=[5,6]", "[5,6]"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_codes_of_an_encoder_are_those_read_from_its_slots(name):
    *options, code_sizes = ENCODERS[name]
    encoder = make(*options).eval()
    dynamics = make("dynamics=transformer_codes", code_sizes=code_sizes).eval()
    assert isinstance(dynamics, CodeReader)
    dynamics.take_codes(encoder)
    video = torch.rand(B, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoded = encoder(video, torch.zeros(B, 2, dtype=torch.bool))
        assert torch.equal(dynamics.latent.codes_of(encoded.slots), encoded.codes)
        again = dynamics.latent.decode(dynamics.carry(encoded.slots))
    torch.testing.assert_close(again, encoded.slots, rtol=1e-4, atol=1e-4)


def test_encoders_that_do_not_fit_are_refused():
    dynamics = make("dynamics=transformer_codes")
    with pytest.raises(ValueError, match=r"sizes \[8, 8, 8, 8\], got \[5, 6\]"):
        dynamics.take_codes(make(*ENCODERS["svq"][:2]))
    with pytest.raises(ValueError, match="codes alone: expected continuous coordinates"):
        dynamics.take_codes(make("encoder=vq_sa"))
    crowded = make(*ENCODERS["vq_sa"][:2], "encoder.quantizer.sizes=[30,30]")
    dynamics = make("dynamics=transformer_codes", code_sizes="[30,30]")
    dynamics.take_codes(crowded)
    crowded.to_slots = torch.nn.Linear(32, 32)
    with torch.no_grad():
        crowded.to_slots.weight[:, 16:] = crowded.to_slots.weight[:, :16]
    with pytest.raises(ValueError, match="of random codes can be read back"):
        dynamics.take_codes(crowded)
    categorical = make("dynamics=transformer_categorical")
    before = categorical.state_dict()
    categorical.take_codes(crowded)
    assert all(torch.equal(value, before[key]) for key, value in categorical.state_dict().items())


def test_a_dynamics_of_another_size_than_its_latent_is_refused():
    with pytest.raises(ValueError, match="dynamics of slot_dim 128, the size of its latent, got 9"):
        make("dynamics=transformer_categorical", "dynamics.dynamics.slot_dim=9")
