import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.encoders.slot_mlp import SlotMLP


def make():
    backbone = CNN([8], kernel_size=3, strides=[4], out_dim=5, image_size=[8, 8], position="linear")
    return SlotMLP(backbone, num_slots=3, slot_dim=6, hidden_dims=[7])


def test_slots_are_parts_of_one_output_over_all_tokens():
    encoder, frames = make(), torch.rand(2, 3, 8, 8)
    output = encoder.encode(frames, condition=None)
    tokens = encoder.backbone(frames).flatten(1)
    first, _, last = encoder.to_slots.layers
    expected = last(first(tokens).relu()).view(2, 1, 3, 6)
    torch.testing.assert_close(output.slots, expected)
    assert (output.attn == 1 / 3).all() and output.attn.shape == (2, 1, 3, 4)


def test_several_cameras_are_refused():
    with pytest.raises(ValueError, match="one camera"):
        make().encode(torch.rand(2, 2, 3, 8, 8), condition=None)
