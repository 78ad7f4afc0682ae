"""Train every method at one small size on the same frames, and set scores and costs side by side.

    python scripts/compare_methods.py --envs sprites scenes crafter --seeds 0 1 2 --jobs 2

A method is a recipe configs/experiment/small/NAME.yaml: the same backbone, optimiser and steps for
all. What stands after `--` goes to all runs. Episodes are collected once for each environment. Runs
that are finished are not repeated: the table can be asked for again, and a method added to it. Each
run says what it has to say in its log.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from comparison import MODEL, WithDefaults, header, run, score_rows
from launch import num_cores, resumable
from mistakes import CONFIGS, options_of, unknown

_GROUP = "experiment/small"
_METRICS = {
    "video_fg_ari": "video FG-ARI",
    "video_mbo_i": "video mBO",
    "fg_ari": "image FG-ARI",
    "mbo_i": "image mBO",
}
_COSTS = {"train/frames_per_second": "frames/s", "train/peak_megabytes": "MB"}
"""Of the fastest and of the largest of the runs: other work slows a run, nothing speeds it up."""
_NEEDS = {
    "vq_sa": ("start_from", "slot_attention"),
    "dinosaur": ("teacher", "slot_attention"),
    "dinosaur_autoregressive": ("teacher", "slot_attention"),
    "spot": ("teacher", "slot_attention"),
    "spot_student": ("teacher", "spot"),
}
"""The run that a method starts from or learns from, and the option that takes it."""


@resumable()
def main() -> None:
    """Train what is missing, then print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=WithDefaults)
    known = options_of(_GROUP)
    envs = ["sprites", "scenes", "crafter"]
    parser.add_argument("--envs", nargs="+", default=envs, help="as env=NAME")
    parser.add_argument("--methods", nargs="+", default=known, help="as experiment=small/NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run for each")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    output = Path("outputs/compare_methods")
    parser.add_argument("--output", type=Path, default=output, help="folder of runs and table.md")
    parser.add_argument("overrides", nargs="*", default=[], help="for every run, after --")
    arguments = parser.parse_args()
    for group, options, given in (
        ("method", known, arguments.methods),
        ("env", options_of("env"), arguments.envs),
    ):
        for name in given:
            if name not in options:
                parser.error(unknown(group, name, options))
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    rows: list[str] = []
    for env in arguments.envs:
        train(env, arguments)
        rows += rows_of(env, arguments)
    names = ["env", "method", "objects", *_METRICS.values(), *_COSTS.values()]
    text = "\n".join([*header(names), *rows]) + "\n"
    (arguments.output / "table.md").write_text(text)
    sys.stdout.write(text)


def generations(methods: Sequence[str]) -> list[list[str]]:
    """The methods and those they need: first those that need none, then those that need these."""

    def age(method: str) -> int:
        return 1 + age(_NEEDS[method][1]) if method in _NEEDS else 0

    needed = list(methods)
    for method in needed:
        if method in _NEEDS and _NEEDS[method][1] not in needed:
            needed.append(_NEEDS[method][1])
    ages = {method: age(method) for method in needed}
    return [[m for m in needed if ages[m] == number] for number in sorted(set(ages.values()))]


def train(env: str, arguments: argparse.Namespace) -> None:
    """Collect the episodes of an environment and train every method on them."""
    collected = arguments.output / f"{env}-episodes"
    small = yaml.safe_load((CONFIGS / "experiment/small.yaml").read_text())["env"]
    options = [f"env={env}", *(f"env.{name}={value}" for name, value in small.items())]
    run("collect_rollouts", collected, options, done="log.txt", log="log.txt")
    threads = max(1, num_cores() // arguments.jobs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for methods in generations(arguments.methods):
            jobs = [
                pool.submit(
                    run,
                    "pretrain_slots",
                    arguments.output / f"{env}-{method}-{seed}",
                    [
                        f"env={env}",
                        f"trainer.seed={seed}",
                        f"data.path={(collected / 'episodes').as_posix()}",
                        *recipe_of(env, method, seed, arguments.output),
                        *arguments.overrides,
                    ],
                    log="log.txt",
                    threads=threads,
                )
                for seed in arguments.seeds
                for method in methods
            ]
            for job in jobs:
                job.result()


def recipe_of(env: str, method: str, seed: int, output: Path) -> list[str]:
    """The overrides that choose a method, and the run it needs."""
    options = [f"experiment=small/{method}"]
    if method in _NEEDS:
        option, other = _NEEDS[method]
        options.append(f"{option}={(output / f'{env}-{other}-{seed}').as_posix()}")
    return options


def rows_of(env: str, arguments: argparse.Namespace) -> list[str]:
    """The rows of an environment: its methods, then the baselines."""
    rows: list[str] = []
    results: list[Mapping[str, Any]] = []
    for method in arguments.methods:
        runs = [arguments.output / f"{env}-{method}-{seed}" for seed in arguments.seeds]
        results = [json.loads((path / "metrics.json").read_text())["table"] for path in runs]
        metas = [json.loads((path / "checkpoint/meta.json").read_text()) for path in runs]
        costs = [f"{max(m['metrics'][cost] for m in metas):.0f}" for cost in _COSTS]
        rows += score_rows(env, method, results, metrics=_METRICS, more=costs)
    for name in results[0]:
        if name != MODEL:
            empty = [""] * len(_COSTS)
            rows += score_rows(env, name, results, metrics=_METRICS, source=name, more=empty)
    return rows


if __name__ == "__main__":
    main()
