"""Pictures of a MuJoCo simulation, by its own renderer or by our ray caster.

V views, H W image, M solids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ocrl.envs.mujoco_model import gl_library, load_mujoco
from ocrl.envs.scenes3d_geometry import KIND, TURN, X, Z
from ocrl.envs.scenes3d_render import RayCaster
from ocrl.envs.scenes3d_rooms import ROOMS
from ocrl.envs.scenes3d_stage import Stage
from ocrl.envs.scenes_render import LIGHTS

RENDERERS = ("mujoco", "rays")
NO_GL = (
    "found no OpenGL library for MuJoCo's renderer: install one (apt install libegl1 "
    "libgl1-mesa-dri, or libosmesa6), or take renderer=rays, which needs none"
)


class Painter(ABC):
    """Draws what a simulation is in the middle of; row i of its solids has id i + 1."""

    @abstractmethod
    def frames(self) -> NDArray[np.uint8]:
        """Pictures (V,H,W,3)."""

    @abstractmethod
    def ids(self) -> NDArray[np.uint16]:
        """Ids (V,H,W) at the pixels' centres, 0 for the ground and the sky."""

    @abstractmethod
    def depth(self) -> NDArray[np.float32]:
        """Depth (V,H,W) along the cameras' axes."""


class MujocoPainter(Painter):
    """MuJoCo's own renderer: fast, without shadows."""

    def __init__(self, model: Any, data: Any, *, bodies: Sequence[str], size: int) -> None:
        """Open a context to draw in.

        Args:
            model: of MuJoCo.
            data: likewise.
            bodies: names of the bodies in the order of their ids.
            size: pixels of a side of the image.

        Raises:
            OSError: if there is no OpenGL library.
        """
        self._mujoco: ModuleType = load_mujoco()
        if gl_library() is None:
            raise OSError(NO_GL)
        try:
            self._renderer = self._mujoco.Renderer(model, size, size)
        except (self._mujoco.FatalError, AttributeError, ImportError, RuntimeError) as error:
            raise OSError(f"{NO_GL}; MuJoCo says: {error}") from error
        self._data = data
        self._num_views = model.ncam
        # By geometry; what is no solid stays 0, and so does what is not there (-1).
        self._id_of = np.zeros(model.ngeom + 1, np.uint16)
        for number, body in enumerate(bodies):
            self._id_of[model.body(body).geomadr[0]] = number + 1

    def _views(self) -> list[NDArray[Any]]:
        views = []
        for camera in range(self._num_views):
            self._renderer.update_scene(self._data, camera=camera)
            views.append(self._renderer.render().copy())
        return views

    def frames(self) -> NDArray[np.uint8]:
        """See `Painter.frames`."""
        return np.stack(self._views())

    def ids(self) -> NDArray[np.uint16]:
        """See `Painter.ids`."""
        self._renderer.enable_segmentation_rendering()
        try:
            seen = np.stack(self._views())
        finally:
            self._renderer.disable_segmentation_rendering()
        is_geom = seen[..., 1] == self._mujoco.mjtObj.mjOBJ_GEOM
        return self._id_of[np.where(is_geom, seen[..., 0], -1)]

    def depth(self) -> NDArray[np.float32]:
        """See `Painter.depth`."""
        self._renderer.enable_depth_rendering()
        try:
            return np.stack(self._views()).astype(np.float32)
        finally:
            self._renderer.disable_depth_rendering()

    def close(self) -> None:
        """Free the context."""
        self._renderer.close()


class RayPainter(Painter):
    """Our ray caster: shadows and mirrors on any machine, slower."""

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        bodies: Sequence[str],
        rows: NDArray[np.float64],
        intrinsics: NDArray[np.float64],
        extrinsics: NDArray[np.float64],
        size: int,
        supersampling: int,
        device: str,
    ) -> None:
        """Set up a caster.

        Args:
            model: of MuJoCo.
            data: likewise.
            bodies: names of the bodies in the order of their ids.
            rows: (M,NUM_COLUMNS) what they are, see `solid_rows`; places and turns are the
                simulation's. Changes of their colours are drawn.
            intrinsics: (3,3).
            extrinsics: (V,4,4).
            size: pixels of a side of the image.
            supersampling: samples across a pixel.
            device: where it draws.
        """
        self._data = data
        self._geoms = [int(model.body(body).geomadr[0]) for body in bodies]
        self._rows = rows
        self._caster = RayCaster(size=size, supersampling=supersampling, device=device)
        self._num_views = len(extrinsics)
        self._intrinsics = self._tensor(intrinsics).expand(self._num_views, 3, 3)
        self._extrinsics = self._tensor(extrinsics)
        self._lights = self._tensor(LIGHTS).expand(self._num_views, -1, -1)

    def _tensor(self, array: NDArray[np.float64]) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self._caster.device)

    def _stage(self) -> Stage:
        self._rows[:, X : Z + 1] = self._data.geom_xpos[self._geoms]
        self._rows[:, TURN : TURN + 9] = self._data.geom_xmat[self._geoms]
        return Stage(
            rows=self._tensor(self._rows).expand(self._num_views, -1, -1),
            kinds=frozenset(int(kind) for kind in self._rows[:, KIND]),
            lights=self._lights,
            rooms=[ROOMS["studio"]] * self._num_views,
            intrinsics=self._intrinsics,
            extrinsics=self._extrinsics,
        )

    def frames(self) -> NDArray[np.uint8]:
        """See `Painter.frames`."""
        return self._caster.draw(self._stage()).frames.cpu().numpy()

    def ids(self) -> NDArray[np.uint16]:
        """See `Painter.ids`."""
        return self._caster.cast(self._stage())[0].cpu().numpy().astype(np.uint16)

    def depth(self) -> NDArray[np.float32]:
        """See `Painter.depth`."""
        return self._caster.cast(self._stage())[1].cpu().numpy()
