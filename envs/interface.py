"""What every environment of the house offers beyond Gymnasium: exact masks and object tables.

V views, H W image, M objects in view.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

INTRINSICS, EXTRINSICS = "intrinsics", "extrinsics"
"""Keys of the cameras, in observations as in episodes."""
PRESETS = ("entities", "scene")
"""`entities`: things that act or are acted on. `scene`: also connected regions of material."""


def object_dtype(num_attributes: int, *, num_views: int | None = None) -> np.dtype:
    """The row of an object table.

    Fields: `id` as in the segmentation; `category`, an index into the environment's `categories`;
    `position` (x, y) of the centre in [0,1]; `box` left, top, right, bottom in [0,1];
    `attributes`, named by the environment's `attribute_names`. With `num_views` an object has a
    position and a box for each view, (V,2) and (V,4); boxes are -1 where a view does not see it.
    """
    views = () if num_views is None else (num_views,)
    return np.dtype(
        [
            ("id", np.uint16),
            ("category", np.uint8),
            ("position", np.float32, (*views, 2)),
            ("box", np.float32, (*views, 4)),
            ("attributes", np.float32, (num_attributes,)),
        ]
    )


class ObjectEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """A Gymnasium environment that knows which pixel belongs to which object.

    Observations are (H,W,3) uint8, or (V,H,W,3) from several cameras. Masks cost nothing in a step
    unless asked for, asking for them changes nothing in the episode, and asking twice gives the
    same answer.

    Attributes:
        categories: names of object categories; `category` in `objects()` indexes it.
        attribute_names: names of the columns of `attributes` in `objects()`.
        attribute_classes: names of the classes of those attributes whose values are places in a
            list; what set prediction may ask for by name.
        attribute_limits: the largest magnitude of those attributes that exceed 1 and have no
            classes.
        hidden_attributes: names of attributes that tell what no picture does, such as what the task
            asks for; agents that are given objects are not given these.
        max_objects: no frame has more rows in `objects()` than this.
        vector_sizes: how many numbers each of `vectors()` has.
        action_names: a word for each discrete action; empty where there are none.
        num_cameras: V, of `cameras()`; 0 where poses are not known.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (as in gymnasium.Env)
    categories: tuple[str, ...]
    attribute_names: tuple[str, ...] = ()
    attribute_classes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    attribute_limits: Mapping[str, float] = MappingProxyType({})
    hidden_attributes: tuple[str, ...] = ()
    max_objects: int
    vector_sizes: Mapping[str, int] = MappingProxyType({})
    action_names: tuple[str, ...] = ()
    num_cameras: int = 0

    @abstractmethod
    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Object ids ([V,]H,W) of the current frame: 0 background, 65535 void.

        An id belongs to one object for a whole episode.

        Raises:
            ValueError: if `preset` is not one of `PRESETS`.
        """

    @abstractmethod
    def objects(self) -> NDArray[np.void]:
        """The `entities` in view: a structured array of `object_dtype(len(attribute_names))`."""

    def extras(self) -> dict[str, NDArray[Any]]:
        """What rollouts keep of the current frame beyond this, by the names of `docs/data.md`.

        The `cameras()`; `depth` ([V,]H,W).
        """
        return self.cameras()

    def cameras(self) -> dict[str, NDArray[np.float32]]:
        """The cameras of the current frame, V = 1 without a V axis; nothing of unknown poses.

        `intrinsics` (V,3,3) in pixels and `extrinsics` (V,4,4), see `ocrl.types.Camera`.
        """
        return {}

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """What an agent may be told beside the picture, by name: numbers (W,) in [0,1]."""
        return {}
