import copy
import math

import pytest
import torch
from torch.nn import functional

from ocrl.interfaces import ScheduledModule
from ocrl.tokenizers.dvae import DVAE


def make(vocabulary_size=16, **changes):
    arguments = dict(
        image_size=[8, 12],
        channels=8,
        is_normalised=True,
        temperatures=[1.0, 0.1],
        anneal_until=0.2,
    )
    torch.manual_seed(0)
    return DVAE(vocabulary_size, **(arguments | changes))


FRAMES = torch.rand(3, 3, 8, 12)


def test_as_many_parameters_as_the_published_one():
    for vocabulary_size, expected in ((1024, 285_635), (4096, 681_923)):
        model = make(vocabulary_size, channels=64, image_size=[64, 64])
        assert sum(p.numel() for p in model.parameters()) == expected
    # STEVE's: the gains and offsets of 16 norms less, 16 biases more.
    assert sum(p.numel() for p in make(4096, channels=64, is_normalised=False).parameters()) == (
        681_923 - (14 * 64 + 2 * 256)
    )


@pytest.mark.parametrize("is_normalised", [True, False])
def test_eval_gives_the_likeliest_codes_and_draws_them(is_normalised):
    model = make(is_normalised=is_normalised).eval()
    tokens, recon = model(FRAMES)
    assert tokens.shape == (3, 6) and tokens.dtype == torch.int64 and model.grid == (2, 3)
    assert recon.shape == FRAMES.shape
    logits = model.logits(FRAMES)
    assert torch.equal(tokens, logits.argmax(1).flatten(1))
    one_hot = functional.one_hot(logits.argmax(1), 16).movedim(-1, 1).float()
    torch.testing.assert_close(recon, model.decoder(model.first(one_hot)))
    again, same = model(FRAMES)
    assert torch.equal(tokens, again) and torch.equal(recon, same)
    torch.testing.assert_close(model.decode(tokens), recon)


def test_a_token_sees_its_patch_only():
    model = make(is_normalised=False).eval()
    other = FRAMES.clone()
    other[:, :, 4:, 8:] = torch.rand(3, 3, 4, 4)
    changed = (model.logits(other) != model.logits(FRAMES)).any(1).any(0)
    assert changed.nonzero().tolist() == [[1, 2]]


def test_the_temperature_falls_along_a_cosine_and_stays():
    model = make()
    assert isinstance(model, ScheduledModule)
    for progress, expected in ((0.0, 1.0), (0.1, 0.55), (0.2, 0.1), (0.9, 0.1)):
        model.set_progress(progress)
        assert float(model.temperature()) == pytest.approx(expected)
    model.set_progress(0.05)
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert float(model.temperature()) == pytest.approx(expected)


def test_training_draws_relaxed_codes_for_the_picture_and_others_for_the_tokens():
    model = make().train()
    model.set_progress(0.1)
    seen = []
    model.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(1)
    tokens, _ = model(FRAMES)
    torch.manual_seed(1)
    logits = model.logits(FRAMES).double()
    hard, soft = (-(-torch.rand_like(logits, dtype=torch.float32).log()).log() for _ in "ab")
    assert torch.equal(tokens, (logits + hard.double()).argmax(1).flatten(1))
    relaxed = ((logits.log_softmax(1) + soft.double()) / 0.55).softmax(1)
    torch.testing.assert_close(seen[0].double(), relaxed, rtol=1e-4, atol=1e-5)
    assert not torch.equal(tokens, relaxed.argmax(1).flatten(1))


def test_tokens_are_drawn_as_often_as_likely():
    model = make(4).train()
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    model.logits = lambda frames: logits.view(1, 4, 1, 1).expand(1, 4, 100, 200)
    model.first = model.decoder = torch.nn.Identity()
    tokens, _ = model(FRAMES)
    share = tokens.flatten().bincount(minlength=4) / tokens.numel()
    torch.testing.assert_close(share, logits.exp(), rtol=0, atol=0.02)


def test_the_gradient_goes_through_the_picture_to_every_weight():
    model = make().train()
    tokens, recon = model(FRAMES)
    assert not tokens.is_floating_point()
    (recon - FRAMES).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_learns_to_tell_colours_apart():
    model = make(image_size=[8, 8], channels=16, is_normalised=False).train()
    palette = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    frames = palette[torch.randint(4, (16, 2, 2))].movedim(-1, 1)
    frames = frames.repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        model.set_progress(step / 150)
        loss = (model(frames)[1] - frames).square().sum() / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, recon = model.eval()(frames)
    # One colour for all is off by 0.5.
    assert len(tokens.unique()) > 1
    assert (recon - frames).abs().mean() < 0.4


def test_under_autocast_probabilities_stay_wide():
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, recon = model(FRAMES)
        assert model.logits(FRAMES).dtype == torch.float32
    assert recon.dtype == torch.float32 and recon.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert copy.deepcopy(model).eval()(FRAMES)[1].isfinite().all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"multiple of 4, got \[8, 10\]"):
        make(image_size=[8, 10])
    with pytest.raises(ValueError, match=r"two positive temperatures, got \[1.0, 0.0\]"):
        make(temperatures=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"anneal_until must be in \(0,1\], got 0"):
        make(anneal_until=0)
    with pytest.raises(ValueError, match=r"frames of \[8, 12\], got \[8, 8\]"):
        make()(torch.rand(1, 3, 8, 8))
