"""Products of rows with the vectors that stand among them."""

import pytest
import torch

from ocrl.nn.multiplicative import RowProducts


def test_each_row_is_multiplied_with_the_sum_of_all_vectors():
    products = RowProducts(5, num_beside=3, out_dim=1)
    for layer in (products.interaction.from_first, products.interaction.from_second):
        torch.nn.init.zeros_(layer.bias)
    products.interaction.from_first.weight.data = torch.tensor([[1.0, 10.0]])
    products.interaction.from_second.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    rows = torch.tensor(
        [[1.0, 2, 0, 0, 0], [0.0, 3, 0, 0, 0], [0.0, 0, 4, 5, 0], [0.0, 0, 0, 0, 6]]
    )
    # Vectors (4,5) and (6): 4 + 10 + 18 = 32 times 21, 30, 0 and 0.
    expected = torch.tensor([[672.0], [960.0], [0.0], [0.0]])
    torch.testing.assert_close(products(rows), expected)
    several = torch.stack([rows, rows.flip(0)])
    torch.testing.assert_close(products(several), torch.stack([expected, expected.flip(0)]))


@pytest.mark.parametrize("num_beside", [0, 5, 6])
def test_there_are_columns_of_rows_and_of_vectors(num_beside):
    with pytest.raises(ValueError, match=f"1 to 4 columns of 5, got {num_beside}"):
        RowProducts(5, num_beside=num_beside, out_dim=2)
