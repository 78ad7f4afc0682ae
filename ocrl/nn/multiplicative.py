"""What two vectors have in common, as products.

X Y sizes of the two, M of the result.
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
