import math

import pytest
import torch

from ocrl.nn.location import (
    cell_centres,
    cut_around,
    feature_dim,
    follow,
    is_area_column,
    is_box_column,
    is_centre_column,
    join_placed,
    log_density,
    mask_geometry,
    moments,
    split_placed,
    spread_offsets,
    wins_a_cell,
)


def test_centres_of_the_cells():
    expected = torch.tensor([[0.25, 1 / 6], [0.25, 0.5], [0.25, 5 / 6], [0.75, 1 / 6]])
    torch.testing.assert_close(cell_centres((2, 3))[:4], expected)
    assert cell_centres((2, 3), device=torch.device("meta")).is_meta


def test_density_is_that_of_torch():
    places = torch.rand(2, 3, 2, dtype=torch.float64)
    log_scales = torch.randn(2, 3, 1, dtype=torch.float64)
    points = torch.rand(5, 2, dtype=torch.float64)
    normal = torch.distributions.Normal(places[:, :, None], log_scales[:, :, None].exp())
    expected = normal.log_prob(points).sum(-1)
    torch.testing.assert_close(log_density(places, log_scales, points), expected)


def test_density_of_a_fine_grid_sums_to_one():
    points = cell_centres((200, 200))
    places, log_scales = torch.tensor([[[0.5, 0.4]]]), torch.full((1, 1, 1), math.log(0.05))
    density = log_density(places, log_scales, points).exp()
    assert density.mean().item() == pytest.approx(1.0, abs=1e-4)


def test_moments_by_hand():
    coordinates = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    attn = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    mean, variance = moments(attn, coordinates)
    torch.testing.assert_close(mean, torch.tensor([[0.0, 0.5], [0.75, 0.0]]))
    # Variances 0 and 1/4, 3/16 and 0 along the two axes.
    torch.testing.assert_close(variance, torch.tensor([[0.125], [0.09375]]))


def test_moments_of_a_slot_that_sees_nothing_are_finite():
    attn = torch.zeros(1, 4, requires_grad=True)
    mean, variance = moments(attn, cell_centres((2, 2)))
    (mean.sum() + variance.sum()).backward()
    assert attn.grad is not None and torch.isfinite(attn.grad).all()


def test_a_slot_without_tokens_stays_and_widens():
    coordinates = cell_centres((4, 4))
    places, prior = torch.rand(1, 2, 2), torch.full((1, 2, 1), 0.3)
    attn = torch.zeros(1, 2, 16)
    attn[0, 1, 5] = 0.5
    moved, variances = follow(
        attn, coordinates, places=places, prior_scales=prior, num_prior_tokens=0.5
    )
    torch.testing.assert_close(moved[0, 0], places[0, 0])
    torch.testing.assert_close(variances[0, 0], torch.tensor([0.09]))
    # Half a token against a prior of half a token: half way.
    torch.testing.assert_close(moved[0, 1], (places[0, 1] + coordinates[5]) / 2)
    torch.testing.assert_close(variances[0, 1], torch.tensor([0.045]))


@pytest.mark.parametrize("num_places", [1, 6, 40])
def test_places_are_in_the_picture_and_apart(num_places):
    places = 0.5 + spread_offsets(num_places, radius=0.42)
    assert places.shape == (num_places, 2)
    assert ((places > 0) & (places < 1)).all()
    if num_places > 1:
        assert torch.pdist(places).min() > 0.4 / math.sqrt(num_places)


def test_geometry_of_masks_by_hand():
    """A picture of 2 x 4 cells: slot 0 owns three, slot 1 five, slot 2 has a bit everywhere."""
    left = torch.tensor([[0.9, 0.9, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]])
    masks = torch.stack([left, 0.9 - left, torch.full((2, 4), 0.1)])
    expected = torch.tensor(
        [
            [5 / 24, 5 / 12, 0.9 * 3 / 8, 0.0, 0.0, 0.5, 1.0],
            [27 / 40, 0.55, 0.9 * 5 / 8, 0.25, 0.0, 1.0, 1.0],
            [0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5],
        ]
    )
    torch.testing.assert_close(mask_geometry(masks), expected)
    batch = mask_geometry(torch.stack([masks, masks.flip(-1)]))
    torch.testing.assert_close(batch[0], expected)
    torch.testing.assert_close(batch[1, :2, 3], torch.tensor([0.5, 0.0]))


def test_columns_of_each_view_are_centres_areas_or_sides():
    columns = torch.stack([is_centre_column(14), is_area_column(14), is_box_column(14)])
    assert torch.equal(columns.sum(0), torch.ones(14, dtype=torch.int64))
    assert columns[0].nonzero().flatten().tolist() == [0, 1, 7, 8]
    assert columns[1].nonzero().flatten().tolist() == [2, 9]


def test_a_slot_wins_a_cell_where_none_has_more():
    torch.manual_seed(0)
    masks = torch.rand(2, 3, 6, 4, 4).softmax(dim=2)
    masks[:, :, 5] /= 4
    won = (masks.argmax(dim=2, keepdim=True) == torch.arange(6)[:, None, None]).flatten(-2).any(-1)
    assert not won[:, :, 5].any() and won[:, :, :5].any() and not won[:, :, :5].all()
    geometry = mask_geometry(masks)
    assert torch.equal(wins_a_cell(geometry), won)
    # Of several views, side by side, one is enough.
    views = geometry.movedim(1, -2).flatten(-2)
    assert torch.equal(wins_a_cell(views), won.any(dim=1))


def test_squares_around_a_place_are_bilinear_and_zero_outside() -> None:
    frames = torch.arange(24, dtype=torch.float64).view(1, 4, 3, 2).permute(0, 3, 1, 2)
    places = torch.tensor([[[1.5 / 4, 1.5 / 3], [2 / 4, 0.5 / 3]]], dtype=torch.float64)
    read = cut_around(frames, places, torch.tensor([-1.0, 0.0, 1.0]))
    assert read.shape == (1, 2, 2, 3, 3)
    torch.testing.assert_close(read[0, 0], frames[0, :, :3])
    # Between the second and the third row, and half of it left of the picture.
    expected = torch.tensor([0.0, 9.0, 11.0], dtype=torch.float64)
    # Of cells of two pixels, every half cell.
    halves = cut_around(frames, places[:, :1], torch.tensor([-1.0, 0.0, 1.0]), cell=(2, 2))
    middle = (frames[0, 0, 1, 1], frames[0, 0, 1, 1] + 1.0)
    torch.testing.assert_close(halves[0, 0, 0, 1, 1:], torch.stack(middle))
    torch.testing.assert_close(read[0, 1, 0, 1], expected)


@pytest.mark.parametrize("num_axes", [2, 3])
def test_placed_slots_come_apart_and_together(num_axes: int) -> None:
    slots = torch.rand(2, 3, 4, 6 + num_axes)
    features, places, is_placed = split_placed(slots, num_axes=num_axes)
    assert features.shape[-1] == 5 and places.shape[-1] == num_axes and is_placed.shape[-1] == 1
    assert torch.equal(join_placed(features, places, is_placed), slots)
    assert feature_dim(6 + num_axes, num_axes=num_axes) == 5
    smallest = slots[..., : num_axes + 1]
    with pytest.raises(ValueError, match=f"expected slot_dim above {num_axes + 1}, .* got"):
        split_placed(smallest, num_axes=num_axes)
