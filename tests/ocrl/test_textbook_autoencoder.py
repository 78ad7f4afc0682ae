import runpy
from pathlib import Path

import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.decoders.broadcast import SpatialBroadcastDecoder
from ocrl.encoders.slot_attention import SlotAttention
from ocrl.initializers import GaussianInitializer
from ocrl.model import SlotModel
from ocrl.objectives.reconstruction import Reconstruction
from ocrl.types import Clip

TEXTBOOK = runpy.run_path(str(Path(__file__).with_name("textbook_autoencoder.py")))["reconstruct"]


def make_model() -> SlotModel:
    torch.manual_seed(0)
    size = [12, 16]
    encoder = SlotAttention(
        CNN([8] * 4, kernel_size=5, strides=[1] * 4, out_dim=8, image_size=size, position="linear"),
        initializer=GaussianInitializer(5, slot_dim=8, is_learned=True),
        num_slots=5,
        slot_dim=8,
        num_iterations=3,
        mlp_dim=16,
        gradient="full",
        eps_placement="attn",
    )
    decoder = SpatialBroadcastDecoder(
        8, image_size=size, channels=[6] * 3, strides=[1] * 3, kernel_size=5, patch_size=1
    )
    return SlotModel(
        encoder,
        decoder=decoder,
        objectives={"reconstruction": Reconstruction(None)},
        weights={"reconstruction": 1.0},
        is_conditioned=False,
    ).double()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_model_for_small_images_equals_the_textbook_form_with_gradients(batch_size):
    model = make_model()
    images = torch.rand(batch_size, 3, 12, 16, dtype=torch.float64)
    video, is_first = images[:, None], torch.ones(batch_size, 1, dtype=torch.bool)
    torch.manual_seed(1)
    encoded = model.encoder(video, is_first)
    decoded = model.decoder(encoded.slots)
    torch.manual_seed(1)
    queries = model.encoder.initializer(images.new_zeros(batch_size, 1, 1))
    recon, masks = TEXTBOOK(model, images, queries)
    # The decoder mixes in float32.
    torch.testing.assert_close(decoded.recon[:, 0].double(), recon, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decoded.masks[:, 0].double(), masks, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    total = model(Clip(video, is_first)).total
    ours = torch.autograd.grad(total, list(model.parameters()))
    theirs = torch.autograd.grad((recon - images).square().mean(), list(model.parameters()))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7)
