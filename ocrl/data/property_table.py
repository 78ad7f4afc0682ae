"""Tables of objects in a store, turned into the targets that a `PropertySpec` asks for.

B batch, T frames, M objects in view, P coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ocrl.data.store import EpisodeStore
from ocrl.properties import COORDINATES, FACTORS, PRESENCE, PropertySpec

_FOLDER = "objects/"
_ATTRIBUTES = f"{_FOLDER}attributes"
_TOLERANCE = 1e-3
_FRAMES_AT_ONCE = 4096

Tables = Mapping[str, Tensor]
Column = Callable[[Tables], Tensor]


class PropertyTable:
    """Reads the targets of a spec from the object tables of one store.

    Attributes:
        arrays: names of the store's arrays that it reads.
    """

    def __init__(self, spec: PropertySpec, store: EpisodeStore) -> None:
        """Find each factor and coordinate among the store's arrays and attributes.

        Raises:
            ValueError: if the store has no object tables, lacks a factor or coordinate, or does not
                know a class.
        """
        if f"{_FOLDER}id" not in store.arrays:
            raise ValueError(
                f"expected object tables in {store.path}, got {sorted(store.arrays)}; collect "
                "episodes of an environment that has them"
            )
        self._spec, self._store = spec, store
        self.arrays = {f"{_FOLDER}id"}
        self._factors = {
            name: self._factor(name, classes) for name, classes in spec.factors.items()
        }
        self._coordinates = [self._column(name, "coordinate") for name in spec.coordinates]

    def __call__(self, tables: Tables) -> dict[str, Tensor]:
        """The targets (B,T,M,...) of tables (B,T,M,...); objects that are there come first.

        Raises:
            ValueError: if a value is no class, or there are other coordinates than the spec's.
        """
        spec = self._spec
        is_there = tables[f"{_FOLDER}id"] != 0
        classes = {name: read(tables, is_there) for name, read in self._factors.items()}
        places = torch.cat([self._vector(column(tables)) for column in self._coordinates], dim=-1)
        if places.shape[-1] != spec.num_coordinates:
            raise ValueError(
                f"expected {spec.num_coordinates} coordinates in {list(spec.coordinates)} of "
                f"{self._store.path}, as low and high have, got {places.shape[-1]}"
            )
        for index in classes.values():
            is_there = is_there & (index >= 0)
        low, high = torch.tensor(spec.low), torch.tensor(spec.high)
        places = torch.where(is_there[..., None], (places - low) / (high - low), 0.0)
        order = (~is_there).to(torch.uint8).argsort(dim=-1, stable=True)
        targets = {
            FACTORS + name: torch.where(is_there, index, 0).gather(-1, order)
            for name, index in classes.items()
        }
        wide = order[..., None].expand_as(places)
        return {
            PRESENCE: is_there.gather(-1, order),
            COORDINATES: places.gather(-2, wide),
            **targets,
        }

    def _column(self, name: str, kind: str) -> Column:
        """Reads one column, an array of its own or one of the attributes."""
        attributes = list(self._store.metadata.get("attribute_names", ()))
        own = [key.removeprefix(_FOLDER) for key in self._store.arrays if key.startswith(_FOLDER)]
        if name in own and name != "attributes":
            self.arrays.add(_FOLDER + name)
            return lambda tables: tables[_FOLDER + name]
        if name in attributes and _ATTRIBUTES in self._store.arrays:
            self.arrays.add(_ATTRIBUTES)
            place = attributes.index(name)
            return lambda tables: tables[_ATTRIBUTES][..., place]
        known = sorted({*own, *attributes} - {"attributes", "id", "box"})
        raise ValueError(
            f"expected {kind} {name!r} in the object tables of {self._store.path}, got {known}; "
            "choose another properties@decoder.spec"
        )

    def _factor(
        self, name: str, classes: Sequence[str | float]
    ) -> Callable[[Tables, Tensor], Tensor]:
        """Reads the classes (B,T,M) of a factor, -1 for one that is left out."""
        column = self._column(name, "factor")
        if not any(isinstance(entry, str) for entry in classes):
            values = torch.tensor([float(entry) for entry in classes])
            return lambda tables, is_there: self._nearest(name, column(tables), values, is_there)
        known = self._class_names(name)
        if not known:
            raise ValueError(
                f"expected {self._store.path} to name the classes of factor {name!r}, as "
                f"{list(classes)} are names, got none; give its values as numbers, or collect the "
                "episodes again"
            )
        for entry in classes:
            if entry not in known:
                raise ValueError(
                    f"expected classes of factor {name!r} that {self._store.path} knows, "
                    f"{list(known)}, got {entry!r}"
                )
        table = torch.tensor([classes.index(e) if e in classes else -1 for e in known])
        return lambda tables, is_there: self._looked_up(name, column(tables), table, is_there)

    def _class_names(self, name: str) -> Sequence[str]:
        metadata = self._store.metadata
        if name == "category":
            return tuple(metadata.get("categories", ()))
        return tuple(metadata.get("attribute_classes", {}).get(name, ()))

    def _looked_up(self, name: str, values: Tensor, table: Tensor, is_there: Tensor) -> Tensor:
        index = torch.where(is_there, values, 0).long()
        self._refuse(name, values, is_there & ((index < 0) | (index >= len(table))))
        return table[index]

    def _nearest(self, name: str, values: Tensor, classes: Tensor, is_there: Tensor) -> Tensor:
        distance, index = (values[..., None].float() - classes).abs().min(dim=-1)
        self._refuse(name, values, is_there & (distance > _TOLERANCE))
        return index

    def _refuse(self, name: str, values: Tensor, is_wrong: Tensor) -> None:
        if is_wrong.any():
            raise ValueError(
                f"expected factor {name!r} in {self._store.path} to be one of its classes, "
                f"got {values[is_wrong][0].item():g}"
            )

    def _vector(self, values: Tensor) -> Tensor:
        return (values if values.ndim == 4 else values[..., None]).float()


def most_objects(store: EpisodeStore, spec: PropertySpec) -> int:
    """The largest set in any frame of a store, for choosing how many slots a model needs.

    Raises:
        ValueError: as `PropertyTable`.
    """
    table = PropertyTable(spec, store)
    largest = 0
    for length in np.unique(store.lengths):
        episodes = np.flatnonzero(store.lengths == length)
        for start in range(0, len(episodes), max(1, _FRAMES_AT_ONCE // length)):
            part = episodes[start : start + max(1, _FRAMES_AT_ONCE // length)]
            tables = {
                name: torch.empty(
                    (len(part), length, *store.arrays[name].shape),
                    dtype=torch.float32
                    if np.dtype(store.arrays[name].dtype).kind == "f"
                    else torch.int32,
                )
                for name in table.arrays
            }
            out = {name: tensor.numpy() for name, tensor in tables.items()}
            store.gather(part, np.zeros(len(part), np.int64), out=out)
            largest = max(largest, int(table(tables)[PRESENCE].sum(-1).max()))
    return largest
