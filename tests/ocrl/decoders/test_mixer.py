import pytest
import torch

from ocrl.decoders.mixer import SlotMixerDecoder


def make(**changes):
    arguments = dict(
        image_size=[16, 24],
        patch_size=4,
        query="position",
        query_dim=12,
        num_layers=1,
        num_heads=2,
        hidden_dims=[16],
        is_position_drawn=True,
    )
    torch.manual_seed(0)
    return SlotMixerDecoder(10, **(arguments | changes))


@pytest.mark.parametrize("query", ["position", "content", "both"])
def test_shapes_and_masks(query):
    decoder = make(query=query)
    output = decoder(torch.randn(2, 3, 5, 10), torch.rand(2, 3, 3, 16, 24))
    assert output.recon.shape == (2, 3, 3, 16, 24)
    assert output.masks.shape == (2, 3, 5, 4, 6)
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 3, 4, 6))


def test_what_is_drawn_comes_from_the_slots_alone():
    # With one slot the choice is forced: whatever the frame, the picture is the slot's.
    decoder = make(query="content", is_position_drawn=False, num_layers=0)
    slots = torch.randn(1, 1, 1, 10)
    left = decoder(slots, torch.rand(1, 1, 3, 16, 24)).recon
    right = decoder(slots, torch.rand(1, 1, 3, 16, 24)).recon
    torch.testing.assert_close(left, right)
    patches = left.unfold(3, 4, 4).unfold(4, 4, 4)
    torch.testing.assert_close(patches, patches[:, :, :, :1, :1].expand_as(patches))


def test_content_decides_where_a_slot_is_seen():
    decoder = make(query="content", is_position_drawn=False, num_layers=0)
    frame = torch.rand(1, 1, 3, 16, 24)
    frame[..., 4:8, 8:12] = frame[..., 12:16, 20:24]
    masks = decoder(torch.randn(1, 1, 5, 10), frame).masks
    torch.testing.assert_close(masks[..., 1, 2], masks[..., 3, 5])


def test_patches_are_put_back_where_they_were_cut():
    decoder = make(query="content", is_position_drawn=False, num_layers=0)
    decoder.draw = torch.nn.Linear(10, 48)
    torch.nn.init.zeros_(decoder.draw.weight)
    decoder.draw.bias.data = torch.arange(48.0)
    recon = decoder(torch.randn(1, 1, 2, 10), torch.rand(1, 1, 3, 16, 24)).recon
    expected = torch.arange(48.0).view(3, 4, 4).repeat(1, 4, 6)
    torch.testing.assert_close(recon[0, 0], expected)


def test_slots_may_come_in_any_order():
    decoder = make()
    slots = torch.randn(1, 2, 5, 10)
    order = torch.tensor([4, 2, 0, 3, 1])
    left, right = decoder(slots), decoder(slots[:, :, order])
    torch.testing.assert_close(left.recon, right.recon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left.masks[:, :, order], right.masks, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="content queries expected the frames"):
        make(query="content")(torch.randn(1, 1, 2, 10))
    with pytest.raises(ValueError, match="'position', 'content' or 'both', got 'colour'"):
        make(query="colour")
    with pytest.raises(ValueError, match="multiple of patch_size=5"):
        make(patch_size=5)
