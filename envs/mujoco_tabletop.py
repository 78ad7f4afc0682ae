"""A hand among distinct solids on a table, in MuJoCo: reach the one of a colour, or push it home.

Physics is MuJoCo's; pictures are by its own renderer or by our ray caster. V views, H W image
(H = W = size), M solids: the hand, the objects, and the marked place if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import EXTRINSICS, INTRINSICS, PRESETS, ObjectEnv, object_dtype
from ocrl.envs.mujoco_draw import RENDERERS, MujocoPainter, Painter, RayPainter
from ocrl.envs.mujoco_model import GOAL_HEIGHT, load_mujoco, model_xml
from ocrl.envs.registry import unknown
from ocrl.envs.scenes3d_geometry import BLUE, BOUND, HALF_HEIGHT, RED, solid_rows
from ocrl.envs.scenes3d_rooms import PALETTE
from ocrl.envs.scenes_camera import look_at, pinhole, project
from ocrl.envs.scenes_geometry import CYLINDER, SHAPES, SPHERE, body_table
from ocrl.envs.scenes_render import linear_colors
from ocrl.envs.scenes_sampler import place
from ocrl.envs.sprites_render import tight_boxes

TASKS = ("reach", "push")
ACTION_KINDS = ("discrete", "continuous")
ATTRIBUTES = ("shape", "color", "radius", "x", "y", "z", "is_target")
_MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
"""The discrete actions: stay, left, right, away, near."""
_TARGET = np.array([0.0, 0.0, 0.3])
_HAND_COLOR, _GOAL_COLOR = "white", "black"
_LAYOUT_TRIES = 200
_AIM = 0.15
"""The player pushes what it is lined up with to so much."""
_CARE, _STANCE = 0.35, 0.2
"""So near it goes around what it shall not touch, and so far it stands off what it will push."""


class TabletopEnv(ObjectEnv):
    """A white ball moves among spheres, cubes and cylinders of different colours.

    Tasks (`task`), after those of `SpritesEnv`; touching an object other than the target ends the
    episode without a reward, and `info["is_success"]` says whether the task is done:
      - `reach`: touch the object of colour `target`.
      - `push`: bring its centre within `goal_radius` of that of a marked place.

    The reward is 1 at success, with `is_dense` also the progress of each step: by how much the hand
    came nearer to the target, or the target to the marked place, as a share of the way from the
    target to the middle of what it goes to at the start.

    Actions move the hand as the first camera sees it: stay, left, right, away, near; or x (right)
    and y (away) in [-1,1].

    With several cameras a V axis comes first in observations, masks, depth, and in the position and
    box of `objects()`; with one there is none. Ids are 1 for the hand, then the objects', then the
    marked place's. Categories are agent, object and goal; `scene` equals `entities`. Attributes are
    the places in `SHAPES` and `PALETTE`, the radius, the centre in the world, and whether it is the
    target.
    """

    categories = ("agent", "object", "goal")
    attribute_names = ATTRIBUTES
    attribute_classes = MappingProxyType({"shape": SHAPES, "color": tuple(PALETTE)})
    hidden_attributes = ("is_target",)
    render_mode = "rgb_array"

    def __init__(
        self,
        task: str,
        *,
        size: int,
        shapes: Sequence[str],
        object_sizes: Sequence[float],
        colors: Sequence[str],
        target: str,
        hand_radius: float,
        hand_speed: float,
        goal_radius: float,
        arena: float,
        gap: float,
        action_kind: str,
        is_dense: bool,
        cameras: Sequence[Sequence[float]],
        field_of_view: float,
        renderer: str,
        supersampling: int,
        depth: bool,
        device: str,
        num_substeps: int,
        max_steps: int,
    ) -> None:
        """Set up a table.

        Args:
            task: one of `TASKS`.
            size: pixels of a side of the image.
            shapes: names from `SHAPES`, one for each object.
            object_sizes: their radii in units of the world, see `body_table`.
            colors: names from `PALETTE` that objects other than the target have, each one another.
            target: colour of the object that the task is about; which of them has it is drawn.
            hand_radius: of the ball.
            hand_speed: units a second at full speed.
            goal_radius: of the marked place of `push`.
            arena: radius of the circle that unseen borders keep everything in.
            gap: least free distance between two bodies at the start.
            action_kind: `discrete` or `continuous`.
            is_dense: whether progress is rewarded.
            cameras: azimuth, elevation (in degrees) and distance of each, around the middle.
            field_of_view: between the left and the right border of the image, in degrees.
            renderer: `mujoco`, which needs an OpenGL library, or `rays`, which does not.
            supersampling: samples across a pixel, for `rays`.
            depth: whether rollouts keep depth maps.
            device: where `rays` draws.
            num_substeps: steps of 0.01 seconds that an action lasts.
            max_steps: episodes are truncated after so many steps.

        Raises:
            ValueError: if an argument names what does not exist or the task cannot be posed.
            ImportError: if MuJoCo is not installed.
            OSError: with `renderer` mujoco, if there is no OpenGL library.
        """
        for kind, name, known in (
            ("task of the table top", task, TASKS),
            ("action_kind of the table top", action_kind, ACTION_KINDS),
            ("renderer of the table top", renderer, RENDERERS),
            *(("shape", shape, SHAPES) for shape in shapes),
            *(("colour", color, tuple(PALETTE)) for color in (*colors, target)),
        ):
            if name not in known:
                raise ValueError(unknown(kind, name, known))
        self._check(shapes, object_sizes, colors, target, cameras)
        self.task = task
        self.size = size
        self._shapes = np.array([SHAPES.index(shape) for shape in shapes])
        self._radii = np.array(object_sizes, float)
        self._colors = [color for color in dict.fromkeys(colors) if color != target]
        self._target_color = target
        self._hand_radius = hand_radius
        self._hand_speed = hand_speed
        self._goal_radius = goal_radius
        self._arena = arena
        self._gap = gap
        self._is_dense = is_dense
        self._keeps_depth = depth
        self._num_substeps = num_substeps
        self._max_steps = max_steps
        self.num_cameras = len(cameras)
        self._num_views = len(cameras) if len(cameras) > 1 else None
        self._extrinsics = np.stack([look_at(*camera, target=_TARGET) for camera in cameras])
        self._intrinsics = pinhole(size, field_of_view)
        self._field_of_view = field_of_view
        self._build()
        self.max_objects = len(self._bodies)
        self._painter = self._painter_of(renderer, supersampling, device)
        views = () if self._num_views is None else (self._num_views,)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*views, size, size, 3), np.uint8)
        self._is_discrete = action_kind == "discrete"
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        if self._is_discrete:
            self.action_space = gymnasium.spaces.Discrete(len(_MOVES))
            self.action_names = ("stay", "left", "right", "away", "near")
        self.attribute_limits = {"x": arena, "y": arena}

    def _check(
        self,
        shapes: Sequence[str],
        object_sizes: Sequence[float],
        colors: Sequence[str],
        target: str,
        cameras: Sequence[Sequence[float]],
    ) -> None:
        if not shapes or len(shapes) != len(object_sizes):
            raise ValueError(
                f"expected one of object_sizes for each of the {len(shapes)} shapes, got "
                f"{len(object_sizes)}"
            )
        others = set(colors) - {target, _HAND_COLOR, _GOAL_COLOR}
        if len(others) < len(shapes) - 1 or target in (_HAND_COLOR, _GOAL_COLOR):
            raise ValueError(
                f"expected {len(shapes) - 1} colors or more beside the target's, none of them the "
                f"hand's {_HAND_COLOR} or the marked place's {_GOAL_COLOR}, got {list(colors)} and "
                f"target {target}"
            )
        if not cameras or any(len(camera) != 3 for camera in cameras):
            raise ValueError(
                "expected cameras as [azimuth, elevation, distance] each, at least one, got "
                f"{[list(camera) for camera in cameras]}"
            )

    def _build(self) -> None:
        """Make the simulation, and the rows that the ray caster draws."""
        mujoco = load_mujoco()
        has_goal = self.task == "push"
        text = model_xml(
            shapes=self._shapes.tolist(),
            radii=self._radii.tolist(),
            hand_radius=self._hand_radius,
            goal_radius=self._goal_radius if has_goal else None,
            arena=self._arena,
            extrinsics=self._extrinsics,
            field_of_view=self._field_of_view,
            size=self.size,
        )
        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_string(text)
        self._data = mujoco.MjData(self._model)
        objects = [f"object{number}" for number in range(len(self._shapes))]
        self._bodies = ["hand", *objects, *(["goal"] if has_goal else [])]
        self._geoms = [int(self._model.body(name).geomadr[0]) for name in self._bodies]
        kinds = np.array([SPHERE, *self._shapes, *([CYLINDER] if has_goal else [])])
        goal = [self._goal_radius] if has_goal else []
        self._sizes = np.array([self._hand_radius, *self._radii, *goal])
        count = len(kinds)
        table = body_table(
            kinds,
            self._sizes,
            np.zeros((count, 2)),
            np.zeros(count),
            np.zeros((count, 3)),
            np.zeros(count, bool),
        )
        self._heights = table[1 : 1 + len(objects), 3].copy()
        self._rows = solid_rows(table)
        if has_goal:
            self._rows[-1, HALF_HEIGHT], self._rows[-1, BOUND] = (
                GOAL_HEIGHT,
                self._goal_radius + 0.1,
            )
        self._kinds = kinds

    def _painter_of(self, renderer: str, supersampling: int, device: str) -> Painter:
        if renderer == "mujoco":
            return MujocoPainter(self._model, self._data, bodies=self._bodies, size=self.size)
        return RayPainter(
            self._model,
            self._data,
            bodies=self._bodies,
            rows=self._rows,
            intrinsics=self._intrinsics,
            extrinsics=self._extrinsics,
            size=self.size,
            supersampling=supersampling,
            device=device,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: if the bodies find no room.
        """
        super().reset(seed=seed)
        rng = self.np_random
        # What is to be pushed needs room for the hand behind it.
        room = self._arena - (2.0 * self._hand_radius if self.task == "push" else 0.0)
        for _ in range(_LAYOUT_TRIES):
            places = place(rng, self._sizes, arena=room, gap=self._gap)
            if places is not None:
                break
        else:
            raise ValueError(
                f"found no places in {_LAYOUT_TRIES} tries for {len(self._sizes)} bodies in arena "
                f"{room:g} with gap {self._gap:g}: take fewer or smaller ones, or more room"
            )
        count = len(self._shapes)
        self.target = int(rng.integers(count))
        others = rng.choice(self._colors, size=count - 1, replace=False).tolist()
        others.insert(self.target, self._target_color)
        goal = [_GOAL_COLOR] if self.task == "push" else []
        self._paint([_HAND_COLOR, *others, *goal])
        self._put(places, rng.uniform(0.0, 2.0 * np.pi, count))
        self._num_steps = 0
        self._start_distance = max(self._distance(), 1e-6)
        self._last_distance = self._start_distance
        return self._look(), {"is_success": False}

    def _paint(self, colors: Sequence[str]) -> None:
        self._looks = np.array([list(PALETTE).index(color) for color in colors])
        values = np.array([PALETTE[color] for color in colors])
        self._model.geom_rgba[self._geoms, :3] = values / 255.0
        self._rows[:, RED : BLUE + 1] = linear_colors(values)

    def _put(self, places: NDArray[np.float64], turns: NDArray[np.float64]) -> None:
        """Put all bodies where they start, at rest."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:2] = places[0]
        for number, turn in enumerate(turns):
            joint = self._data.qpos[2 + 7 * number : 9 + 7 * number]
            joint[:2], joint[2] = places[1 + number], self._heights[number]
            joint[3:] = [math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2)]
        if self.task == "push":
            self._data.mocap_pos[0] = [*places[-1], GOAL_HEIGHT]
        self._mujoco.mj_forward(self._model, self._data)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the hand for a while.

        Raises:
            ValueError: if the action is none of the action space's.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"expected an action in {self.action_space}, got {action}")
        right, away = _MOVES[int(action)] if self._is_discrete else np.asarray(action, float)
        pose = self._extrinsics[0]
        ahead = _unit(pose[:2, 2])
        self._data.ctrl[:] = self._hand_speed * (right * pose[:2, 0] + away * ahead)
        touched: set[int] = set()
        for _ in range(self._num_substeps):
            self._mujoco.mj_step(self._model, self._data)
            touched |= self._touched()
            # Nobody can act between the substeps: what a task ends at ends them.
            if touched - ({self.target} if self.task == "push" else set()):
                break
        self._num_steps += 1
        distance = self._distance()
        is_wrong = bool(touched - {self.target})
        if self.task == "reach":
            is_success = self.target in touched and not is_wrong
        else:
            is_success = distance <= self._goal_radius and not is_wrong
        reward = float(is_success)
        if self._is_dense:
            reward += (self._last_distance - distance) / self._start_distance
        self._last_distance = distance
        is_over = is_success or is_wrong
        is_late = self._num_steps >= self._max_steps and not is_over
        return self._look(), float(reward), is_over, is_late, {"is_success": is_success}

    def _touched(self) -> set[int]:
        """The numbers of the objects that the hand touches."""
        geoms, hand = self._geoms, self._geoms[0]
        pairs = self._data.contact.geom[: self._data.ncon]
        others = np.where(pairs[:, 0] == hand, pairs[:, 1], pairs[:, 0])
        is_hand = (pairs == hand).any(axis=1)
        found = {int(geom) for geom in others[is_hand]}
        return {number for number in range(len(self._shapes)) if geoms[1 + number] in found}

    def _distance(self) -> float:
        """How far the task's body is from where it has to be, in the plane."""
        centers = self._centers()
        other = centers[0] if self.task == "reach" else centers[-1]
        return float(np.linalg.norm(centers[1 + self.target, :2] - other[:2]))

    def _centers(self) -> NDArray[np.float64]:
        """(M,3)."""
        return self._data.geom_xpos[self._geoms].copy()

    def _look(self) -> NDArray[np.uint8]:
        self._frames = self._painter.frames()
        self._seen: NDArray[np.uint16] | None = None
        return self._views(self._frames).copy()

    def _views(self, array: NDArray[Any]) -> NDArray[Any]:
        """Without the V axis where there is one camera only."""
        return array[0] if self._num_views is None else array

    def _ids(self) -> NDArray[np.uint16]:
        """(V,H,W), drawn when they are first asked for."""
        if self._seen is None:
            self._seen = self._painter.ids()
        return self._seen

    def render(self) -> NDArray[np.uint8]:
        """The current frame (H,V*W,3), views side by side."""
        return np.concatenate(list(self._frames), axis=1)

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Ids ([V,]H,W): the hand 1, then the objects, then the marked place."""
        if preset not in PRESETS:
            raise ValueError(unknown("preset", preset, PRESETS))
        return self._views(self._ids()).copy()

    def depth(self) -> NDArray[np.float32]:
        """Depth ([V,]H,W) along the cameras' axes, in units of the world."""
        return self._views(self._painter.depth())

    def intrinsics(self) -> NDArray[np.float64]:
        """(V,3,3) in pixels, V = 1 without a V axis; see `ocrl.types.Camera`."""
        return np.broadcast_to(self._intrinsics, (len(self._extrinsics), 3, 3)).copy()

    def extrinsics(self) -> NDArray[np.float64]:
        """(V,4,4) camera to world, likewise."""
        return self._extrinsics.copy()

    def cameras(self) -> dict[str, NDArray[np.float32]]:
        """See `ObjectEnv.cameras`."""
        return {
            INTRINSICS: self.intrinsics().astype(np.float32),
            EXTRINSICS: self.extrinsics().astype(np.float32),
        }

    def extras(self) -> dict[str, NDArray[Any]]:
        """Cameras in float32 and, where asked for, depth in float16."""
        extras: dict[str, NDArray[Any]] = dict(self.cameras())
        if self._keeps_depth:
            extras["depth"] = self.depth().astype(np.float16)
        return extras

    def objects(self) -> NDArray[np.void]:
        """What has a pixel in at least one view; boxes are tight around visible pixels."""
        ids, centers = self._ids(), self._centers()
        boxes = np.stack([tight_boxes(view, len(self._bodies)) for view in ids], axis=1)
        is_seen = boxes[..., 2] > 0
        rows = np.flatnonzero(is_seen.any(axis=1))
        cameras = zip(self.intrinsics(), self._extrinsics, strict=True)
        places = np.stack([project(centers, *camera)[0] for camera in cameras], axis=1)
        boxes = np.where(is_seen[..., None], boxes / self.size, -1.0)
        table = np.zeros(len(rows), object_dtype(len(ATTRIBUTES), num_views=self._num_views))
        one = slice(None) if self._num_views is not None else 0
        table["id"] = rows + 1
        table["category"] = np.array([0, *[1] * len(self._shapes), 2])[rows]
        table["position"] = places[rows][:, one] / self.size
        table["box"] = boxes[rows][:, one]
        table["attributes"][:, 0] = self._kinds[rows]
        table["attributes"][:, 1] = self._looks[rows]
        table["attributes"][:, 2] = self._sizes[rows]
        table["attributes"][:, 3:6] = centers[rows]
        table["attributes"][:, 6] = rows == 1 + self.target
        return table

    def scripted_action(self, rng: np.random.Generator) -> Any:
        """Go for the target; to push it, first to its far side. Around whatever is in between."""
        centers = self._centers()[:, :2]
        hand, target = centers[0], centers[1 + self.target]
        goal = target
        if self.task == "push":
            way = _unit(centers[-1] - target)
            reach = self._hand_radius + self._radii[self.target]
            behind = target - (reach + _STANCE) * way
            gap = target - hand
            is_behind = gap @ way > 0.7 * reach
            off = abs(gap[0] * way[1] - gap[1] * way[0])
            goal = target if is_behind and off < _AIM else behind
        step = self._around(hand, goal, centers[1 : 1 + len(self._shapes)], goal is target)
        pose = self._extrinsics[0]
        ahead = _unit(pose[:2, 2])
        move = np.array([step @ pose[:2, 0], step @ ahead])
        if self._is_discrete:
            return int(np.argmax(_MOVES @ move)) if np.linalg.norm(move) > 1e-3 else 0
        return np.clip(move + 0.05 * rng.normal(size=2), -1.0, 1.0).astype(np.float32)

    def _around(
        self,
        hand: NDArray[np.float64],
        goal: NDArray[np.float64],
        objects: NDArray[np.float64],
        may_touch: bool,
    ) -> NDArray[np.float64]:
        """A direction (2,) towards a goal that bends away from objects that are near."""
        step = _unit(goal - hand)
        for number, center in enumerate(objects):
            if number == self.target and may_touch:
                continue
            gap = hand - center
            care = 0.5 * _STANCE if number == self.target else _CARE
            reach = self._hand_radius + self._radii[number] + care
            near = float(np.linalg.norm(gap))
            if near < reach and step @ gap < 0.0:
                side = np.array([-gap[1], gap[0]]) / near
                side = side if side @ (goal - hand) >= 0.0 else -side
                step = side + 0.6 * (reach - near) / care * gap / near
        # No further than to the goal, unless that is what is pushed.
        stride = self._hand_speed * 0.01 * self._num_substeps
        share = 1.0 if may_touch else min(1.0, float(np.linalg.norm(goal - hand)) / stride)
        return share * _unit(step)

    def close(self) -> None:
        """Free what draws."""
        if isinstance(self._painter, MujocoPainter):
            self._painter.close()


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
