import pytest
import torch

from ocrl.decoders.mlp import MLPDecoder


def make(**changes):
    arguments = dict(image_size=[16, 24], patch_size=4, out_dim=5, hidden_dims=[12, 8])
    torch.manual_seed(0)
    return MLPDecoder(10, **(arguments | changes))


def test_split_first_layer_equals_slot_plus_position():
    decoder = make()
    slots = torch.randn(2, 3, 4, 10)
    summed = decoder.norm(slots)[:, :, :, None] + decoder.position.embedding()
    features, alpha = decoder.rest(decoder.first(summed).relu()).split([5, 1], dim=-1)
    masks = alpha.softmax(2)
    output = decoder(slots)
    torch.testing.assert_close(output.recon, (masks * features).sum(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.masks.flatten(3), masks.squeeze(-1), rtol=1e-4, atol=1e-5)
    assert output.masks.shape == (2, 3, 4, 4, 6)
    assert output.parts.shape == (2, 3, 4, 24, 5)


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="multiple of patch_size=5"):
        make(patch_size=5)
    with pytest.raises(ValueError, match="at least one layer"):
        make(hidden_dims=[])
