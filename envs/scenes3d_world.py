"""What is in a scene of three dimensions, how it moves, and where its cameras are.

V views, M objects. Knows nothing of pixels; `ocrl.envs.scenes3d` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ocrl.envs.scenes3d_geometry import KIND, X, Z, padded_rows, solid_rows
from ocrl.envs.scenes3d_rooms import PALETTE, ROOMS, Room, statue_rows
from ocrl.envs.scenes3d_stage import Stage
from ocrl.envs.scenes_geometry import body_table
from ocrl.envs.scenes_physics import move
from ocrl.envs.scenes_render import LIGHTS, linear_colors
from ocrl.envs.scenes_sampler import LookSampler, place

RIGS = ("ring", "hemisphere", "ego")
HEADINGS = ("center", "random")
_PALETTE = linear_colors(np.array(list(PALETTE.values())))
_TARGET = np.array([0.0, 0.0, 0.4])
_MAX_TURN = math.radians(20.0)
"""What a rig on an object turns in a step, at most."""


@dataclass(frozen=True)
class Rig:
    """Where cameras are.

    Attributes:
        kind: `ring`, the same places around the scene in every episode; `hemisphere`, places drawn
            anew in every episode, evenly over the part of a sphere that is allowed; `ego`, on an
            object that drives around among the others and is seen by none of them.
        num_views: V.
        distance: least and most distance of a camera to the middle of the scene; a ring has their
            mean. Not for `ego`.
        elevation: likewise above the horizon, in radians; not for `ego`.
        azimuth: the first and the last direction in radians, shared out evenly by a ring and by an
            ego rig, which counts from where it heads.
        speed: cameras orbit by so many radians a step; not for `ego`.
        ego_radius: of the object that carries the cameras.
        ego_speed: units a step.
        ego_height: of the cameras above the ground.
        ego_pitch: by which cameras look down, in radians.
    """

    kind: str
    num_views: int
    distance: tuple[float, float]
    elevation: tuple[float, float]
    azimuth: tuple[float, float]
    speed: float
    ego_radius: float
    ego_speed: float
    ego_height: float
    ego_pitch: float

    @property
    def is_ego(self) -> bool:
        """Whether an object carries the cameras."""
        return self.kind == "ego"

    def poses(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Azimuth, elevation and distance (V,3) at the start of an episode."""
        low, high = self.azimuth
        count = self.num_views
        even = low + (high - low) * np.arange(count) / count
        if self.kind != "hemisphere":
            middle = [np.full(count, np.mean(pair)) for pair in (self.elevation, self.distance)]
            return np.column_stack([even, *middle])
        # Even over a sphere is even in azimuth and in the sine of the elevation.
        lowest, highest = (math.sin(angle) for angle in self.elevation)
        rise = np.arcsin(rng.uniform(lowest, highest, count))
        return np.column_stack(
            [rng.uniform(low, high, count), rise, rng.uniform(*self.distance, count)]
        )

    def extrinsics(
        self, poses: NDArray[np.float64], carrier: tuple[float, float, float]
    ) -> NDArray[np.float64]:
        """Matrices (V,4,4).

        Args:
            poses: (V,3), see `poses`.
            carrier: x, y and heading of the object that carries them.
        """
        if not self.is_ego:
            return _looking_at(_TARGET, *poses.T)
        x, y, heading = carrier
        turn, down = heading + poses[:, 0], math.sin(self.ego_pitch)
        flat = math.cos(self.ego_pitch)
        zero = np.zeros_like(turn)
        ahead = np.stack([flat * np.cos(turn), flat * np.sin(turn), zero - down], axis=1)
        right = np.stack([np.sin(turn), -np.cos(turn), zero], axis=1)
        matrices = np.tile(np.eye(4), (len(turn), 1, 1))
        matrices[:, :3, :3] = np.stack([right, np.cross(ahead, right), ahead], axis=2)
        matrices[:, :3, 3] = [x, y, self.ego_height]
        return matrices


def _looking_at(
    target: NDArray[np.float64],
    azimuth: NDArray[np.float64],
    elevation: NDArray[np.float64],
    distance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`scenes_camera.look_at` for many cameras (V,4,4) at once, in radians."""
    cos, sin, flat, rise = (f(a) for a in (azimuth, elevation) for f in (np.cos, np.sin))
    back = np.stack([cos * flat, sin * flat, rise], axis=1)
    zero = np.zeros_like(cos)
    matrices = np.tile(np.eye(4), (len(cos), 1, 1))
    matrices[:, :3, 0] = np.stack([-sin, cos, zero], axis=1)
    matrices[:, :3, 1] = np.stack([cos * rise, sin * rise, -flat], axis=1)
    matrices[:, :3, 2] = -back
    matrices[:, :3, 3] = target + distance[:, None] * back
    return matrices


@dataclass(frozen=True)
class Setting:
    """What stays the same in an episode.

    Attributes:
        look: (M,4) of the objects, see `LookSampler.sample`.
        radii: (M,) of the objects.
        lights: (L,5), see `scenes_render.LIGHTS`.
        room: where it takes place.
        statues: rows of the pieces of the statues.
        owners: which statue each of them belongs to.
    """

    look: NDArray[np.int64]
    radii: NDArray[np.float64]
    lights: NDArray[np.float64]
    room: Room
    statues: NDArray[np.float64]
    owners: NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """A scene at one time.

    Attributes:
        setting: what it shares with the others of its episode.
        rows: (...,NUM_COLUMNS) of `solid_rows`: the M objects, then the pieces of the statues.
        centers: (M,3) of the objects.
        angles: (M,) of the objects.
        extrinsics: (V,4,4).
    """

    setting: Setting
    rows: NDArray[np.float64]
    centers: NDArray[np.float64]
    angles: NDArray[np.float64]
    extrinsics: NDArray[np.float64]


class World:
    """Solids that slide and turn on the ground and bounce off each other and an unseen border."""

    def __init__(
        self,
        *,
        sampler: LookSampler,
        num_objects: tuple[int, int],
        rooms: Sequence[str],
        rig: Rig,
        heading: str,
        speed: float,
        spin: float,
        arena: float,
        gap: float,
        light_jitter: float,
    ) -> None:
        """Set up a world; the arguments are those of `Scenes3DEnv`, with angles in radians."""
        self._sampler = sampler
        self._num_objects = num_objects
        self._rooms = [ROOMS[name] for name in rooms]
        self._rig = rig
        self._heading = heading
        self._speed = speed
        self._spin = spin
        self._arena = arena
        self._gap = gap
        self._light_jitter = light_jitter
        self._statues = {id(room): statue_rows(room, arena=arena) for room in self._rooms}

    def populate(self, rng: np.random.Generator) -> None:
        """Draw what there is, but not where."""
        count = int(rng.integers(self._num_objects[0], self._num_objects[1] + 1))
        look = self._sampler.sample(rng, count)
        room = self._rooms[rng.integers(len(self._rooms))]
        lights = LIGHTS.copy()
        lights[:, :3] += self._light_jitter * rng.uniform(-1.0, 1.0, (len(LIGHTS), 3))
        lights[:, :4] *= room.light_scale
        radii = self._sampler.radii[look[:, 3]]
        self._setting = Setting(look, radii, lights, room, *self._statues[id(room)])

    def arrange(self, rng: np.random.Generator) -> bool:
        """Draw places, cameras and speeds; False if what there is found no room."""
        ego = [self._rig.ego_radius] if self._rig.is_ego else []
        discs = np.array([*self._setting.radii, *ego])
        places = place(rng, discs, arena=self._arena, gap=self._gap)
        if places is None:
            return False
        self._discs, self._places = discs, places
        self._angles = rng.uniform(0.0, 2.0 * np.pi, len(self._setting.radii))
        self._poses = self._rig.poses(rng)
        # Towards places around the middle, so that they meet; or anywhere.
        goals = rng.uniform(-0.4, 0.4, places.shape) * self._arena
        if self._heading == "random":
            turn = rng.uniform(0.0, 2.0 * np.pi, len(places))
            goals = places + np.column_stack([np.cos(turn), np.sin(turn)])
        away = goals - places
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
        pace = self._speed * rng.uniform(0.5, 1.5, len(places))
        if self._rig.is_ego:
            pace[-1] = self._rig.ego_speed
        self._velocities = away * pace[:, None]
        self._spins = rng.uniform(-self._spin, self._spin, len(self._setting.radii))
        self._orbit = self._rig.speed * rng.uniform(0.5, 1.5) * rng.choice((-1.0, 1.0))
        self._ahead = math.atan2(away[-1, 1], away[-1, 0])
        return True

    def advance(self) -> None:
        """Move everything by one step."""
        move(self._places, self._velocities, self._discs, self._discs**3, self._arena, 1.0)
        self._angles = (self._angles + self._spins) % (2.0 * np.pi)
        self._poses[:, 0] += self._orbit
        if self._rig.is_ego:
            self._steer()

    def _steer(self) -> None:
        """An ego object keeps its pace, and turns to where it has been pushed."""
        velocity = self._velocities[-1]
        pace = math.hypot(*velocity)
        if pace > 0.0:
            velocity *= self._rig.ego_speed / pace
        wanted = math.atan2(velocity[1], velocity[0]) - self._ahead
        wanted = (wanted + math.pi) % (2.0 * math.pi) - math.pi
        self._ahead += min(max(wanted, -_MAX_TURN), _MAX_TURN)

    def moment(self) -> Moment:
        """How things are now."""
        setting = self._setting
        count = len(setting.radii)
        bodies = body_table(
            setting.look[:, 0],
            setting.radii,
            self._places[:count],
            self._angles,
            _PALETTE[setting.look[:, 1]],
            setting.look[:, 2] == 1,
        )
        x, y = self._places[-1]
        return Moment(
            setting=setting,
            rows=np.concatenate([solid_rows(bodies), setting.statues]),
            centers=bodies[:, X : Z + 1],
            angles=self._angles.copy(),
            extrinsics=self._rig.extrinsics(self._poses, (x, y, self._ahead)),
        )


def stage_of(
    moments: Sequence[Moment], *, intrinsics: NDArray[np.float64], device: torch.device
) -> Stage:
    """What the V cameras of each of some moments see, one moment's after the other's.

    Args:
        moments: of any episodes.
        intrinsics: (3,3) of all cameras.
        device: where it is to be drawn.
    """
    num_rows = max(len(moment.rows) for moment in moments)
    num_views = len(moments[0].extrinsics)

    def tensor(array: NDArray[np.float64]) -> torch.Tensor:
        return torch.tensor(array, dtype=torch.float32, device=device)

    rows = tensor(np.stack([padded_rows(moment.rows, num_rows) for moment in moments]))
    lights = tensor(np.stack([moment.setting.lights for moment in moments]))
    extrinsics = tensor(np.concatenate([moment.extrinsics for moment in moments]))
    kinds = {int(kind) for moment in moments for kind in moment.rows[:, KIND]}
    return Stage(
        rows=rows.repeat_interleave(num_views, dim=0),
        kinds=frozenset(kinds),
        lights=lights.repeat_interleave(num_views, dim=0),
        rooms=[moment.setting.room for moment in moments for _ in range(num_views)],
        intrinsics=tensor(intrinsics).expand(len(extrinsics), 3, 3),
        extrinsics=extrinsics,
    )
