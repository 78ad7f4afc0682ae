import pytest
import torch

from ocrl.backbones.patches import Patches


def make(**changes):
    torch.manual_seed(0)
    arguments = dict(hidden_dims=[12], out_dim=6, image_size=[8, 12], position="none")
    return Patches(4, **(arguments | changes))


def test_equal_patches_give_equal_tokens_wherever_they_stand():
    frames = torch.rand(2, 3, 8, 12)
    frames[0, :, 4:, 8:] = frames[0, :, :4, :4]
    tokens = make()(frames)
    assert tokens.shape == (2, 6, 6)
    torch.testing.assert_close(tokens[0, 5], tokens[0, 0])
    placed = make(position="linear")(frames)
    assert (placed[0, 5] - placed[0, 0]).abs().max() > 1e-3


def test_a_token_depends_on_its_own_patch_only():
    frames = torch.rand(1, 3, 8, 12, requires_grad=True)
    make()(frames)[0, 1].sum().backward()
    touched = frames.grad.abs().sum((0, 1)) > 0
    assert touched[:4, 4:8].all()
    assert touched.sum() == 16


def test_views_stand_one_after_the_other():
    views = torch.rand(2, 3, 3, 8, 12)
    backbone = make()
    tokens = backbone(views)
    assert tokens.shape == (2, 18, 6)
    torch.testing.assert_close(tokens[:, 6:12], backbone(views[:, 1]))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"multiple of patch_size=4, got \[10, 12\]"):
        make(image_size=[10, 12])
    with pytest.raises(ValueError, match="'linear' or 'none', got 'learned'"):
        make(position="learned")
