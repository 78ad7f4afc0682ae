"""Train several encoders with the same budget and set their scores beside the baselines'.

    python scripts/compare_encoders.py --envs sprites crafter --encoders psb savi

Every run is `pretrain_slots.py` with the recipe of its environment; what stands after `--` goes to
all of them. An encoder may bring options of its own, after commas: smooth_sa,weights.x=1. Runs
that are finished are not repeated: the table can be asked for again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_METRICS = {"video_fg_ari": "video FG-ARI", "video_mbo_i": "video mBO"}
_BASELINES = ("grid", "k-means")
_PREHEAT = "+objective@objectives.preheat=preheat,+weights.preheat=1.0"
_ENCODERS = ("psb", "savi", f"smooth_sa,{_PREHEAT}")


def main() -> None:
    """Train what is missing, then print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--envs", nargs="+", default=["sprites", "crafter"])
    parser.add_argument("--encoders", nargs="+", default=list(_ENCODERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_encoders"))
    parser.add_argument("overrides", nargs="*", help="for every run, after --")
    arguments = parser.parse_args()
    rows: list[str] = []
    for env in arguments.envs:
        episodes: Path | None = None
        for option in arguments.encoders:
            encoder, *own = option.split(",")
            overrides = [*own, *arguments.overrides]
            results = []
            for seed in arguments.seeds:
                run = arguments.output / f"{env}-{encoder}-{seed}"
                train(run, env, encoder, seed, episodes, overrides)
                episodes = episodes or run / "episodes"
                results.append(json.loads((run / "metrics.json").read_text())["table"])
            rows += table_rows(env, encoder, results)
        rows += [row for name in _BASELINES for row in table_rows(env, name, results, name)]
    text = "\n".join([*header(), *rows]) + "\n"
    (arguments.output / "table.md").write_text(text)
    sys.stdout.write(text)


def train(
    run: Path,
    env: str,
    encoder: str,
    seed: int,
    episodes: Path | None,
    overrides: Sequence[str],
    job: str = "pretrain_slots",
) -> None:
    """Run a job in its own process unless its metrics are there; leave if it fails."""
    if (run / "metrics.json").is_file():
        return
    command = [
        sys.executable,
        str(Path(__file__).with_name(f"{job}.py")),
        f"env={env}",
        f"encoder={encoder}",
        f"trainer.seed={seed}",
        f"hydra.run.dir={run.as_posix()}",
        *([] if episodes is None else [f"data.path={episodes.as_posix()}"]),
        *overrides,
    ]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        sys.exit(code)


def header() -> list[str]:
    """The first two lines of the table."""
    names = ["env", "method", "objects", *_METRICS.values()]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def table_rows(
    env: str, method: str, results: Sequence[Mapping[str, Any]], source: str = "model"
) -> list[str]:
    """One row per preset: mean over seeds, and the spread where there are several."""
    rows = []
    for preset in results[0][source]:
        cells = [env, method, preset]
        for metric in _METRICS:
            values = [result[source][preset][metric] for result in results]
            spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
