"""How long a decision takes: a search over imagined futures, with what was seen read once or again.

Every row plans one step of `--num-envs` environments by CEM over continuous actions, `--horizon`
steps ahead, after a context of `--num-context` frames; float32, one process, rounds of the rows
interleaved, the best of each kept. `apart` is how far the costs of some futures differ between the
rows, in their standard deviation.
- `cached`: as the agents plan. The keys and values of the context are computed once and copied for
  every candidate; an imagined step reads one frame.
- `read again`: the context is read for every candidate of every iteration.
- `re-run`: and all frames are run again at every imagined step, as SOLD's imagination does.

    python tests/benchmarks/bench_planning.py [--quick] [--json PATH] [--device cuda]
        [--searches 64x3 300x30] [--ways cached] [--num-envs 1] [--num-slots 7] [--horizon 5]
        [--num-context 6]
"""

import argparse
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from ocrl.agents.cem import CEM
from ocrl.agents.costs import RewardCost, imagined_cost
from ocrl.agents.set_world import SetWorld
from ocrl.agents.solvers import ActionSpace, Problem
from ocrl.checkpoint import build
from ocrl.slot_world import Dream

ROOT = Path(__file__).parents[2]
MEASURE = runpy.run_path(str(ROOT / "tests/benchmarks/bench_video_encoders.py"))
SLOT_DIM, ACTION_DIM = 64, 2
Costs = Callable[[Tensor], Tensor]


def make_world(device: str) -> SetWorld:
    sizes = [f"+slot_dim={SLOT_DIM}", "+num_actions=0", f"+action_dim={ACTION_DIM}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        built = build(compose(overrides=["+dynamics=transformer", "+outcome=transformer", *sizes]))
    # Layers that start at zero would make all futures cost the same.
    torch.nn.init.normal_(built["dynamics"].output.to_slots.weight, std=0.02)
    torch.nn.init.normal_(built["outcome"].to_reward.weight, std=0.02)
    weights = {"slots": 1.0, "reward": 1.0, "continue": 1.0}
    parts = {"outcome": built["outcome"], "weights": weights}
    return SetWorld(built["dynamics"], **parts, num_context=4, horizon=10).eval().to(device)


def cached(world: SetWorld, slots: Tensor, action: Tensor, is_first: Tensor) -> Costs:
    state = world.read(slots, action, is_first)
    begins = torch.zeros_like(is_first[:, 0])
    return imagined_cost(world, slots[:, -1], state, begins, RewardCost(0.99, ends=True))


def read_again(world: SetWorld, slots: Tensor, action: Tensor, is_first: Tensor) -> Costs:
    def costs(candidates: Tensor) -> Tensor:
        number = candidates.shape[1]
        seen, done, first = (v.repeat_interleave(number, 0) for v in (slots, action, is_first))
        state = world.read(seen, done, first)
        dream = world.imagine(seen[:, -1], state, candidates.flatten(0, 1), candidates.shape[2])
        return RewardCost(0.99, ends=True)(dream).unflatten(0, (-1, number))

    return costs


def re_run(world: SetWorld, slots: Tensor, action: Tensor, is_first: Tensor) -> Costs:
    def costs(candidates: Tensor) -> Tensor:
        number, horizon = candidates.shape[1:3]
        seen, done, first = (v.repeat_interleave(number, 0) for v in (slots, action, is_first))
        flat, done = candidates.flatten(0, 1), done[:, :-1]
        for step in range(horizon):
            done = torch.cat([done, flat[:, step : step + 1]], dim=1)
            seen = torch.cat([seen, world.dynamics(seen, done, first)[:, -1:]], dim=1)
            first = torch.cat([first, torch.zeros_like(first[:, :1])], dim=1)
        imagined = seen[:, -horizon:]
        outcome = world.outcomes(seen[:, -horizon - 1 : -1], flat, imagined)
        dream = Dream(imagined, flat, *outcome, state=None)
        return RewardCost(0.99, ends=True)(dream).unflatten(0, (-1, number))

    return costs


WAYS = {"cached": cached, "read again": read_again, "re-run": re_run}


def measure(search: str, options: argparse.Namespace) -> list[dict[str, object]]:
    number, iterations = (int(word) for word in search.split("x"))
    torch.manual_seed(0)
    world = make_world(options.device)
    shape = (options.num_envs, options.num_context)
    slots = torch.randn(*shape, options.num_slots, SLOT_DIM, device=options.device)
    action = torch.rand(*shape, ACTION_DIM, device=options.device) * 2 - 1
    is_first = torch.zeros(shape, dtype=torch.bool, device=options.device)
    solver = CEM(
        num_candidates=number,
        num_elites=max(1, number // 8),
        num_iterations=iterations,
        std=1.0,
        min_std=0.05,
        momentum=0.1,
    )
    space = ActionSpace(0, (-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM)

    def decide(make: Callable[..., Costs]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            generators = [torch.Generator().manual_seed(e) for e in range(options.num_envs)]
            with torch.no_grad():
                costs = make(world, slots, action, is_first)
                device = torch.device(options.device)
                problem = Problem(
                    costs, space, horizon=options.horizon, generators=generators, device=device
                )
                return solver.solve(problem).action

        return run

    ways = {name: WAYS[name] for name in options.ways}
    runs = {name: decide(make) for name, make in ways.items()}
    some = torch.rand(options.num_envs, 8, options.horizon, ACTION_DIM, device=options.device)
    with torch.no_grad():
        costs = [make(world, slots, action, is_first)(some) for make in ways.values()]
    apart = max(float(((own - costs[0]) / costs[0].std()).abs().max()) for own in costs)
    times = MEASURE["best_times"](runs, 1 if options.quick else 4, options.device)
    return [
        {
            "search": f"{search}xH{options.horizon}",
            "way": name,
            "ms": times[name],
            "speed": max(times.values()) / times[name],
            "futures_per_second": 1e3 * options.num_envs * number * iterations / times[name],
            "costs_apart": apart,
        }
        for name in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the latency of planning.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--searches", nargs="+", default=["64x3", "300x30"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--num-context", type=int, default=6)
    options = parser.parse_args()
    print(f"{'search':14}{'way':14}{'ms':>10}{'speed':>8}{'futures/s':>12}{'apart':>10}")
    rows = []
    for search in options.searches:
        for row in measure(search, options):
            rows.append(row)
            print(
                f"{row['search']:14}{row['way']:14}{row['ms']:10.1f}{row['speed']:7.2f}x"
                f"{row['futures_per_second']:12.0f}{row['costs_apart']:10.1e}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
