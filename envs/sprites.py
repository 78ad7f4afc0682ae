"""A small world of flat shapes: discovery in motion, and tasks that need objects to be solved.

The tasks follow Yoon et al., "An Investigation into Pre-Training Object-Centric Representations for
Reinforcement Learning" (ICML 2023, arXiv:2302.04419); the world, its physics and its drawing are
our own. H W image (H = W = size), M sprites (the agent is row 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ocrl.envs.interface import PRESETS, ObjectEnv, object_dtype
from ocrl.envs.policies_sprites import SpritesBot
from ocrl.envs.registry import unknown
from ocrl.envs.sprites_physics import MOVES, drift, move_agent
from ocrl.envs.sprites_render import COLORS, SHAPES, draw, outline_table, tight_boxes
from ocrl.envs.sprites_scenes import SPLITS, TASKS, SceneSampler, pair_of

_OUTLINES = outline_table()
_PALETTE = np.array(list(COLORS.values()), dtype=np.uint8)
_LAYOUT_TRIES = 200
_POSITION_TRIES = 50


class SpritesEnv(ObjectEnv):
    """Shapes on a plain ground; one of them is the agent.

    Tasks (`task`). In all but `free` touching an object ends the episode, with reward 1 where it
    was the right one, and `info["is_success"]` says so:
      - `free`: no reward, no end but `max_steps`; the agent pushes everything it meets. For
        discovery and world models.
      - `object_goal`: touch the object that looks like `target`.
      - `object_interaction`: push the object that looks like `target` within `goal_radius` of
        `goal`, an unmarked place. Touching it does not end the episode, touching another does.
      - `object_comparison`: touch the object that differs from all others, which are alike. It
        differs in one property (shape, colour or size), another one in every episode.
      - `property_comparison`: the others differ too, but every value of every property occurs
        twice or more, except one value of the object to touch.
      - `reach`: `object_goal` from anywhere instead of from the centre, with the progress towards
        the target added to the reward.

    What differs from the paper: sprites collide as their circumscribed circles and a move ends at
    the contact, so that nothing overlaps unless `occlusion`; a pushed sprite slides in the
    direction of the move; the paper's fifth task (reaching in a 3-D simulator) is played in this
    world; objects can move by themselves.

    A sprite's size is the diameter of its circumscribed circle, and all lengths are in sides of the
    image. `scene` equals `entities`: the ground is one region and background. Categories are
    agent and object; the attributes hold the places in `SHAPES` and `COLORS`, the size, and whether
    the object is the one that the task is about.
    """

    categories = ("agent", "object")
    attribute_names = ("shape", "color", "size", "is_target")
    attribute_classes = MappingProxyType({"shape": tuple(SHAPES), "color": tuple(COLORS)})
    hidden_attributes = ("is_target",)
    render_mode = "rgb_array"

    def __init__(
        self,
        task: str,
        *,
        size: int,
        num_objects: int | Sequence[int],
        shapes: Sequence[str],
        colors: Sequence[str],
        object_sizes: Sequence[float],
        held_out: Sequence[Sequence[str]],
        split: str,
        agent: Sequence[str],
        agent_size: float,
        target: Sequence[str],
        goal: Sequence[float],
        goal_radius: float,
        action_kind: str,
        step_size: float,
        speed: float,
        occlusion: bool,
        gap: float,
        max_steps: int,
        background: Sequence[int],
    ) -> None:
        """Set up a world.

        Args:
            task: one of `TASKS`.
            size: pixels of a side of the image.
            num_objects: how many objects, without the agent, or the least and the most of them.
            shapes: names from `SHAPES`.
            colors: names from `COLORS`.
            object_sizes: sizes of objects.
            held_out: pairs [shape, colour] that never meet in the split `train`.
            split: `train` (no held-out pair), `held_out` (at least one in every scene) or `all`.
            agent: shape and colour of the agent; no object has both.
            agent_size: size of the agent.
            target: shape and colour of the object that tasks with a fixed target ask for.
            goal: x and y of the place to push to.
            goal_radius: how near to it the centre of the pushed object has to come.
            action_kind: `discrete` (up, down, left, right) or `continuous` (x and y in [-1,1]).
            step_size: how far an action of length 1 moves the agent.
            speed: mean speed of the objects in sides a step; 0 for objects that stay.
            occlusion: objects may overlap, the first on top. At the start no centre is covered, and
                the agent overlaps objects in `free` only.
            gap: least free distance between two sprites at the start.
            max_steps: episodes are truncated after so many steps.
            background: red, green and blue of the ground.

        Raises:
            ValueError: if an argument names what does not exist or the task cannot be posed.
        """
        _check_choice("task of sprites", task, TASKS)
        _check_choice("split of sprites", split, SPLITS)
        _check_choice("action_kind of sprites", action_kind, ("discrete", "continuous"))
        for shape in shapes:
            _check_choice("shape", shape, SHAPES)
        for color in colors:
            _check_choice("colour", color, tuple(COLORS))
        self.task = task
        self.size = size
        self.step_size = step_size
        self.goal = np.asarray(goal, dtype=np.float64)
        self.goal_radius = goal_radius
        bounds = (num_objects, num_objects) if isinstance(num_objects, int) else tuple(num_objects)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(
                f"num_objects: expected one number or [least, most], got {num_objects}"
            )
        self._num_objects = bounds
        self.max_objects = bounds[1] + 1
        self._object_sizes = np.asarray(object_sizes, dtype=np.float64)
        self._agent_look = pair_of(agent, "agent")
        self._agent_size = agent_size
        self._sampler = SceneSampler(
            task=task,
            shapes=tuple(SHAPES.index(name) for name in shapes),
            colors=tuple(tuple(COLORS).index(name) for name in colors),
            num_sizes=len(object_sizes),
            agent=self._agent_look,
            target=pair_of(target, "target"),
            held_out=frozenset(pair_of(pair, "held_out") for pair in held_out),
            split=split,
        )
        self._sampler.check(bounds[0])
        least_reach = (agent_size + float(self._object_sizes.min())) / 2
        if not 0.0 < step_size <= least_reach:
            raise ValueError(
                f"step_size: expected a number in (0,{least_reach:g}], with which the agent cannot "
                f"jump over the smallest object, got {step_size}"
            )
        self._speed = speed
        self._is_solid = not occlusion
        self._is_agent_solid = not occlusion or task != "free"
        self._gap = gap
        self._max_steps = max_steps
        self._background = np.asarray(background, dtype=np.uint8)
        self._is_discrete = action_kind == "discrete"
        self.action_names = ("up", "down", "left", "right") if self._is_discrete else ()
        self._ids = np.zeros((size, size), dtype=np.uint16)
        self._bot = SpritesBot()
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = (
            gymnasium.spaces.Discrete(len(MOVES))
            if self._is_discrete
            else gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: if the sprites find no room or the split allows no scene.
        """
        super().reset(seed=seed)
        rng = self.np_random
        count = int(rng.integers(self._num_objects[0], self._num_objects[1] + 1))
        scene = self._sampler.sample(rng, count)
        self.target = scene.target + 1
        sizes = np.concatenate([[self._agent_size], self._object_sizes[scene.look[:, 2]]])
        self.radii = sizes / 2
        look = np.concatenate([[self._agent_look], scene.look[:, :2]])
        self._look = look
        self._outlines = _OUTLINES[look[:, 0]]
        self._colors = _PALETTE[look[:, 1]]
        self.positions = self._layout(rng)
        angles = rng.uniform(0.0, 2.0 * np.pi, count + 1)
        lengths = self._speed * rng.uniform(0.5, 1.5, count + 1)
        lengths[0] = 0.0
        self._velocities = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
        self.pushable = np.full(count + 1, self.task == "free")
        if self.task == "object_interaction":
            self.pushable[self.target] = True
        self._num_steps = 0
        self._bot.reset()
        return self._draw(), {"is_success": False}

    def _layout(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Places (M,2) for all sprites, the agent in the centre where the task says so."""
        for _ in range(_LAYOUT_TRIES):
            positions = np.full((len(self.radii), 2), 0.5)
            start = 0 if self.task in ("free", "reach") else 1
            for row in range(start, len(self.radii)):
                radius = self.radii[row]
                is_pushed = self.task == "object_interaction" and row == self.target
                # Behind what is to be pushed there has to be room for the agent, on every side.
                margin = radius + (2.0 * self.radii[0] + self.step_size) * is_pushed
                places = rng.uniform(margin, 1.0 - margin, (_POSITION_TRIES, 2))
                away = np.linalg.norm(places[:, None] - positions[None, :row], axis=-1)
                least = self.radii[:row] + radius + self._gap
                if not self._is_solid:
                    overlapping = np.maximum(self.radii[:row], radius)
                    least = np.where(np.arange(row) > 0, overlapping, least)
                is_free = (away >= least).all(axis=1)
                if is_pushed:
                    is_free &= np.linalg.norm(places - self.goal, axis=1) > self.goal_radius
                if not is_free.any():
                    break
                positions[row] = places[is_free.argmax()]
            else:
                return positions
        raise ValueError(
            f"expected sprites that find room beside each other, got {len(self.radii)} of sizes "
            f"{', '.join(f'{2 * radius:g}' for radius in self.radii)} with gap {self._gap:g}: "
            f"take fewer or smaller ones, or a smaller gap"
        )

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the agent, then the objects.

        Raises:
            ValueError: if the action is none of the action space's.
        """
        delta = self._delta(action)
        before = self._distance_to_target() if self.task == "reach" else 0.0
        touched = move_agent(self.positions, self.radii, delta, self.pushable, self._is_agent_solid)
        if self._speed > 0.0:
            hit = drift(
                self.positions, self._velocities, self.radii, self._is_solid, self._is_agent_solid
            )
            touched = touched or (0 if self.pushable[hit] else hit)
        self._num_steps += 1
        is_success = False
        if self.task == "object_interaction":
            away = self.positions[self.target] - self.goal
            is_success = bool(away @ away <= self.goal_radius**2)
        elif self.task != "free":
            is_success = touched == self.target
        reward = float(is_success)
        if self.task == "reach":
            reward += before - self._distance_to_target()
        terminated = is_success or touched > 0
        truncated = not terminated and self._num_steps >= self._max_steps
        return self._draw(), reward, terminated, truncated, {"is_success": is_success}

    def _delta(self, action: Any) -> NDArray[np.float64]:
        if self._is_discrete:
            if not 0 <= action < len(MOVES):
                raise ValueError(f"expected an action from 0 to {len(MOVES) - 1}, got {action}")
            return MOVES[int(action)] * self.step_size
        move = np.asarray(action, dtype=np.float64)
        if move.shape != (2,) or not np.isfinite(move).all():
            raise ValueError(f"expected an action of two numbers in [-1,1], got {action}")
        return np.clip(move, -1.0, 1.0) * self.step_size

    def _distance_to_target(self) -> float:
        away = self.positions[self.target] - self.positions[0]
        return float(np.sqrt(away @ away))

    def _draw(self) -> NDArray[np.uint8]:
        frame = np.empty((self.size, self.size, 3), dtype=np.uint8)
        draw(
            frame,
            self._ids,
            self._background,
            self.positions,
            self.radii,
            self._outlines,
            self._colors,
        )
        return frame

    def render(self) -> NDArray[np.uint8]:
        """The current frame (H,W,3)."""
        return self._draw()

    def segmentation(self, preset: str = "entities") -> NDArray[np.uint16]:
        """Sprite ids (H,W): the agent 1, objects from 2 on; see `ObjectEnv.segmentation`."""
        if preset not in PRESETS:
            raise ValueError(unknown("preset", preset, PRESETS))
        return self._ids.copy()

    def objects(self) -> NDArray[np.void]:
        """The sprites with at least one pixel; boxes are tight around the visible pixels."""
        boxes = tight_boxes(self._ids, len(self.radii))
        visible = np.flatnonzero(boxes[:, 2] > 0)
        table = np.zeros(len(visible), dtype=object_dtype(len(self.attribute_names)))
        table["id"] = visible + 1
        table["category"] = visible > 0
        table["position"] = self.positions[visible]
        table["box"] = boxes[visible] / self.size
        table["attributes"][:, :2] = self._look[visible]
        table["attributes"][:, 2] = 2.0 * self.radii[visible]
        table["attributes"][:, 3] = (visible == self.target) & (visible > 0)
        return table

    def scripted_action(self, rng: np.random.Generator) -> Any:
        """What the scripted player does now, see `SpritesBot`; random in part, by `rng` alone."""
        direction = self._bot(self, rng)
        if self._is_discrete:
            return int(np.argmax(MOVES @ direction))
        return direction.astype(np.float32)


def _check_choice(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(unknown(kind, name, known))
