"""Scenes of solids in rooms from several posed cameras, that may ride on one of them.

After the dynamic 3-D scenes of PSB (Singh et al. 2024, arXiv:2402.17077, appendix C), which in turn
extend CLEVR (Johnson et al. 2017, arXiv:1612.06890); drawing and physics are our own. V views, H W
image (H = W = size), M objects.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from ocrl.envs.interface import EXTRINSICS, INTRINSICS, PRESETS, ObjectEnv
from ocrl.envs.registry import unknown
from ocrl.envs.scenes3d_render import MAX_RAYS, RayCaster
from ocrl.envs.scenes3d_rooms import PALETTE, ROOMS
from ocrl.envs.scenes3d_stage import Stage
from ocrl.envs.scenes3d_world import HEADINGS, RIGS, Moment, Rig, World, stage_of
from ocrl.envs.scenes_camera import pinhole
from ocrl.envs.scenes_geometry import SOLIDS
from ocrl.envs.scenes_render import MATERIALS
from ocrl.envs.scenes_sampler import LookSampler
from ocrl.envs.scenes_table import ATTRIBUTES, object_rows

_LAYOUT_TRIES = 300
_STATUE_ROOM = 5.0
"""Between the arena and the wall, for statues."""


@dataclass(frozen=True)
class _Shot:
    """A moment with what its cameras see of it."""

    moment: Moment
    frames: NDArray[np.uint8]
    ids: NDArray[np.uint16]
    depth: NDArray[np.float32]


class Scenes3DEnv(ObjectEnv):
    """Spheres, cubes, cylinders, cones, icosahedra and tori of 32 colours, seen from V sides.

    Nobody has anything to win and the only action does nothing: rewards are 0 and episodes end
    after `max_steps`. Objects slide and turn, and bounce off each other and off an unseen round
    border. Rooms have a patterned ground, a wall, a sky and statues that never move.

    Observations, masks and depth have a V axis first, and so have the position and box of
    `objects()`, where boxes are -1 in views that do not see the object. Ids belong to one object
    for the whole episode and in all views. In `entities` statues are background, in `scene` each
    has an id of its own. Depth ends at a dome of radius `scenes_geometry.BACKDROP_RADIUS`: the sky.
    Attributes are those of `ScenesEnv`, with places in `SOLIDS` and `PALETTE`.

    As nothing that is done changes a scene, some frames are drawn together ahead of their time;
    `ocrl.envs.scenes3d_clips` draws many episodes together, for training without a disk.

    What differs from PSB's sets: there is a torus where CLEVR-Simple has a monkey; statues, rooms
    and lights are our own; objects stay on the ground; the object that carries the cameras is seen
    by none of them.

    Attributes:
        num_views: V.
        size: H and W.
        caster: what draws.
    """

    categories = SOLIDS
    attribute_names = ATTRIBUTES
    attribute_classes: Mapping[str, tuple[str, ...]] = MappingProxyType(
        {"shape": SOLIDS, "color": tuple(PALETTE), "material": MATERIALS}
    )
    render_mode = "rgb_array"

    def __init__(
        self,
        num_objects: int | Sequence[int],
        *,
        size: int,
        num_views: int,
        shapes: Sequence[str],
        colors: Sequence[str],
        materials: Sequence[str],
        object_sizes: Mapping[str, float],
        held_out: Sequence[Sequence[str]],
        split: str,
        rooms: Sequence[str],
        heading: str,
        speed: float,
        spin: float,
        arena: float,
        gap: float,
        min_visible: float,
        rig: str,
        camera_distance: Sequence[float],
        camera_elevation: Sequence[float],
        camera_azimuth: Sequence[float],
        camera_speed: float,
        ego_radius: float,
        ego_speed: float,
        ego_height: float,
        ego_pitch: float,
        field_of_view: float,
        light_jitter: float,
        supersampling: int,
        depth: bool,
        device: str,
        max_steps: int,
    ) -> None:
        """Set up a place.

        Args:
            num_objects: how many, or the least and the most of them.
            size: pixels of a side of the image.
            num_views: V.
            shapes: names from `SOLIDS`.
            colors: names from `PALETTE`.
            materials: names from `MATERIALS`.
            object_sizes: names of sizes to radii in units of the world; see `body_table`.
            held_out: combinations of names, such as [cube, red], that no object of `train` has.
            split: `train`, `held_out` (at least one such object in every scene) or `all`.
            rooms: names from `ROOMS`; every episode is in one of them.
            heading: `center`, objects start towards the middle, or `random`.
            speed: mean speed of the objects in units a step; 0 for objects that stay.
            spin: they turn by up to so many degrees a step.
            arena: radius of the circle that objects stay in.
            gap: least free distance between two objects in the first frame.
            min_visible: share of the pixels of a view that each object has in the first frame.
            rig: `ring`, `hemisphere` or `ego`, see `scenes3d_world.Rig`.
            camera_distance: the least and the most distance to the middle of the scene.
            camera_elevation: lowest and highest place above the horizon in degrees.
            camera_azimuth: the first and the last direction in degrees.
            camera_speed: cameras orbit by so many degrees a step, on average.
            ego_radius: of the object that carries an ego rig.
            ego_speed: its units a step.
            ego_height: of its cameras above the ground.
            ego_pitch: by which they look down, in degrees.
            field_of_view: between the left and the right border of the image, in degrees.
            light_jitter: lights move by up to so much along each axis, anew in every episode.
            supersampling: samples across a pixel for smooth edges; 1 for none.
            depth: whether rollouts keep depth maps.
            device: where pictures are drawn, such as cpu or cuda.
            max_steps: episodes are truncated after so many steps.

        Raises:
            ValueError: if an argument names what does not exist or allows no scene.
        """
        for kind, name, known in (
            ("rig of cameras", rig, RIGS),
            ("heading of objects", heading, HEADINGS),
            *(("room", room, tuple(ROOMS)) for room in rooms),
        ):
            if name not in known:
                raise ValueError(unknown(kind, name, known))
        bounds = (num_objects, num_objects) if isinstance(num_objects, int) else tuple(num_objects)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(
                f"num_objects: expected one number or [least, most], got {num_objects}"
            )
        sampler = LookSampler(
            shapes=shapes,
            colors=colors,
            materials=materials,
            sizes=object_sizes,
            known_shapes=SOLIDS,
            known_colors=tuple(PALETTE),
            held_out=held_out,
            split=split,
        )
        reach = self._reach(rooms, arena)
        distance = _interval("camera_distance", camera_distance, arena + 1.0, reach)
        self._rig = Rig(
            kind=rig,
            num_views=num_views,
            distance=distance if rig != "ego" else (0.0, 0.0),
            elevation=_radians(_interval("camera_elevation", camera_elevation, 2.0, 88.0)),
            azimuth=_radians(_interval("camera_azimuth", camera_azimuth, -360.0, 360.0)),
            speed=math.radians(camera_speed),
            ego_radius=ego_radius,
            ego_speed=ego_speed,
            ego_height=ego_height,
            ego_pitch=math.radians(ego_pitch),
        )
        self._check(size, num_views, supersampling, field_of_view, camera_speed)
        self._world = World(
            sampler=sampler,
            num_objects=bounds,
            rooms=rooms,
            rig=self._rig,
            heading=heading,
            speed=speed,
            spin=math.radians(spin),
            arena=arena,
            gap=gap,
            light_jitter=light_jitter,
        )
        self.caster = RayCaster(size=size, supersampling=supersampling, device=device)
        self._intrinsics = pinhole(size, field_of_view)
        self.max_objects = bounds[1]
        self.size = size
        self.num_views = self.num_cameras = num_views
        self._min_visible = min_visible
        self._keeps_depth = depth
        self._max_steps = max_steps
        self._ahead: deque[_Shot] = deque()
        self.observation_space = gymnasium.spaces.Box(0, 255, (num_views, size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(1)
        self.attribute_limits = {"size": float(len(object_sizes)), "x": arena, "y": arena} | {
            "angle": 2.0 * math.pi
        }

    def _reach(self, rooms: Sequence[str], arena: float) -> float:
        """How far from the middle a camera may be: before the nearest wall."""
        if not rooms:
            raise ValueError(f"expected at least one room of {', '.join(ROOMS)}, got none")
        nearest = min(ROOMS[name].wall_radius for name in rooms)
        if arena + _STATUE_ROOM > nearest:
            raise ValueError(
                f"expected an arena of at most {nearest - _STATUE_ROOM:g} within the walls of "
                f"rooms {list(rooms)}, got {arena:g}"
            )
        return min(nearest - 0.5, 50.0)

    def _check(
        self,
        size: int,
        num_views: int,
        supersampling: int,
        field_of_view: float,
        camera_speed: float,
    ) -> None:
        least = {"size": size, "num_views": num_views, "supersampling": supersampling}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if not 0.0 < field_of_view < 120.0:
            raise ValueError(f"expected field_of_view between 0 and 120, got {field_of_view}")
        if self._rig.is_ego and camera_speed:
            raise ValueError(
                f"expected camera_speed=0 with rig 'ego', whose object moves, got {camera_speed}"
            )
        if self._rig.is_ego and min(self._rig.ego_radius, self._rig.ego_height) <= 0.0:
            raise ValueError(
                f"expected ego_radius and ego_height above 0, got {self._rig.ego_radius} and "
                f"{self._rig.ego_height}"
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: if the objects find no room, or no place where each is seen.
        """
        super().reset(seed=seed)
        self._begin(self.np_random)
        self._ahead.clear()
        self._num_steps = 0
        self._advance(is_first=True)
        return self._shot.frames.copy(), {}

    def _begin(self, rng: np.random.Generator) -> None:
        """Draw a scene, with places and cameras such that every object is seen by every camera."""
        self._world.populate(rng)
        has_room = False
        for _ in range(_LAYOUT_TRIES):
            if self._world.arrange(rng):
                has_room = True
                if self._min_visible <= 0.0 or self._is_everything_seen(self._world.moment()):
                    return
        trouble = (
            f"have min_visible={self._min_visible:g} of the pixels of every view: take fewer, ask "
            "for less, or move the cameras"
            if has_room
            else "find room: take fewer or smaller ones, a larger arena or a smaller gap"
        )
        raise ValueError(f"found no places in {_LAYOUT_TRIES} tries where the objects {trouble}")

    def _is_everything_seen(self, moment: Moment) -> bool:
        ids, _ = self.caster.cast(self.stage([moment]))
        count = len(moment.centers)
        found = torch.stack([(ids == number).sum((1, 2)) for number in range(1, count + 1)])
        return bool((found >= max(1.0, self._min_visible * self.size**2)).all())

    def stage(self, moments: Sequence[Moment]) -> Stage:
        """What the cameras of some moments see, V views of each after the other."""
        return stage_of(moments, intrinsics=self._intrinsics, device=self.caster.device)

    def simulate(self, seed: int, *, num_frames: int) -> list[Moment]:
        """The first moments of the episode of a seed, without any picture.

        The episode that is being played ends; call `reset` before the next step.
        """
        self._begin(np_random(seed)[0])
        moments = [self._world.moment()]
        while len(moments) < num_frames:
            self._world.advance()
            moments.append(self._world.moment())
        return moments

    def _advance(self, *, is_first: bool) -> None:
        """Go on to the next moment; draw it, and some of those after it, if it is not drawn yet."""
        if not self._ahead:
            left = self._max_steps + 1 - self._num_steps
            rays = self.num_views * self.size**2
            count = max(1, min(left, MAX_RAYS[self.caster.device.type] // rays))
            moments = []
            for number in range(count):
                if not (is_first and number == 0):
                    self._world.advance()
                moments.append(self._world.moment())
            self._ahead.extend(self._shots(moments))
        self._shot = self._ahead.popleft()

    def _shots(self, moments: Sequence[Moment]) -> list[_Shot]:
        picture = self.caster.draw(self.stage(moments))
        shape = (len(moments), self.num_views, self.size, self.size)
        frames = picture.frames.cpu().numpy().reshape(*shape, 3)
        ids = picture.ids.cpu().numpy().astype(np.uint16).reshape(shape)
        depth = picture.depth.cpu().numpy().reshape(shape)
        return [_Shot(*shot) for shot in zip(moments, frames, ids, depth, strict=True)]

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move everything.

        Raises:
            ValueError: if the action is not the only one.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"expected an action in {self.action_space}, got {action}")
        self._num_steps += 1
        self._advance(is_first=False)
        is_over = self._num_steps >= self._max_steps
        return self._shot.frames.copy(), 0.0, False, is_over, {}

    def scripted_action(self, rng: np.random.Generator) -> int:
        """The only action."""
        return 0

    def render(self) -> NDArray[np.uint8]:
        """The current frame (H,V*W,3), views side by side."""
        return np.concatenate(list(self._shot.frames), axis=1)

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Ids (V,H,W): objects from 1 on; in `scene` statues after `max_objects`."""
        if preset not in PRESETS:
            raise ValueError(unknown("preset", preset, PRESETS))
        setting = self._shot.moment.setting
        objects = np.arange(len(setting.radii) + 1)
        statues = self.max_objects + 1 + setting.owners
        statues = statues if preset == "scene" else np.zeros_like(statues)
        return np.concatenate([objects, statues]).astype(np.uint16)[self._shot.ids]

    def objects(self) -> NDArray[np.void]:
        """The objects with a pixel in at least one view; boxes are tight around visible pixels."""
        moment = self._shot.moment
        return object_rows(
            self.segmentation(),
            look=moment.setting.look,
            radii=moment.setting.radii,
            centers=moment.centers,
            angles=moment.angles,
            intrinsics=self.intrinsics(),
            extrinsics=self.extrinsics(),
            has_views=True,
        )

    def depth(self) -> NDArray[np.float32]:
        """Depth (V,H,W) along the cameras' axes, in units of the world."""
        return self._shot.depth.copy()

    def intrinsics(self) -> NDArray[np.float64]:
        """(V,3,3) in pixels; see `ocrl.types.Camera`."""
        return np.broadcast_to(self._intrinsics, (self.num_views, 3, 3)).copy()

    def extrinsics(self) -> NDArray[np.float64]:
        """(V,4,4) camera to world, likewise."""
        return self._shot.moment.extrinsics.copy()

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
            extras["depth"] = self._shot.depth.astype(np.float16)
        return extras


def _interval(name: str, given: Sequence[float], least: float, most: float) -> tuple[float, float]:
    if len(given) != 2 or not least <= given[0] <= given[1] <= most:
        raise ValueError(
            f"{name}: expected [least, most] within [{least:g}, {most:g}], got {list(given)}"
        )
    return float(given[0]), float(given[1])


def _radians(degrees: tuple[float, float]) -> tuple[float, float]:
    return math.radians(degrees[0]), math.radians(degrees[1])
