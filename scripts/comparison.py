"""What the comparing scripts share: runs in processes of their own, and rows of a table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import read_command
from processes import call, ending_all

MODEL = "model"
"""The name under which results have a model's scores; the others are baselines."""


class WithDefaults(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help with the script's docstring as it stands and the default of every option."""


def run(
    job: str,
    directory: Path,
    options: Sequence[str],
    *,
    done: str = "metrics.json",
    log: str | None = None,
    threads: int | None = None,
) -> None:
    """Run a script in its own process, unless that was done; leave if it fails.

    It was if what the script leaves is there, unless the command that left it is known and had
    other options: then the script decides whether these ask for anything else.

    Args:
        job: name of the script.
        directory: of the run.
        options: overrides.
        done: a file in `directory` that is there once the run has finished.
        log: keep what it says in this file of `directory`, and say only how long it took.
        threads: of the process; None for as many as it takes by itself.

    Raises:
        SystemExit: with the script's code, if it fails.
    """
    if (directory / done).is_file() and read_command(directory) in (None, list(options)):
        return
    command = [
        sys.executable,
        str(Path(__file__).with_name(f"{job}.py")),
        *options,
        f"hydra.run.dir={directory.as_posix()}",
    ]
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if log is None:
        with ending_all():
            code = call(command, env=environment)
        if code != 0:
            sys.exit(code)
        return
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    part = directory / f"{log}.part"
    with part.open("w") as file, ending_all():
        code = call(command, env=environment, output=file)
    if code != 0:
        said = [line for line in part.read_text().splitlines() if line.strip()]
        sys.stderr.write(f"{directory.name}: {said[-1] if said else f'ended with {code}'}\n")
        sys.exit(code)
    part.rename(directory / log)
    sys.stderr.write(f"{directory.name}: {(time.monotonic() - started) / 60:.1f} min\n")


def header(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def cell(values: Sequence[float], *, digits: int = 3) -> str:
    """The mean, and the spread where there are several."""
    # The package loads torch, which nothing before the table needs.
    from ocrl.tables import mean_and_spread

    return mean_and_spread(values, digits=digits)


def score_rows(
    env: str,
    method: str,
    results: Sequence[Mapping[str, Any]],
    *,
    metrics: Iterable[str],
    source: str = MODEL,
    more: Sequence[str] = (),
) -> list[str]:
    """One row per preset of ground truth.

    Args:
        env: first cell.
        method: second cell.
        results: the `table` of each seed's `metrics.json`.
        metrics: whose means fill the cells.
        source: the model or a baseline, as the results name them.
        more: further cells, at the end.
    """
    metrics = list(metrics)
    return [
        " | ".join(
            [
                f"| {env}",
                method,
                preset,
                *(
                    cell([result[source][preset][metric] for result in results])
                    for metric in metrics
                ),
                *more,
            ]
        )
        + " |"
        for preset in results[0][source]
    ]
