"""Crafter against the package's `crafter.Env`: resets, frames, rollouts, masks.

    python tests/benchmarks/bench_crafter.py [--quick] [--size 64] [--json PATH]

Every row is measured in turns with its baseline, in one process, and the best of several rounds
counts. The package uses numba where it is installed (its noise does), so here too; the last row
times its reset without, in a process of its own. Run from the root of a checkout or with `ocrl`
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import crafter
import numpy as np

import ocrl.envs
from ocrl.envs.crafter import CrafterEnv
from ocrl.envs.crafter_world import pregenerate

Timed = Callable[[], float]
"""Runs one round and gives seconds per unit."""

_PLAIN_RESET = (
    "import crafter, time; env = crafter.Env(seed=0); start = time.perf_counter(); env.reset(); "
    "print(time.perf_counter() - start)"
)


def best(rounds: int, *timed: Timed) -> list[float]:
    """The best of several rounds of each, taken in turns."""
    times = [[run() for run in timed] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def resets(env: crafter.Env | CrafterEnv, count: int) -> Timed:
    """Seconds per reset, of other seeds each round."""
    seeds = iter(range(10**6))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            if isinstance(env, CrafterEnv):
                env.reset(seed=next(seeds))
            else:
                env._seed, env._episode = next(seeds), 0
                env.reset()
        return (time.perf_counter() - start) / count

    return run


def frames(draw: Callable[[], object], count: int) -> Timed:
    """Seconds per frame."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            draw()
        return (time.perf_counter() - start) / count

    return run


def their_rollout(env: crafter.Env, steps: int) -> Timed:
    """Seconds per random step, resets included."""

    def run() -> float:
        rng = np.random.default_rng(0)
        env._seed, env._episode = 0, 0
        start = time.perf_counter()
        env.reset()
        for action in rng.integers(0, 17, steps).tolist():
            if env.step(action)[2]:
                env.reset()
        return (time.perf_counter() - start) / steps

    return run


def our_rollout(env: CrafterEnv, steps: int, *, presets: tuple[str, ...] = ()) -> Timed:
    """Seconds per random step, resets and masks included."""

    def run() -> float:
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        env.reset(seed=0)
        for action in rng.integers(0, 17, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            for preset in presets:
                env.segmentation(preset)
            if terminated or truncated:
                env.reset()
        return (time.perf_counter() - start) / steps

    return run


def reset_without_numba() -> float:
    """Seconds of one reset of the package with its noise in plain Python."""
    output = subprocess.run(
        [sys.executable, "-c", _PLAIN_RESET],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(output.stdout)


def measure(size: int, *, quick: bool) -> list[dict[str, object]]:
    """All rows: what, milliseconds of the baseline and ours, ratio, target."""
    rounds, steps, count = (2, 400, 3) if quick else (5, 2000, 10)
    theirs = crafter.Env(size=(size, size), seed=0)
    ours = ocrl.envs.make("crafter", size=size)
    assert isinstance(ours, CrafterEnv)
    with tempfile.TemporaryDirectory() as folder:
        pregenerate(folder, seeds=range(1 + 2 * rounds * count), area=(64, 64))
        cached = ocrl.envs.make("crafter", size=size, world_cache=folder)
        assert isinstance(cached, CrafterEnv)
        # The first calls compile or load what was compiled.
        our_rollout(ours, 30, presets=("entities", "scene"))()
        their_rollout(theirs, 30)()
        reset = best(rounds, resets(theirs, count), resets(ours, count), resets(cached, count))
    theirs._world.daylight = ours._game.world.daylight = 1.0
    day = best(rounds, frames(theirs.render, count * 20), frames(ours._draw, count * 20))
    theirs._world.daylight = ours._game.world.daylight = 0.1
    ours._game._draw_noise()
    night = best(rounds, frames(theirs.render, count * 20), frames(ours._draw, count * 20))
    rollout = best(
        rounds,
        their_rollout(theirs, steps),
        our_rollout(ours, steps),
        our_rollout(ours, steps, presets=("entities", "scene")),
    )
    plain = reset_without_numba()
    rows = [
        ("reset, package without numba", plain, reset[1], 25.0),
        ("reset, package with numba", reset[0], reset[1], None),
        ("reset, pre-generated world, package with numba", reset[0], reset[2], 25.0),
        ("frame by day", day[0], day[1], 6.0),
        ("frame by night", night[0], night[1], 6.0),
        ("random rollout", rollout[0], rollout[1], 8.0),
        ("random rollout with both masks", rollout[0], rollout[2], 6.0),
    ]
    return [
        {
            "what": what,
            "baseline_ms": 1000 * baseline,
            "ours_ms": 1000 * time_,
            "ratio": baseline / time_,
            "target": target,
        }
        for what, baseline, time_, target in rows
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough look in seconds")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the rows")
    arguments = parser.parse_args()
    rows = measure(arguments.size, quick=arguments.quick)
    print(f"{'':48}{'package ms':>12}{'ours ms':>10}{'ratio':>8}{'target':>8}")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.0f}x"
        print(
            f"{row['what']:48}{row['baseline_ms']:12.3f}{row['ours_ms']:10.3f}"
            f"{row['ratio']:7.1f}x{target:>8}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
