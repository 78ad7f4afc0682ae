"""What learning in imagination costs: the world model's update, imagining, actor and critic.

Of `configs/agent/imagination.yaml` on random sets, for discrete actions and for those of a box.
`world` is an update of the world model, `imagine` imagining from every start of a batch of windows
(with its gradient where actions are of a box), `behaviour` the whole update of actor and critic,
imagining included, and `update` all of it. Milliseconds are of CPU time of this process, or of the
clock on another device; the best round of each counts. `steps/s` are imagined steps of `imagine`.

    python tests/benchmarks/bench_imagination.py [--quick] [--json PATH] [--device cuda]
        [--num-slots 6] [--slot-dim 68] [--set agent.learning.batch_size=32 ...]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl.agents.model_based import ModelBased
from ocrl.agents.replay import Window
from ocrl.agents.world_agent import WorldAgent

CONFIGS = str(Path(__file__).parents[2] / "configs")
ACTIONS = {"discrete": Discrete(4), "box": Box(-1.0, 1.0, (2,))}
Run = Callable[[], Any]


def make(options: argparse.Namespace, kind: str) -> tuple[ModelBased, WorldAgent]:
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        config = compose("agent", overrides=["agent=imagination", *options.set])
    trainer = instantiate(config.agent, _recursive_=False, _convert_="all")
    space = Box(-np.inf, np.inf, (options.num_slots, options.slot_dim), np.float32)
    torch.manual_seed(0)
    network = trainer.network(plain_key="slots", has_order=True)
    return trainer, WorldAgent(space, ACTIONS[kind], network=network).to(options.device)


def draw(trainer: ModelBased, agent: WorldAgent) -> tuple[torch.Tensor, Window]:
    """Random windows in which every tenth frame begins an episode."""
    shape = (trainer.learning.batch_size, agent.world.window_length)
    action = agent.actions.draw(*shape, device=agent.device)
    is_first = torch.rand(shape, device=agent.device) < 0.1
    is_first[:, 0] = True
    ended = torch.zeros_like(is_first)
    ended[:, :-1] = is_first[:, 1:]
    window = Window({}, action, torch.zeros(shape, device=agent.device), ended, ended, is_first)
    rows = torch.randn(*shape, agent.rows.num_rows, agent.rows.row_dim, device=agent.device)
    return rows, window


def parts(trainer: ModelBased, agent: WorldAgent) -> tuple[dict[str, Run], int]:
    """What is timed, and how many steps are imagined in one go."""
    rows, window = draw(trainer, agent)
    world, behaviour = agent.world.train(), agent.behaviour.train()
    optimizer = torch.optim.Adam(world.parameters(), lr=1e-4)
    with torch.no_grad():
        starts = world.starts(rows, window)

    def learn_world() -> None:
        optimizer.zero_grad(set_to_none=True)
        world(rows, window).total.backward()
        optimizer.step()

    def learn_behaviour() -> None:
        behaviour.learn(world, rows, window)

    def update() -> None:
        learn_world()
        learn_behaviour()

    runs: dict[str, Run] = {
        "world": learn_world,
        "imagine": lambda: behaviour.imagine(world, starts),
        "behaviour": learn_behaviour,
        "update": update,
    }
    return runs, len(starts.rows) * behaviour.horizon


def best_times(runs: dict[str, Run], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of the best round of each, after one round that is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if number:
                best[name] = min(best[name], 1e3 * (clock() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure learning in imagination.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-slots", type=int, default=6)
    parser.add_argument("--slot-dim", type=int, default=68)
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    names = ("world", "imagine", "behaviour", "update")
    print(f"{'actions':10}" + "".join(f"{name:>11}" for name in names) + f"{'steps/s':>11}", end="")
    print(f"{'updates/s':>11}")
    rows = []
    for kind in ACTIONS:
        runs, num_imagined = parts(*make(options, kind))
        times = best_times(runs, 2 if options.quick else 10, options.device)
        speed = {
            "steps_per_second": 1e3 * num_imagined / times["imagine"],
            "updates_per_second": 1e3 / times["update"],
        }
        rows.append({"actions": kind, "imagined": num_imagined, **times, **speed})
        print(f"{kind:10}" + "".join(f"{times[name]:11.1f}" for name in names), end="")
        print(f"{speed['steps_per_second']:11.0f}{speed['updates_per_second']:11.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
