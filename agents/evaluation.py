"""Play fixed episodes with an agent and say what came of them, with intervals and a floor.

E environments, N episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ocrl.agents.interface import Agent, Observation, State
from ocrl.agents.statistics import mean_interval

Score = Callable[[NDArray[np.float64]], float]
"""From success rates (achievements,) to one number, such as the Crafter score."""


@dataclass(frozen=True)
class Episodes:
    """What N episodes came to.

    Attributes:
        returns: (N,) sums of rewards.
        lengths: (N,) steps.
        successes: (N,) whether the task was solved; None where the environment has no such thing.
        achievements: (N,) by name, whether each was reached; empty where there are none.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None
    achievements: Mapping[str, NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.returns)


class RandomAgent(Agent):
    """Draws every action from the action space alike: the floor beside every result.

    What it draws follows from its seed and, as with other agents, from torch's random numbers at
    the time of `initial_state`: no two rounds of `play` have the same actions.
    """

    def __init__(self, action_space: gymnasium.Space[Any], *, seed: int) -> None:
        """Set the space of one environment's actions, and the seed of the draws."""
        self._space = action_space
        self._seed = seed

    def initial_state(self, num_envs: int) -> State:
        """A number drawn for the episodes that begin, and that of the next step."""
        return int(torch.randint(2**31, ())), 0

    def act(
        self,
        observation: Observation,
        state: State,
        is_first: NDArray[Any],
        *,
        is_deterministic: bool,
    ) -> tuple[NDArray[Any], State]:
        """Draw an action for each environment, by the seed and the state."""
        number, step = state
        space = batch_space(self._space, len(is_first))
        sequence = np.random.SeedSequence((self._seed, number, step))
        space.seed(int(sequence.generate_state(1)[0]))
        return np.asarray(space.sample()), (number, step + 1)


def episode_seeds(seed: int, num_episodes: int) -> list[int]:
    """The environment's seed of each episode, drawn from those of 31 bits, as training's are."""
    sequence = np.random.SeedSequence((seed, 0xE7A1))
    return [int(number) >> 1 for number in sequence.generate_state(num_episodes)]


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from torch by `seed` inside, and leave the numbers drawn outside as they would be."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def play(
    agent: Agent,
    env: VectorEnv[Any, Any, Any],
    *,
    num_episodes: int,
    seed: int,
    is_deterministic: bool,
) -> Episodes:
    """Play N episodes whose worlds follow from `seed` alone.

    Episode n has the n-th of `episode_seeds`, whoever plays it and however many environments there
    are, so agents can be compared episode by episode. Actions drawn from torch follow from `seed`
    too, and training around it goes on with its own random numbers. All environments start
    together and the slowest one is waited for: counting the first N episodes to end would favour
    short ones.

    Args:
        agent: who plays.
        env: a vector environment that resets in the step that ends an episode.
        num_episodes: N.
        seed: of the worlds.
        is_deterministic: take the likeliest action instead of drawing one.

    Raises:
        ValueError: if the environment resets otherwise, or N is below 1.
    """
    if num_episodes < 1:
        raise ValueError(f"expected at least one episode, got {num_episodes}")
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(f"expected an environment with AutoresetMode.SAME_STEP, got {mode}")
    num_rounds = -(-num_episodes // env.num_envs)
    seeds = episode_seeds(seed, num_rounds * env.num_envs)
    ends: list[_End] = []
    with own_random_numbers(seed):
        for start in range(0, len(seeds), env.num_envs):
            counted = min(env.num_envs, num_episodes - start)
            round_seeds = seeds[start : start + env.num_envs]
            ends += _play_round(agent, env, round_seeds, counted, is_deterministic)
    has_success = all("is_success" in end.info for end in ends)
    names = sorted(ends[0].info.get("achievements", {}))
    return Episodes(
        returns=np.array([end.total for end in ends]),
        lengths=np.array([end.length for end in ends]),
        successes=np.array([bool(end.info["is_success"]) for end in ends]) if has_success else None,
        achievements={
            name: np.array([end.info["achievements"][name] > 0 for end in ends]) for name in names
        },
    )


@dataclass(frozen=True)
class _End:
    total: float
    length: int
    info: Mapping[str, Any]


def _play_round(
    agent: Agent,
    env: VectorEnv[Any, Any, Any],
    seeds: Sequence[int],
    num_counted: int,
    is_deterministic: bool,
) -> list[_End]:
    """One episode in each environment; those of the first `num_counted` environments."""
    observation, _ = env.reset(seed=list(seeds))  # type: ignore[arg-type]
    state = agent.initial_state(num_counted)
    playing = np.arange(num_counted)
    is_first = np.ones(num_counted, dtype=bool)
    total = np.zeros(env.num_envs)
    length = 0
    ends: dict[int, _End] = {}
    while len(playing):
        seen = _of_some(observation, playing)
        own, state = agent.act(seen, state, is_first, is_deterministic=is_deterministic)
        # An environment that is done plays on, and nobody looks at it or thinks about it.
        action = np.repeat(own[:1], env.num_envs, axis=0)
        action[playing] = own
        observation, reward, terminated, truncated, info = env.step(action)
        total += reward
        length += 1
        is_over = (terminated | truncated)[playing]
        for index in playing[is_over].tolist():
            final = _of_environment(info["final_info"], index)
            ends[index] = _End(float(total[index]), length, final)
        if is_over.any():
            state = agent.cut(state, np.flatnonzero(~is_over))
            playing = playing[~is_over]
        is_first = np.zeros(len(playing), dtype=bool)
    return [ends[index] for index in range(num_counted)]


def _of_some(observation: Observation, places: NDArray[np.intp]) -> Observation:
    if isinstance(observation, Mapping):
        return {name: part[places] for name, part in observation.items()}
    return observation[places]


def _of_environment(info: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What a vector environment's info holds of one environment."""
    return {
        key: _of_environment(value, index) if isinstance(value, Mapping) else value[index]
        for key, value in info.items()
        if not key.startswith("_") and info[f"_{key}"][index]
    }


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Episodes of several seeds as one."""
    successes = [part.successes for part in parts if part.successes is not None]
    return Episodes(
        returns=np.concatenate([part.returns for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        successes=np.concatenate(successes) if len(successes) == len(parts) else None,
        achievements={
            name: np.concatenate([part.achievements[name] for part in parts])
            for name in parts[0].achievements
        },
    )


def summarize(episodes: Episodes, *, score: Score | None = None) -> dict[str, Any]:
    """A block of `evaluation.json`: every episode, means, and 95 % bootstrap intervals over them.

    Args:
        episodes: what was played.
        score: of the achievements' success rates; not asked where there are no achievements.
    """
    values: dict[str, NDArray[Any]] = {"return": episodes.returns, "length": episodes.lengths}
    if episodes.successes is not None:
        values["success"] = episodes.successes
    block: dict[str, Any] = {
        "num_episodes": len(episodes),
        "episodes": {name: column.tolist() for name, column in values.items()},
        "mean": {name: float(column.mean()) for name, column in values.items()},
        "achievements": {n: float(own.mean()) for n, own in episodes.achievements.items()} or None,
        "score": None,
        "interval": {name: _interval(column) for name, column in values.items()},
    }
    if score is not None and episodes.achievements:
        reached = np.stack(list(episodes.achievements.values()), axis=1).astype(np.float64)
        block["score"] = float(score(reached.mean(axis=0)))
        block["interval"]["score"] = _interval(reached, score)
    return block


def _interval(values: NDArray[Any], score: Score | None = None) -> list[float] | None:
    interval = mean_interval(values, transform=score)
    return None if interval is None else [float(end) for end in interval]


def evaluate(
    agent: Agent,
    env: VectorEnv[Any, Any, Any],
    *,
    num_episodes: int,
    seeds: Sequence[int],
    is_deterministic: bool,
    score: Score | None = None,
) -> dict[str, Any]:
    """Play `num_episodes` for each of `seeds` and summarise them, see `play` and `summarize`."""
    parts = [
        play(agent, env, num_episodes=num_episodes, seed=seed, is_deterministic=is_deterministic)
        for seed in seeds
    ]
    return summarize(joined(parts), score=score)
