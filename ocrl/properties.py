"""Which properties of objects are predicted: one description for targets, heads, losses and AP.

... any leading axes, C classes of a factor, P coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

PRESENCE, COORDINATES, FACTORS = "presence", "coordinates", "factors/"
"""Names of the parts of a set, in `Clip.properties` and in a decoder's `aux`."""


class PropertySpec(nn.Module):
    """The categorical factors of an object, its coordinates, and whether it is there.

    A target has `presence` (...,) bool, `factors/<name>` (...,) int64, the place in the factor's
    classes, and `coordinates` (...,P), where [low, high] has become [0,1]; what is absent is zero.
    A prediction has logits of presence (...,), logits `factors/<name>` (...,C) and coordinates
    (...,P) in [0,1]. It is a module without parameters so that a configuration may name it and a
    checkpoint keep it.

    Args:
        factors: name of a factor to its classes. Words are classes that the data names; an object
            of a class left out is left out of the set. Numbers are values that the data holds, and
            must be all of them.
        coordinates: names of the columns that are coordinates, one after the other: `position`, or
            attributes such as `x`, `y` and `z`.
        low: what becomes 0, for each coordinate, in the data's unit.
        high: what becomes 1.
        scale: the range from low to high in the unit that distances are given in, for AP.

    Raises:
        ValueError: if a factor has fewer than two classes or one twice, or a range is none.
    """

    def __init__(
        self,
        factors: Mapping[str, Sequence[str | float]],
        *,
        coordinates: Sequence[str],
        low: Sequence[float],
        high: Sequence[float],
        scale: float,
    ) -> None:
        super().__init__()
        for name, classes in factors.items():
            if len(classes) < 2 or len(set(classes)) < len(classes):
                raise ValueError(
                    f"expected at least two different classes of factor {name!r}, "
                    f"got {list(classes)}"
                )
        if len(low) != len(high) or any(a >= b for a, b in zip(low, high, strict=False)):
            raise ValueError(
                f"expected low below high for each coordinate, got {list(low)} and {list(high)}"
            )
        if not scale > 0:
            raise ValueError(f"expected a scale above 0, got {scale}")
        self.factors = {name: tuple(classes) for name, classes in factors.items()}
        self.coordinates = tuple(coordinates)
        self.low, self.high, self.scale = tuple(low), tuple(high), float(scale)

    @property
    def num_coordinates(self) -> int:
        """P."""
        return len(self.low)

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each part of a prediction has, in the order of `split`."""
        factors = {FACTORS + name: len(classes) for name, classes in self.factors.items()}
        return {COORDINATES: self.num_coordinates, **factors, PRESENCE: 1}

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Parts (...,size) of outputs (...,sum of `sizes`), by name."""
        sizes = self.sizes
        return dict(zip(sizes, outputs.split(list(sizes.values()), dim=-1), strict=True))
