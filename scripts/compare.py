"""Set runs of agents side by side: scores over seeds, learning curves, held-out worlds.

    python scripts/compare.py outputs/train_agent/sprites-*
    python scripts/compare.py outputs/train_agent/sprites-* --write results/sprites
    python scripts/compare.py outputs/train_agent/*-planning-* --slots video_fg_ari
    python scripts/compare.py --readme README.md results/README.md

A run is a directory that scripts/train_agent.py left, or one kept in results/; a folder of runs
stands for all of them. Runs are grouped by environment, observation and agent. The table goes to
the terminal; table.md, comparison.json, report.html and curves.svg go into `--output`. `--write`
keeps what is needed to compare again, a few kilobytes a run. `--slots` sets success against how
well the encoders find objects, in slots.html and slots.json, instead of comparing. `--readme`
writes the tables of what is kept in results/ between the two marker comments of each file, and
draws the curves of each study there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from comparison import WithDefaults
from kept_results import (
    CURVES,
    FRACTION,
    RESULTS,
    found_runs,
    keep,
    read_published,
    study_curves,
    with_tables,
)

from ocrl.agents import slot_quality
from ocrl.agents.comparison import compare
from ocrl.agents.comparison_page import curves, render
from ocrl.agents.comparison_table import markdown
from ocrl.agents.results import EVALUATION, Run, read_run
from ocrl.page import write_text


def main() -> None:
    """Read the runs, compare them and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=WithDefaults)
    parser.add_argument("runs", nargs="*", default=[], type=Path, help="or folders of them")
    parser.add_argument("--fraction", type=float, default=FRACTION, help="of the best return")
    output = Path("outputs/compare")
    parser.add_argument("--output", type=Path, default=output, help="folder of what is written")
    parser.add_argument("--title", default="Agents side by side", help="of the page")
    parser.add_argument("--write", type=Path, help="keep the runs in this folder")
    parser.add_argument("--slots", help="a figure of discovery, such as video_fg_ari")
    parser.add_argument(
        "--readme", nargs="+", type=Path, help="write the tables of results/ into these files"
    )
    arguments = parser.parse_args()
    if not arguments.runs and arguments.readme is None:
        parser.error("expected directories of runs, or --readme FILES")
    try:
        if arguments.runs and arguments.slots is not None:
            write_relations(arguments)
        elif arguments.runs:
            write_comparison(arguments)
        for readme in arguments.readme or ():
            write_text(readme, with_tables(readme.read_text(), RESULTS))
        for file, picture in study_curves(RESULTS).items() if arguments.readme else ():
            write_text(file, picture)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def write_comparison(arguments: argparse.Namespace) -> None:
    """Compare the runs of the command line, and keep them if asked to."""
    runs = read_runs(arguments.runs)
    published, output = read_published(), arguments.output
    result = compare(runs, fraction=arguments.fraction)
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(result, published)
    write_text(output / "table.md", text)
    write_text(output / "comparison.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    page = render(runs, result, published=published, title=arguments.title)
    write_text(output / "report.html", page)
    write_text(output / CURVES, curves(runs, result))
    sys.stdout.write(text)
    lengths = sorted({int(run.evaluation.get("num_episodes", 0)) for run in runs})
    if len(lengths) > 1:
        sys.stderr.write(
            f"not all were evaluated alike: over {', '.join(map(str, lengths))} episodes; "
            "evaluate_agent.py checkpoint=RUN episodes=NUMBER evaluates again\n"
        )
    sys.stderr.write(f"table.md, comparison.json, report.html, curves.svg: {output}\n")
    for run in runs if arguments.write is not None else ():
        keep(run, arguments.write)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that paths stand for, without those in a folder that are not evaluated yet."""
    runs, left = [], []
    for path in found_runs(paths):
        is_named = path in paths
        if is_named or (path / EVALUATION).is_file():
            runs.append(read_run(path))
        else:
            left.append(path.name)
    if left:
        sys.stderr.write(f"left out, as they have no {EVALUATION} yet: {', '.join(left)}\n")
    return runs


def write_relations(arguments: argparse.Namespace) -> None:
    """Set how well the runs of the command line do against their slots."""
    runs = read_runs(arguments.runs)
    found = slot_quality.relations(runs, measure=arguments.slots)
    arguments.output.mkdir(parents=True, exist_ok=True)
    values = json.dumps(slot_quality.as_json(found), indent=2, allow_nan=False)
    write_text(arguments.output / "slots.json", values + "\n")
    page = slot_quality.render(found, title=arguments.title)
    write_text(arguments.output / "slots.html", page)
    sys.stdout.writelines(f"{relation.sentence}\n" for relation in found)
    sys.stderr.write(f"slots.json, slots.html: {arguments.output}\n")


if __name__ == "__main__":
    main()
