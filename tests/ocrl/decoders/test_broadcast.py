import pytest
import torch

from ocrl.decoders.broadcast import SpatialBroadcastDecoder


def make(**changes):
    arguments = dict(
        image_size=[16, 24], channels=[8, 6], strides=[2, 2], kernel_size=5, patch_size=1
    )
    torch.manual_seed(0)
    return SpatialBroadcastDecoder(10, **(arguments | changes))


def plain_forward(decoder, slots):
    """The textbook form: broadcast, add positions, run every layer on every slot."""
    height, width = decoder.grid
    hidden = decoder.norm(slots).flatten(0, 2)[:, :, None, None].expand(-1, -1, height, width)
    position = decoder.position.embedding().T.reshape(1, -1, height, width)
    hidden = hidden + position
    for layer in decoder.layers:
        hidden = layer(hidden).relu()
    painted = decoder.output(hidden).unflatten(0, slots.shape[:3])
    masks = painted[:, :, :, 3].softmax(2)
    return (masks[:, :, :, None] * painted[:, :, :, :3]).sum(2), masks


@pytest.mark.parametrize("num_slots", [1, 7])
@pytest.mark.parametrize("strides", [[2, 2], [1, 2], [4, 1], [3, 1], [1, 1]])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_factored_first_layer_equals_the_plain_form(num_slots, strides, kernel_size):
    # 2 * 2 * 1 slots may cost less than the factored form, 2 * 2 * 7 never do.
    image_size = [24, 36] if strides[0] == 3 else [16, 24]
    decoder = make(strides=strides, kernel_size=kernel_size, image_size=image_size).double()
    slots = torch.randn(2, 2, num_slots, 10, dtype=torch.float64)
    output = decoder(slots)
    recon, masks = plain_forward(decoder, slots)
    # masks and the mixture are computed in float32 on purpose
    torch.testing.assert_close(output.recon, recon.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.masks, masks.float(), rtol=1e-5, atol=1e-6)


def test_factored_first_layer_has_the_gradient_of_the_plain_form():
    decoder = make().double()
    slots = torch.randn(2, 2, 7, 10, dtype=torch.float64, requires_grad=True)
    decoder(slots).recon.sum().backward()
    factored = [slots.grad, *(p.grad for p in decoder.parameters())]
    factored = [gradient.clone() for gradient in factored]
    decoder.zero_grad()
    slots.grad = None
    plain_forward(decoder, slots)[0].sum().backward()
    plain = [slots.grad, *(p.grad for p in decoder.parameters())]
    for left, right in zip(factored, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_shapes_and_masks():
    output = make()(torch.randn(2, 3, 4, 10))
    assert output.recon.shape == (2, 3, 3, 16, 24)
    assert output.masks.shape == (2, 3, 4, 16, 24)
    assert output.parts.shape == (2, 3, 4, 3, 16, 24)
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 3, 16, 24))


def test_slots_may_come_in_any_order():
    decoder = make()
    slots = torch.randn(1, 2, 4, 10)
    order = torch.tensor([2, 0, 3, 1])
    left, right = decoder(slots), decoder(slots[:, :, order])
    torch.testing.assert_close(left.recon, right.recon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left.masks[:, :, order], right.masks, rtol=1e-4, atol=1e-5)


def test_masks_stay_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = make()(torch.randn(1, 1, 3, 10))
    assert output.masks.dtype == output.recon.dtype == torch.float32


def test_strides_must_fit_the_image():
    with pytest.raises(ValueError, match=r"multiple of strides times patch_size 4, got \[18, 24\]"):
        make(image_size=[18, 24])
    with pytest.raises(ValueError, match="one stride per channel"):
        make(strides=[2])


def test_cells_of_a_coarse_grid_paint_patches():
    decoder = make(strides=[2, 1], patch_size=2)
    assert decoder.grid == (4, 6)
    output = decoder(torch.randn(1, 1, 3, 10))
    assert output.recon.shape == (1, 1, 3, 16, 24)
    torch.testing.assert_close(output.masks.sum(2), torch.ones(1, 1, 16, 24))
