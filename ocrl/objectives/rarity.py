"""How rare looks are in a picture.

... any leading axes, N tokens or pixels, P numbers of a look.
"""

from __future__ import annotations

from torch import Tensor

_EPS = 1e-12


def rarity(looks: Tensor) -> Tensor:
    """Squares (...,N) of how far looks (...,N,P) are from their mean, 1 in the mean over N.

    Zero where all are one, whatever their scale.
    """
    squares = (looks - looks.mean(-2, keepdim=True)).square().sum(-1)
    return squares / squares.mean(-1, keepdim=True).clamp_min(_EPS)
