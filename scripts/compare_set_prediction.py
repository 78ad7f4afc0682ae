"""Train encoders to tell the set of objects, under one harness, and compare their precision.

    python scripts/compare_set_prediction.py --env sprites --seeds 0 1 2 -- trainer.max_steps=5000
    python scripts/compare_set_prediction.py --experiment set_prediction_small

Backbone, iterations, heads, loss, coordinate weight, data and steps are the same for all: published
tables differ in each of them. Every run is `train_properties.py` with one recipe; what stands after
`--` goes to all of them. A method may bring options of its own, after commas: vq_sa,start_from=RUN.
Runs that are finished are not repeated. Writes table.md and metrics.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import WithDefaults, cell, header, run
from launch import resumable

_ITERATIONS = {
    "slot_attention": "encoder.num_iterations",
    "slot_mixture": "encoder.num_iterations",
    "vq_sa": "encoder.encoder.num_iterations",
    "slot_mlp": None,
}
"""Where each method has its number of rounds."""


@resumable()
def main() -> None:
    """Train what is missing, then print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=WithDefaults)
    parser.add_argument("--env", default="sprites", help="as env=NAME")
    parser.add_argument("--experiment", default="set_prediction", help="the recipe of all runs")
    parser.add_argument("--methods", nargs="+", default=list(_ITERATIONS), help="as encoder=NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run for each")
    parser.add_argument("--iterations", type=int, default=3, help="rounds, where a method has any")
    output = Path("outputs/compare_set_prediction")
    parser.add_argument(
        "--output", type=Path, default=output, help="folder of runs, table.md and metrics.json"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="for every run, after --")
    arguments = parser.parse_args()
    spec = f"properties@decoder.spec={arguments.env.split('-')[0]}"
    shared = [f"experiment={arguments.experiment}", spec]
    results: dict[str, list[Mapping[str, Any]]] = {}
    episodes: Path | None = None
    for option in arguments.methods:
        method, *own = option.split(",")
        if method not in _ITERATIONS:
            parser.error(f"there is no method {method!r}; there are {', '.join(_ITERATIONS)}")
        where = _ITERATIONS[method]
        own += [] if where is None else [f"{where}={arguments.iterations}"]
        for seed in arguments.seeds:
            directory = arguments.output / f"{arguments.env}-{method}-{seed}"
            options = [f"env={arguments.env}", f"encoder={method}", f"trainer.seed={seed}"]
            if episodes is not None:
                options.append(f"data.path={episodes.as_posix()}")
            run("train_properties", directory, [*options, *shared, *own, *arguments.overrides])
            episodes = episodes or directory / "episodes"
            record = json.loads((directory / "metrics.json").read_text())
            results.setdefault(method, []).append(record)
    figures = {method: spread(records) for method, records in results.items()}
    text = "\n".join(table(figures)) + "\n"
    (arguments.output / "table.md").write_text(text)
    record = {"arguments": {n: str(v) for n, v in vars(arguments).items()}, "methods": figures}
    (arguments.output / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(text)


def spread(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every figure, and what the runs say of themselves.

    The deviation is null for a single seed.
    """
    names = sorted(set.intersection(*(set(record["figures"]) for record in records)))
    figures = {}
    for name in names:
        values = [record["figures"][name] for record in records]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        figures[name] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return {"figures": figures, "num_objects": records[0]["num_objects"]} | dict(
        records[0]["details"]
    )


def table(methods: Mapping[str, Any]) -> list[str]:
    """Average precision in per cent at each distance, and the mean distance, by method."""
    first = next(iter(methods.values()))["figures"]
    names = [name for name in first if name.startswith("ap/")]
    names.sort(key=lambda name: -float(name.partition("/")[2]))
    heads = ["method", "parameters", *(f"AP {name[3:]}" for name in names), "distance"]
    rows = header(heads)
    for method, record in methods.items():
        figures = record["figures"]
        percents = ([100 * value for value in figures[name]["values"]] for name in names)
        cells = [cell(values, digits=1) for values in percents]
        cells.append(cell(figures["distance"]["values"], digits=2))
        rows.append(f"| {' | '.join([method, record['parameters'], *cells])} |")
    return rows


if __name__ == "__main__":
    main()
