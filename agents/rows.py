"""What is observed as the one set that a world model foretells and that a policy reads.

B batch, K slots or objects, R rows of the set, F features of a row, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.spaces import Dict, Space
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ocrl.agents import spaces
from ocrl.agents.features import OBJECTS, Scale
from ocrl.agents.interface import Observation
from ocrl.matching import hungarian, slot_distances
from ocrl.nn.location import is_area_column, is_box_column, is_centre_column

_PRESENT = 0.5
"""A row is there where its first feature is above, in tables of objects."""


class ObservedRows(nn.Module):
    """A set and the vectors beside it as rows (R,F), scaled once and for all.

    A row of the set keeps its features; each vector is one more row, in columns of its own, where
    all others are zero: the world model foretells an inventory beside the slots. Features of the
    set are shifted and scaled, each by itself, to what `measure` found, so that an error of one is
    worth as much as that of any other. Rows that hold no object are zero.

    Where slots come with the geometry of their masks, its boxes may be left out: two slots that
    share a cell about evenly win it in turns, with which a box jumps over the picture though
    nothing moves, and a world model can foretell no such thing.

    Args:
        space: of the observation in one environment: a set (K,F), or a flat `Dict` of one set and
            vectors (W,). A frame in it is left out.
        plain_key: name of the only part of an observation that is no `Dict`.
        num_boxed: how many of the last features of a slot are columns of `mask_geometry`, whose
            boxes are left out and whose centres are places; 0 to read all features.
        places: features of a row of the set that are x or y of where it is, besides these.

    Attributes:
        space: of what is read, as it comes without frames.
        name: of the set.
        vectors: W of each, by name.
        has_presence: whether the first feature of a row says that it holds something.
        places: the features of a row, among those that are read, that are x or y of where it is.

    Raises:
        ValueError: if there is not exactly one set, a part is of another kind, or a place is no
            feature.
    """

    columns: Tensor

    def __init__(
        self,
        space: Space[Any],
        *,
        plain_key: str,
        num_boxed: int = 0,
        places: Sequence[int] = (),
    ) -> None:
        super().__init__()
        parts = spaces.parts(space, plain_key=plain_key)
        kinds = {name: spaces.kind(name, part) for name, part in parts.items()}
        sets = [name for name, kind in kinds.items() if kind == spaces.SET]
        if len(sets) != 1:
            raise ValueError(
                f"expected an observation with one set (K,F) for a world model, got {space}; give "
                "obs=slots or obs=objects"
            )
        self.name, self.plain_key = sets[0], plain_key
        read = {name: parts[name] for name, kind in kinds.items() if kind != spaces.FRAME}
        self.space: Space[Any] = Dict(dict(read)) if len(read) > 1 else read[self.name]
        self.vectors = {
            name: parts[name].shape[0] for name, kind in kinds.items() if kind == spaces.VECTOR
        }
        self.num_slots, self.num_columns = parts[self.name].shape
        is_read, is_place, is_area = torch.zeros(3, self.num_columns, dtype=torch.bool)
        if not all(0 <= place < self.num_columns for place in places):
            raise ValueError(
                f"expected places among the {self.num_columns} features of {self.name}, got "
                f"{list(places)}"
            )
        is_read[:] = True
        is_place[list(places)] = True
        if num_boxed:
            is_read[-num_boxed:] = ~is_box_column(num_boxed)
            is_place[-num_boxed:] = is_centre_column(num_boxed)
            is_area[-num_boxed:] = is_area_column(num_boxed)
        self.register_buffer("columns", is_read.nonzero().squeeze(-1), persistent=False)
        self.set_dim = len(self.columns)
        self.places: list[int] = is_place[is_read].nonzero().squeeze(-1).tolist()
        self._areas: list[int] = is_area[is_read].nonzero().squeeze(-1).tolist()
        self.has_presence = self.name == OBJECTS
        self.scale = Scale(self.set_dim)

    @property
    def num_rows(self) -> int:
        """R."""
        return self.num_slots + len(self.vectors)

    @property
    def row_dim(self) -> int:
        """F."""
        return self.set_dim + sum(self.vectors.values())

    def parts(self, observation: Observation) -> dict[str, NDArray[Any]]:
        """The parts that are read, by name."""
        if not isinstance(observation, Mapping):
            return {self.plain_key: observation}
        return {name: observation[name] for name in (self.name, *self.vectors)}

    def forward(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The rows (...,R,F) of a set (...,K,F) and vectors (...,W)."""
        slots = self._read(parts[self.name])
        rows = self.scale(slots)
        if self.has_presence:
            is_there = slots[..., :1] > _PRESENT
            presence, rest = slots[..., :1], rows[..., 1:]
            rows = torch.cat([presence, rest], dim=-1).masked_fill(~is_there, 0.0)
        if not self.vectors:
            return rows
        rows = functional.pad(rows, (0, self.row_dim - self.set_dim))
        return torch.cat([rows, *self._vector_rows(parts)], dim=-2)

    def _read(self, slots: Tensor) -> Tensor:
        """The features (...,K,F) that are read of a set."""
        return slots if self.set_dim == self.num_columns else slots[..., self.columns]

    def _vector_rows(self, parts: Mapping[str, Tensor]) -> Iterable[Tensor]:
        start = self.set_dim
        for name, size in self.vectors.items():
            row = functional.pad(parts[name], (start, self.row_dim - start - size))
            if self.has_presence:
                row = torch.cat([torch.ones_like(row[..., :1]), row[..., 1:]], dim=-1)
            start += size
            yield row[..., None, :]

    def area(self, rows: Tensor) -> Tensor | None:
        """The share (...,R) of the picture that rows (...,R,F) hold; None where it is not known.

        The largest over the views; rows of vectors count as all of it.
        """
        if not self._areas:
            return None
        factor, shift = self.scale.factor[self._areas], self.scale.shift[self._areas]
        largest = (rows[..., self._areas] / factor + shift).amax(-1).clamp(min=0)
        is_vector = torch.arange(self.num_rows, device=rows.device) >= self.num_slots
        return largest.masked_fill(is_vector, 1.0)

    def is_present(self, rows: Tensor) -> Tensor | None:
        """Which rows (...,R) hold something; None where all do."""
        return rows[..., 0] > _PRESENT if self.has_presence else None

    def measure(self, sets: Iterable[NDArray[Any]]) -> None:
        """Fit the scale to sets (L,K,F) that were played; rows without an object do not count."""
        values = torch.from_numpy(np.concatenate([rearrange(s, "l k f -> (l k) f") for s in sets]))
        if self.has_presence:
            values = values[values[:, 0] > _PRESENT]
        self.scale.measure(self._read(values.to(self.scale.shift)))


def in_order_of(before: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """Sets (n,K,F) whose rows stand where the nearest ones of sets before (n,K,F) stood.

    For sets that come in no order, as those of encoders without memory and shuffled objects.
    """
    distance = slot_distances(torch.from_numpy(before).double(), torch.from_numpy(rows).double())
    order = hungarian(distance).numpy()
    return np.take_along_axis(rows, order[..., None], axis=1)
