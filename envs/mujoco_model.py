"""A table top for MuJoCo: a hand on two slides, solids that lie free, a marked place, cameras.

MuJoCo is an extra (`pip install "ocrl[mujoco]"`), and is imported when it is first needed.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ocrl.envs.scenes_geometry import BACKDROP_RADIUS, CUBE, CYLINDER, SPHERE

_TYPES = {SPHERE: "sphere", CUBE: "box", CYLINDER: "cylinder"}
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_GRIP = 1.0
_DENSITY = 20.0
_NUM_BORDERS = 24
GOAL_HEIGHT = 0.01
"""Half of how high the marked place stands out."""


def gl_library() -> str | None:
    """By which of its ways MuJoCo can draw without a screen: `egl`, `osmesa`, or None.

    What `MUJOCO_GL` says already is taken.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return chosen
    found = (name for name, library in _LIBRARIES.items() if ctypes.util.find_library(library))
    return next(found, None)


def load_mujoco() -> ModuleType:
    """The module.

    Raises:
        ImportError: if it is not installed, in one sentence.
    """
    library = gl_library()
    if library is not None:
        # MuJoCo reads it once, when it is imported; by default it asks for a screen.
        os.environ["MUJOCO_GL"] = library
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        raise ImportError(
            'expected MuJoCo for the table top, and it is not installed: pip install "ocrl[mujoco]"'
        ) from error


def model_xml(
    *,
    shapes: Sequence[int],
    radii: Sequence[float],
    hand_radius: float,
    goal_radius: float | None,
    arena: float,
    extrinsics: NDArray[np.float64],
    field_of_view: float,
    size: int,
) -> str:
    """The model in MuJoCo's language.

    Bodies are named `hand`, `object0`, ..., and `goal` if there is one; shadows and multisampling
    are off, which makes software rendering a hundred times as fast.

    Args:
        shapes: of the objects: sphere, cube or cylinder, see `ocrl.envs.scenes_geometry`.
        radii: of the objects, as in `body_table`.
        hand_radius: of the ball that is the hand.
        goal_radius: of the marked place; None for none.
        arena: radius of the circle of unseen borders around everything.
        extrinsics: (V,4,4) of the cameras, see `ocrl.types.Camera`.
        field_of_view: in degrees.
        size: pixels of a side of the image.
    """
    objects = "\n".join(
        f'<body name="object{number}"><freejoint/>{_geom(shape, radius)}</body>'
        for number, (shape, radius) in enumerate(zip(shapes, radii, strict=True))
    )
    goal = ""
    if goal_radius is not None:
        goal = (
            '<body name="goal" mocap="true"><geom type="cylinder" contype="0" conaffinity="0" '
            f'size="{goal_radius:g} {GOAL_HEIGHT:g}"/></body>'
        )
    cameras = "\n".join(
        _camera(number, pose, field_of_view) for number, pose in enumerate(extrinsics)
    )
    return f"""
<mujoco model="tabletop">
  <compiler angle="degree"/>
  <option timestep="0.01" integrator="implicitfast" cone="elliptic"/>
  <statistic extent="1" center="0 0 0"/>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <global offwidth="{size}" offheight="{size}"/>
    <map znear="0.1" zfar="{BACKDROP_RADIUS:g}"/>
    <headlight ambient="0.4 0.4 0.4" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1=".5 .55 .6" rgb2=".62 .62 .62" width="64"
      height="64"/>
  </asset>
  <default>
    <geom density="{_DENSITY:g}" friction="{_GRIP:g} 0.02 0.02" condim="6"/>
  </default>
  <worldbody>
    <light directional="true" dir="0.3 0.6 -0.75" diffuse="0.55 0.55 0.55" castshadow="false"/>
    <geom name="ground" type="plane" size="{BACKDROP_RADIUS:g} {BACKDROP_RADIUS:g} 1"
      rgba="0.66 0.66 0.65 1"/>
    {_borders(arena)}
    <body name="hand" pos="0 0 {hand_radius * 1.05:g}">
      <joint name="hand_x" type="slide" axis="1 0 0"/>
      <joint name="hand_y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="{hand_radius:g}" mass="3" friction="0.3 0.02 0.02"/>
    </body>
    {objects}
    {goal}
    {cameras}
  </worldbody>
  <actuator>
    <velocity joint="hand_x" kv="300"/>
    <velocity joint="hand_y" kv="300"/>
  </actuator>
</mujoco>
"""


def _geom(shape: int, radius: float) -> str:
    extents = {
        SPHERE: [radius],
        CUBE: [radius / np.sqrt(2.0)] * 3,
        CYLINDER: [radius, radius],
    }[shape]
    size = " ".join(f"{extent:.9g}" for extent in extents)
    return f'<geom type="{_TYPES[shape]}" size="{size}"/>'


def _borders(arena: float) -> str:
    """Unseen planks around the arena; geometries of group 4 are not drawn."""
    half = arena * np.tan(np.pi / _NUM_BORDERS) * 1.1
    planks = []
    for angle in np.arange(_NUM_BORDERS) * 360.0 / _NUM_BORDERS:
        x, y = (arena + 0.1) * np.cos(np.radians(angle)), (arena + 0.1) * np.sin(np.radians(angle))
        planks.append(
            f'<geom type="box" group="4" size="0.1 {half:.6g} 1" pos="{x:.6g} {y:.6g} 1" '
            f'euler="0 0 {angle:g}" friction="0 0 0" condim="1"/>'
        )
    return "\n".join(planks)


def _camera(number: int, pose: NDArray[np.float64], field_of_view: float) -> str:
    """MuJoCo's cameras look along -z, with y up: x stays, y and z turn around."""
    axes = " ".join(f"{value:.9g}" for value in (*pose[:3, 0], *-pose[:3, 1]))
    place = " ".join(f"{value:.9g}" for value in pose[:3, 3])
    return f'<camera name="camera{number}" pos="{place}" xyaxes="{axes}" fovy="{field_of_view:g}"/>'
