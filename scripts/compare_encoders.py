"""Train several encoders with the same budget and set their scores beside the baselines'.

    python scripts/compare_encoders.py --envs sprites crafter --encoders psb savi

Every run is `pretrain_slots.py` with the recipe of its environment; what stands after `--` goes to
all of them. An encoder may bring options of its own, after commas: smooth_sa,weights.x=1. Runs
that are finished are not repeated: the table can be asked for again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from comparison import MODEL, WithDefaults, header, run, score_rows
from launch import resumable

_METRICS = {"video_fg_ari": "video FG-ARI", "video_mbo_i": "video mBO"}
_PREHEAT = "+objective@objectives.preheat=preheat,+weights.preheat=1.0"
_ENCODERS = ("psb", "savi", f"smooth_sa,{_PREHEAT}")


@resumable()
def main() -> None:
    """Train what is missing, then print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=WithDefaults)
    parser.add_argument("--envs", nargs="+", default=["sprites", "crafter"], help="as env=NAME")
    parser.add_argument("--encoders", nargs="+", default=list(_ENCODERS), help="as encoder=NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a run for each")
    output = Path("outputs/compare_encoders")
    parser.add_argument("--output", type=Path, default=output, help="folder of runs and table.md")
    parser.add_argument("overrides", nargs="*", default=[], help="for every run, after --")
    arguments = parser.parse_args()
    rows: list[str] = []
    for env in arguments.envs:
        episodes: Path | None = None
        for option in arguments.encoders:
            encoder, *own = option.split(",")
            overrides = [*own, *arguments.overrides]
            results = []
            for seed in arguments.seeds:
                directory = arguments.output / f"{env}-{encoder}-{seed}"
                options = [f"env={env}", f"encoder={encoder}", f"trainer.seed={seed}"]
                if episodes is not None:
                    options.append(f"data.path={episodes.as_posix()}")
                run("pretrain_slots", directory, [*options, *overrides])
                episodes = episodes or directory / "episodes"
                results.append(json.loads((directory / "metrics.json").read_text())["table"])
            rows += score_rows(env, encoder, results, metrics=_METRICS)
        for name in results[0]:
            if name != MODEL:
                rows += score_rows(env, name, results, metrics=_METRICS, source=name)
    text = "\n".join([*header(["env", "method", "objects", *_METRICS.values()]), *rows]) + "\n"
    (arguments.output / "table.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
