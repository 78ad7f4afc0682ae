"""MiniGrid frames beside the official wrappers', in one run and on the same episodes.

python tests/benchmarks/bench_minigrid.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium
import numpy as np
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

import ocrl.envs

TILE_SIZE = 8
IDS = (
    "BabyAI-PutNextLocal-v0",
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-Dynamic-Obstacles-16x16-v0",
    "BabyAI-GoToObjMaze-v0",
)


def official(identity, view, highlight):
    wrapper = RGBImgObsWrapper if view == "full" else RGBImgPartialObsWrapper
    env = gymnasium.make(identity, disable_env_checker=True, highlight=highlight)
    return wrapper(env, tile_size=TILE_SIZE)


def step_time(env, num_steps, look):
    """Seconds of the steps alone: resets make worlds, which is the game's business."""
    actions = np.random.default_rng(0).integers(3, size=num_steps)
    env.reset(seed=0)
    total = 0.0
    for action in actions:
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(int(action))
        look(env)
        total += time.perf_counter() - start
        if terminated or truncated:
            env.reset()
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_steps, repeats = (200, 3) if options.quick else (1000, 5)
    looks = {
        "official": lambda env: None,
        "ours": lambda env: None,
        "ours, masks": lambda env: env.segmentation("scene"),
    }
    results = {}
    columns = "".join(f"{name:>13}" for name in (*looks, "ratio", "with masks"))
    print(f"{'steps a second, tiles of 8 px':52}{columns}")
    for identity in IDS:
        for view, highlight in (("full", True), ("full", False), ("partial", True)):
            ours = ocrl.envs.make(
                "minigrid",
                id=identity,
                view=view,
                highlight=highlight,
                size=None,
                tile_size=TILE_SIZE,
            )
            envs = [official(identity, view, highlight), ours, ours]
            best = dict.fromkeys(looks, np.inf)
            for _ in range(repeats):
                for (name, look), env in zip(looks.items(), envs, strict=True):
                    best[name] = min(best[name], step_time(env, num_steps, look))
            rates = {name: num_steps / seconds for name, seconds in best.items()}
            rates["ratio"] = rates["ours"] / rates["official"]
            rates["with masks"] = rates["ours, masks"] / rates["official"]
            label = f"{identity}, {view}{', highlight' if highlight else ''}"
            results[label] = rates
            numbers = "".join(f"{rates[name]:13.0f}" for name in looks)
            print(f"{label:52}{numbers}{rates['ratio']:13.1f}{rates['with masks']:13.1f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
