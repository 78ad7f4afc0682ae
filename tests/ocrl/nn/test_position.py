import pytest
import torch

from ocrl.nn.position import (
    LearnedPosition,
    LinearPosition,
    grid_coordinates,
    grid_like,
)


def test_coordinates_by_hand() -> None:
    assert grid_coordinates((2, 3), coordinates="two").tolist() == [
        [-1, -1],
        [-1, 0],
        [-1, 1],
        [1, -1],
        [1, 0],
        [1, 1],
    ]
    four = grid_coordinates((2, 3), coordinates="four")
    assert four[1].tolist() == [0, 0.5, 1, 0.5]
    assert four[5].tolist() == [1, 1, 0, 0]
    assert grid_coordinates((2, 3), coordinates="four", device=torch.device("meta")).is_meta


def test_unknown_coordinates() -> None:
    with pytest.raises(ValueError, match="got 'six'"):
        grid_coordinates((2, 2), coordinates="six")  # type: ignore[arg-type]


@pytest.mark.parametrize("coordinates", ["two", "four"])
def test_linear_position_is_affine_in_the_place(coordinates: str) -> None:
    position = LinearPosition((3, 5), dim=4, coordinates=coordinates)  # type: ignore[arg-type]
    table = position.embedding().unflatten(0, (3, 5))
    torch.testing.assert_close(table[0] + table[2], 2 * table[1])
    torch.testing.assert_close(table[:, 1] - table[:, 0], table[:, 4] - table[:, 3])
    tokens = torch.randn(2, 15, 4)
    torch.testing.assert_close(position(tokens), tokens + position.embedding())
    assert "coordinates" not in position.state_dict()


def test_learned_position() -> None:
    position = LearnedPosition((3, 2), dim=4, init_std=0.5)
    tokens = torch.randn(2, 6, 4)
    torch.testing.assert_close(position(tokens), tokens + position.table)
    assert position.embedding() is position.table
    assert LearnedPosition((30, 30), dim=30).table.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_grid_of_tokens_has_the_proportions_of_the_map() -> None:
    assert grid_like(256, shape=(64, 64), what="a frame") == (16, 16)
    assert grid_like(24, shape=(16, 24), what="a frame") == (4, 6)
    assert grid_like(1, shape=(8, 8), what="masks") == (1, 1)
    for num_tokens in (0, 2, 15, 25):
        with pytest.raises(ValueError, match=f"masks of 16 x 24, got {num_tokens} tokens"):
            grid_like(num_tokens, shape=(16, 24), what="masks")
