"""Scenes of simple solids on a table, after CLEVR: still or moving, seen by one or more cameras.

Objects and looks follow CLEVR (Johnson et al. 2017, arXiv:1612.06890), the sets of posed views the
dynamic scenes of PSB (Singh et al. 2024, arXiv:2402.17077); drawing and physics are our own. V
views, H W image (H = W = size), M objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import EXTRINSICS, INTRINSICS, PRESETS, ObjectEnv
from ocrl.envs.registry import unknown
from ocrl.envs.scenes_camera import look_at, pinhole, points_of
from ocrl.envs.scenes_geometry import SHAPES, X, Z, body_table, cast
from ocrl.envs.scenes_physics import move
from ocrl.envs.scenes_render import COLORS, LIGHTS, draw, light_pattern, linear_colors
from ocrl.envs.scenes_sampler import LookSampler, place
from ocrl.envs.scenes_table import ATTRIBUTES, object_rows

CONTROLS = ("none", "camera", "object")
_PALETTE = linear_colors(np.array(list(COLORS.values())))
_TARGET = np.array([0.0, 0.0, 0.4])
_MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
"""The actions: stay, left, right, up or away, down or near."""
_LAYOUT_TRIES = 300
_LOWEST, _HIGHEST = 5.0, 85.0
_KEPT_SHARE = 0.85


class ScenesEnv(ObjectEnv):
    """Spheres, cubes and cylinders of eight colours, in rubber and metal, on a grey ground.

    Nobody has anything to win: rewards are 0 and episodes end after `max_steps`. Objects slide and
    turn, and bounce off each other and off an unseen round border; cameras may orbit. Actions
    (`control`):
      - `none`: one action, which does nothing.
      - `camera`: stay, left, right, up, down; the cameras go around the scene together.
      - `object`: the same for the object with id 1, on the ground, as the first camera sees it.

    Every object is whole above the ground, overlaps no other, and has at least `min_visible` of the
    pixels of every view in the first frame. Masks and depth are those of the pixels' centres.

    What differs from CLEVR: sizes, colours and the camera's place are CLEVR's, but the image is
    square, objects stand in a circle instead of a square, lights and materials are our own, edges
    are sharp. What differs from PSB's sets: they also have other shapes and textured rooms, and
    cameras that ride on an object.

    With `num_views` a V axis comes first in observations, masks, depth, and in the position and box
    of `objects()`, where boxes are -1 in views that do not see the object. `scene` equals
    `entities`: the ground is background. Positions are those of projected centres, which may lie
    outside the image. Categories are the shapes; `attributes` are named by `attribute_names`:
    shape, colour, material and size as numbers (places in `SHAPES`, `COLORS`, `MATERIALS` and in
    the sizes), the radius, the centre in the world, and the turn about the vertical in radians.
    """

    categories = SHAPES
    attribute_names = ATTRIBUTES
    render_mode = "rgb_array"

    def __init__(
        self,
        num_objects: int | Sequence[int],
        *,
        size: int,
        num_views: int | None,
        shapes: Sequence[str],
        colors: Sequence[str],
        materials: Sequence[str],
        object_sizes: Mapping[str, float],
        held_out: Sequence[Sequence[str]],
        split: str,
        control: str,
        speed: float,
        spin: float,
        arena: float,
        gap: float,
        min_visible: float,
        camera_distance: Sequence[float],
        camera_elevation: Sequence[float],
        camera_azimuth: Sequence[float],
        camera_speed: float,
        field_of_view: float,
        light_jitter: float,
        supersampling: int,
        depth: bool,
        max_steps: int,
    ) -> None:
        """Set up a studio.

        Args:
            num_objects: how many, or the least and the most of them.
            size: pixels of a side of the image.
            num_views: V, or None for one camera and no V axis.
            shapes: names from `SHAPES`.
            colors: names from `COLORS`.
            materials: names from `MATERIALS`.
            object_sizes: names of sizes to radii in units of the world; see `body_table`.
            held_out: combinations of names, such as [cube, red], that no object of `train` has.
            split: `train`, `held_out` (at least one such object in every scene) or `all`.
            control: what actions move.
            speed: mean speed of the objects in units a step; 0 for objects that stay.
            spin: they turn by up to so many degrees a step.
            arena: radius of the circle that objects stay in.
            gap: least free distance between two objects in the first frame.
            min_visible: share of the pixels of a view that each object has in the first frame.
            camera_distance: the least and the most distance to the middle of the scene.
            camera_elevation: lowest and highest place above the horizon in degrees.
            camera_azimuth: the first and the last direction in degrees; with several views each has
                an equal part of the range to itself.
            camera_speed: cameras orbit by so many degrees a step, on average, or with each action.
            field_of_view: between the left and the right border of the image, in degrees.
            light_jitter: lights move by up to so much along each axis, anew in every episode.
            supersampling: samples across a pixel for smooth edges; 1 for none.
            depth: whether rollouts keep depth maps.
            max_steps: episodes are truncated after so many steps.

        Raises:
            ValueError: if an argument names what does not exist or allows no scene.
        """
        if control not in CONTROLS:
            raise ValueError(unknown("control of scenes", control, CONTROLS))
        self._control = control
        moving = {"camera": camera_speed, "object": speed}
        if moving.get(control, 1.0) <= 0.0:
            name = "camera_speed" if control == "camera" else "speed"
            raise ValueError(f"control {control!r}: expected {name} above 0, got {moving[control]}")
        bounds = (num_objects, num_objects) if isinstance(num_objects, int) else tuple(num_objects)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(
                f"num_objects: expected one number or [least, most], got {num_objects}"
            )
        self._sampler = LookSampler(
            shapes=shapes,
            colors=colors,
            materials=materials,
            sizes=object_sizes,
            known_shapes=SHAPES,
            known_colors=tuple(COLORS),
            held_out=held_out,
            split=split,
        )
        smallest = float(self._sampler.radii.min())
        if bounds[0] * (smallest + gap / 2) ** 2 > (arena + gap / 2) ** 2 or smallest > arena:
            raise ValueError(
                f"expected objects that fit into arena {arena:g}, got {bounds[0]} of radius "
                f"{smallest:g} or more with gap {gap:g}: take fewer or smaller ones, or more room"
            )
        self._check_view(size, num_views, supersampling, field_of_view)
        self._num_objects = bounds
        self.max_objects = bounds[1]
        self.size = size
        self._num_views, self.num_cameras = num_views, num_views or 1
        self._speed = speed
        self._spin = math.radians(spin)
        self._arena = arena
        self._gap = gap
        self._min_visible = min_visible
        self._distance = _interval("camera_distance", camera_distance, arena + 1.0, 50.0)
        self._elevation = _interval("camera_elevation", camera_elevation, _LOWEST, _HIGHEST)
        self._azimuth = _interval("camera_azimuth", camera_azimuth, -360.0, 360.0)
        self._camera_speed = camera_speed
        self._intrinsics = pinhole(size, field_of_view)
        self._light_jitter = light_jitter
        self._supersampling = supersampling
        self._pattern = light_pattern(supersampling)
        self._keeps_depth = depth
        self._max_steps = max_steps
        views = num_views or 1
        self._ids = np.zeros((views, size, size), dtype=np.uint16)
        self._depth = np.zeros((views, size, size))
        shape = (size, size, 3) if num_views is None else (num_views, size, size, 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(1 if control == "none" else len(_MOVES))

    @staticmethod
    def _check_view(
        size: int, num_views: int | None, supersampling: int, field_of_view: float
    ) -> None:
        if num_views is not None and num_views < 1:
            raise ValueError(f"expected num_views of at least 1, or null, got {num_views}")
        if size < 1 or supersampling < 1:
            raise ValueError(
                f"expected size and supersampling of at least 1, got {size} and {supersampling}"
            )
        if not 0.0 < field_of_view < 120.0:
            raise ValueError(f"expected field_of_view between 0 and 120, got {field_of_view}")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: if the objects find no room, or no place where each is seen.
        """
        super().reset(seed=seed)
        rng = self.np_random
        count = int(rng.integers(self._num_objects[0], self._num_objects[1] + 1))
        self._look = self._sampler.sample(rng, count)
        self._radii = self._sampler.radii[self._look[:, 3]]
        self._lights = LIGHTS.copy()
        self._lights[:, :3] += self._light_jitter * rng.uniform(-1.0, 1.0, (len(LIGHTS), 3))
        self._arrange(rng)
        # They head for places around the middle, so that they meet.
        goals = rng.uniform(-0.4, 0.4, (count, 2)) * self._arena
        away = goals - self._places
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
        self._velocities = away * self._speed * rng.uniform(0.5, 1.5, (count, 1))
        self._spins = rng.uniform(-self._spin, self._spin, count)
        self._orbit = self._camera_speed * rng.uniform(0.5, 1.5) * rng.choice((-1.0, 1.0))
        self._num_steps = 0
        self._last_move = 0
        return self._draw(), {}

    def _arrange(self, rng: np.random.Generator) -> None:
        """Draw places and cameras until every object is seen by every camera."""
        has_room = False
        for _ in range(_LAYOUT_TRIES):
            places = place(rng, self._radii, arena=self._arena, gap=self._gap)
            if places is None:
                continue
            has_room = True
            self._places = places
            self._angles = rng.uniform(0.0, 2.0 * np.pi, len(places))
            self._place_cameras(rng)
            if self._is_everything_seen():
                return
        trouble = (
            f"have min_visible={self._min_visible:g} of the pixels of every view: take fewer, ask "
            "for less, or move the cameras"
            if has_room
            else f"find room in arena {self._arena:g} with gap {self._gap:g}: take fewer or "
            "smaller ones, or more room"
        )
        raise ValueError(
            f"found no places in {_LAYOUT_TRIES} tries where {len(self._radii)} objects each "
            f"{trouble}"
        )

    def _place_cameras(self, rng: np.random.Generator) -> None:
        views = len(self._ids)
        low, high = self._azimuth
        part = (np.arange(views) + rng.random(views)) / views
        self._poses = np.column_stack(
            [
                low + (high - low) * part,
                rng.uniform(*self._elevation, views),
                rng.uniform(*self._distance, views),
            ]
        )

    def _is_everything_seen(self) -> bool:
        bodies, least = self._bodies(), self._min_visible * self.size**2
        for ids, depth, extrinsics in zip(self._ids, self._depth, self.extrinsics(), strict=True):
            cast(ids, depth, bodies, self._intrinsics, extrinsics)
            num_pixels = np.bincount(ids.ravel(), minlength=len(bodies) + 1)[1:]
            if num_pixels.min() < max(least, 1):
                return False
        return True

    def _bodies(self) -> NDArray[np.float64]:
        return body_table(
            self._look[:, 0],
            self._radii,
            self._places,
            self._angles,
            _PALETTE[self._look[:, 1]],
            self._look[:, 2] == 1,
        )

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move what the action moves, then everything else.

        Raises:
            ValueError: if the action is none of the action space's.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"expected an action in {self.action_space}, got {action}")
        right, up = _MOVES[int(action)]
        if self._control == "object":
            turn = math.radians(self._poses[0, 0])
            across, away = (-math.sin(turn), math.cos(turn)), (-math.cos(turn), -math.sin(turn))
            self._velocities[0] = self._speed * (right * np.array(across) + up * np.array(away))
        masses = self._radii**3
        move(self._places, self._velocities, self._radii, masses, self._arena, 1.0)
        self._angles = (self._angles + self._spins) % (2.0 * np.pi)
        if self._control == "camera":
            self._poses[:, :2] += self._camera_speed * np.array([right, up])
            self._poses[:, 1] = np.clip(self._poses[:, 1], _LOWEST, _HIGHEST)
        else:
            self._poses[:, 0] += self._orbit
        self._num_steps += 1
        return self._draw(), 0.0, False, self._num_steps >= self._max_steps, {}

    def _draw(self) -> NDArray[np.uint8]:
        bodies = self._bodies()
        frames = np.empty((*self._ids.shape, 3), dtype=np.uint8)
        for view, extrinsics in enumerate(self.extrinsics()):
            draw(
                frames[view],
                self._ids[view],
                self._depth[view],
                bodies,
                self._lights,
                self._intrinsics,
                extrinsics,
                self._pattern,
                self._supersampling,
            )
        self._frames = frames
        return self._views(frames).copy()

    def _views(self, array: NDArray[Any]) -> NDArray[Any]:
        """Without the V axis where there is one camera only."""
        return array[0] if self._num_views is None else array

    def render(self) -> NDArray[np.uint8]:
        """The current frame (H,V*W,3), views side by side."""
        return np.concatenate(list(self._frames), axis=1)

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Object ids ([V,]H,W) from 1 on; see `ObjectEnv.segmentation`."""
        if preset not in PRESETS:
            raise ValueError(unknown("preset", preset, PRESETS))
        return self._views(self._ids).copy()

    def depth(self) -> NDArray[np.float32]:
        """Depth ([V,]H,W) along the cameras' axes, in units of the world."""
        return self._views(self._depth).astype(np.float32)

    def points(self) -> NDArray[np.float32]:
        """The points of the world ([V,]H,W,3) behind the pixels' centres."""
        intrinsics, extrinsics = self.intrinsics(), self.extrinsics()
        return self._views(points_of(self._depth, intrinsics, extrinsics)).astype(np.float32)

    def intrinsics(self) -> NDArray[np.float64]:
        """(V,3,3) in pixels, V = 1 without a V axis; see `ocrl.types.Camera`."""
        return np.broadcast_to(self._intrinsics, (len(self._ids), 3, 3)).copy()

    def extrinsics(self) -> NDArray[np.float64]:
        """(V,4,4) camera to world, likewise."""
        return np.stack([look_at(*pose, target=_TARGET) for pose in self._poses])

    def cameras(self) -> dict[str, NDArray[np.float32]]:
        """See `ObjectEnv.cameras`."""
        return {
            INTRINSICS: self.intrinsics().astype(np.float32),
            EXTRINSICS: self.extrinsics().astype(np.float32),
        }

    def extras(self) -> dict[str, NDArray[Any]]:
        """Cameras in float32 and, where asked for, depth in float16 (to 0.05 percent)."""
        extras: dict[str, NDArray[Any]] = dict(self.cameras())
        if self._keeps_depth:
            extras["depth"] = self._views(self._depth).astype(np.float16)
        return extras

    def objects(self) -> NDArray[np.void]:
        """The objects with a pixel in at least one view; boxes are tight around visible pixels."""
        return object_rows(
            self._ids,
            look=self._look,
            radii=self._radii,
            centers=self._bodies()[:, X : Z + 1],
            angles=self._angles,
            intrinsics=self.intrinsics(),
            extrinsics=self.extrinsics(),
            has_views=self._num_views is not None,
        )

    def scripted_action(self, rng: np.random.Generator) -> int:
        """Wander: mostly the last action again; random by `rng` alone."""
        if rng.random() >= _KEPT_SHARE:
            self._last_move = int(rng.integers(self.action_space.n))
        return self._last_move


def _interval(name: str, given: Sequence[float], least: float, most: float) -> tuple[float, float]:
    if len(given) != 2 or not least <= given[0] <= given[1] <= most:
        raise ValueError(
            f"{name}: expected [least, most] within [{least:g}, {most:g}], got {list(given)}"
        )
    return float(given[0]), float(given[1])
