import pytest
import torch

from ocrl.decoders.palette import PaletteDecoder


def make(**changes):
    torch.manual_seed(0)
    arguments = dict(image_size=[8, 12], patch_size=4, hidden_dims=[16])
    return PaletteDecoder(10, **(arguments | changes))


def test_hard_attention_lays_out_whole_textures():
    decoder = make()
    owner = torch.tensor([0, 1, 2, 2, 1, 0])
    attn = torch.nn.functional.one_hot(owner, 3).T[None, None].float()
    slots = torch.randn(1, 1, 3, 10)
    output, textures = decoder(slots, attn=attn), decoder.textures(slots)
    for patch in range(6):
        row, column = divmod(patch, 3)
        drawn = output.recon[0, 0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        torch.testing.assert_close(drawn, textures[0, 0, owner[patch]])
    assert output.masks.shape == (1, 1, 3, 2, 3)


def test_attention_mixes_textures_and_learns_from_the_error():
    decoder = make()
    attn = torch.full((1, 1, 2, 6), 0.5, requires_grad=True)
    slots = torch.randn(1, 1, 2, 10)
    output = decoder(slots, attn=attn)
    mean = decoder.textures(slots)[0, 0].mean(0)
    torch.testing.assert_close(output.recon[0, 0, :, :4, :4], mean)
    output.recon.square().mean().backward()
    assert attn.grad.abs().sum() > 0


def test_bad_grids_are_named():
    with pytest.raises(ValueError, match="over 6 tokens, got none"):
        make()(torch.randn(1, 1, 2, 10))
    with pytest.raises(
        ValueError, match=r"got 24 tokens: give the backbone strides .* is patch_size=4"
    ):
        make()(torch.randn(1, 1, 2, 10), attn=torch.ones(1, 1, 2, 24))
    with pytest.raises(ValueError, match="multiple of patch_size=5"):
        make(patch_size=5)
