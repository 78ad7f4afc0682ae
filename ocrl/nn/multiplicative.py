"""What two vectors have in common, as products.

X Y sizes of the two, M of the result; R rows of a set, F features of one, W those of vectors.
"""

from __future__ import annotations

from torch import Tensor, nn


class MultiplicativeInteraction(nn.Module):
    """Products of linear features of one vector with those of another.

    "Is this what is asked for" is plain in products: a layer on both side by side has to build it
    out of thresholds. Jayakumar et al. (2020, ICLR, "Multiplicative interactions and where to find
    them"), equation 2, with a weight tensor of rank M.

    Args:
        first_dim: X.
        second_dim: Y.
        out_dim: M.
    """

    def __init__(self, first_dim: int, second_dim: int, *, out_dim: int) -> None:
        super().__init__()
        self.from_first = nn.Linear(first_dim, out_dim)
        self.from_second = nn.Linear(second_dim, out_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply (...,X) with (...,Y) to (...,M); the leading sizes are broadcast."""
        product: Tensor = self.from_first(first) * self.from_second(second)
        return product


class RowProducts(nn.Module):
    """Products of each row of a set with vectors that stand among its rows.

    Each vector is a row of its own, in columns of its own among the last W, where all other rows
    are zero. What is asked for, or carried, decides which rows matter.

    Args:
        row_dim: F.
        num_beside: W, the last columns, which hold vectors.
        out_dim: M.

    Raises:
        ValueError: unless there are columns of both kinds.
    """

    def __init__(self, row_dim: int, *, num_beside: int, out_dim: int) -> None:
        super().__init__()
        if not 0 < num_beside < row_dim:
            raise ValueError(
                f"expected vectors in 1 to {row_dim - 1} columns of {row_dim}, got {num_beside}"
            )
        self.num_beside = num_beside
        self.interaction = MultiplicativeInteraction(
            row_dim - num_beside, num_beside, out_dim=out_dim
        )

    def forward(self, rows: Tensor) -> Tensor:
        """The products (...,R,M) of rows (...,R,F)."""
        own, beside = rows[..., : -self.num_beside], rows[..., -self.num_beside :]
        # All rows but one are zero in a column of a vector, so that their sum is the vector.
        product: Tensor = self.interaction(own, beside.sum(-2, keepdim=True))
        return product
