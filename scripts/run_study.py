"""Train the runs of a study over seeds, with the encoders they need, and set them side by side.

    python scripts/run_study.py results/sprites.yaml --seeds 0 1 2 --jobs 2
    python scripts/run_study.py results/minigrid.yaml --only 'doorkey-*' --write

A study is a YAML file: `encoders`, a list of options of pretrain_slots.py for each, and either
`agents`, of train_agent.py, `worlds`, of train_world_model.py, or `views`, of pretrain_slots.py
with posed views, all by name; `shared` are options of all of these, before their own. {NAME} in an
option is the run of the encoder NAME, or that of the same seed of a run before it; `encoders_of`
lists studies beside the file whose encoders can be named, too, and are trained where those studies
have them. `--only` chooses by name; what is named comes with it. Runs that are finished are not
repeated, others go on. What stands after `--` goes to all of them. `--write` keeps them in the
folder that is named like the file, beside it. Each run says what it has to say in its log.txt.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from compare import write_comparison
from comparison import run
from kept_results import FRACTION, keep_record, records_table
from launch import num_cores, resumable
from mistakes import unknown
from processes import ending_all

from ocrl.agents.results import EVALUATION
from ocrl.page import write_text
from ocrl.tables import RECORD

_NAMED = re.compile(r"(?<!\$)\{([\w-]+)\}")
_PARTS = ("encoders_of", "encoders", "shared", "agents", "worlds", "views")


@dataclass(frozen=True)
class Kind:
    """What a study trains.

    Attributes:
        part: of the file.
        script: that trains one.
        seed: the option that takes its seed.
        done: what the script leaves at its end.
    """

    part: str
    script: str
    seed: str
    done: str


ENCODERS = Kind("encoders", "pretrain_slots", "trainer.seed", RECORD)
AGENTS = Kind("agents", "train_agent", "agent.seed", EVALUATION)
WORLDS = Kind("worlds", "train_world_model", "trainer.seed", RECORD)
VIEWS = Kind("views", "pretrain_slots", "trainer.seed", RECORD)
KINDS = (AGENTS, WORLDS, VIEWS)


@dataclass(frozen=True)
class Task:
    """One run of a script.

    Attributes:
        kind: what is trained.
        directory: of the run.
        options: of the script.
        needs: the directories of runs that have to be finished before.
    """

    kind: Kind
    directory: Path
    options: Sequence[str]
    needs: frozenset[Path]


@dataclass(frozen=True)
class Study:
    """What is to be trained.

    Attributes:
        name: of the file.
        encoders: options by name; one names only those before it.
        homes: the study that an encoder is of, by name.
        runs: options by name; one names encoders, and only those runs before it.
        kind: of the runs.
    """

    name: str
    encoders: Mapping[str, Sequence[str]]
    homes: Mapping[str, str]
    runs: Mapping[str, Sequence[str]]
    kind: Kind

    def needed(self) -> list[str]:
        """The encoders that runs name, and those that these name, in the order of the file."""
        found = _with_named({**self.encoders, **self.runs}, self.runs)
        return [name for name in self.encoders if name in found]


@resumable()
def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s STUDY [options] [-- OPTION=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--output", type=Path, help="default: outputs/studies/NAME")
    parser.add_argument("--write", action="store_true", help="keep the runs beside the file")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    arguments, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    try:
        study = read_study(arguments.study, only=arguments.only)
        output = arguments.output or Path("outputs/studies") / arguments.study.stem
        runs = train(
            study,
            output=output,
            seeds=arguments.seeds,
            jobs=arguments.jobs,
            overrides=overrides,
        )
        kept = arguments.study.with_suffix("") if arguments.write else None
        if study.kind != AGENTS:
            write_records(runs, output=output, kept=kept)
            return
        title = f"{arguments.study.stem}: agents side by side"
        options = {"fraction": FRACTION, "output": output, "title": title, "write": kept}
        write_comparison(argparse.Namespace(runs=runs, **options))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def write_records(runs: Sequence[Path], *, output: Path, kept: Path | None) -> None:
    """Set what was measured of models side by side in table.md, and keep it if asked to."""
    text = records_table(runs)
    write_text(output / "table.md", text)
    sys.stdout.write(text)
    if kept is not None:
        for directory in runs:
            keep_record(directory, kept)


def read_study(path: Path, *, only: Sequence[str] = ("*",)) -> Study:
    """Read a file, and choose the runs whose names match one of the patterns.

    Raises:
        FileNotFoundError: if there is no such file, in words.
        ValueError: if it is no study, an option names an encoder or a run that there is not or that
            comes after it, an encoder and a run share a name, or no run is chosen.
    """
    content = _read(path)
    kinds = [kind for kind in KINDS if kind.part in content]
    if len(kinds) != 1:
        raise ValueError(
            f"{path}: expected a study with one of agents, worlds and views, got {content!r:.60}"
        )
    (kind,) = kinds
    encoders: dict[str, list[str]] = {}
    homes: dict[str, str] = {}
    for file in (*(path.with_name(f"{name}.yaml") for name in content["encoders_of"]), path):
        found = content["encoders"] if file == path else _read(file)["encoders"]
        for name in found:
            if name in homes:
                raise ValueError(
                    f"{path}: {homes[name]} and {file.stem} both have an encoder {name}"
                )
        encoders |= found
        homes |= dict.fromkeys(found, file.stem)
    runs, shared = content[kind.part], content["shared"]
    known: list[str] = []
    for name, options in [*encoders.items(), *runs.items()]:
        for other in named(options):
            if other not in known:
                mistake = unknown("encoder or run before it", other, known or ["none"])
                raise ValueError(f"{path}: {name}: {mistake}")
        if name in known:
            raise ValueError(f"{path}: expected one of each name, got an encoder and a run {name}")
        known.append(name)
    chosen = [name for name in runs if any(fnmatch.fnmatch(name, o) for o in only)]
    if not chosen:
        raise ValueError(f"{path}: {unknown(kind.part[:-1], ' '.join(only), runs)}")
    wanted = _with_named({**encoders, **runs}, chosen)
    kept = {name: [*shared, *options] for name, options in runs.items() if name in wanted}
    return Study(path.stem, encoders, homes, kept, kind)


def _read(path: Path) -> dict[str, Any]:
    """The parts of a study's file, empty ones where it has none, but for what is trained.

    Raises:
        FileNotFoundError: if there is no such file, in words.
        ValueError: if it is no study.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no study at {path}, such as results/sprites.yaml is")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) - set(_PARTS):
        raise ValueError(f"{path}: expected a study with {', '.join(_PARTS)}, got {content!r:.60}")
    parts: dict[str, Any] = {"encoders_of": [], "shared": [], "encoders": {}}
    parts |= {name: part for name, part in content.items() if part is not None}
    lists = {name: parts[name] for name in ("encoders_of", "shared")}
    for name in ("encoders", *(kind.part for kind in KINDS)):
        lists |= parts.get(name, {})
    for name, options in lists.items():
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise ValueError(f"{path}: expected a list of options for {name}, got {options!r:.60}")
    return parts


def named(options: Sequence[str]) -> list[str]:
    """The encoders and runs that options name."""
    return [name for option in options for name in _NAMED.findall(option)]


def _with_named(options: Mapping[str, Sequence[str]], names: Iterable[str]) -> set[str]:
    """Names, and all that their options name, and so on."""
    found, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += named(options[name])
    return found


def train(
    study: Study, *, output: Path, seeds: Sequence[int], jobs: int, overrides: Sequence[str]
) -> list[Path]:
    """Train what is not finished, several runs at a time.

    Returns:
        The directories of the runs.

    Raises:
        SystemExit: with the code of a run that fails, once those beside it are through.
    """
    where = {
        name: (output if home == study.name else output.with_name(home)) / "encoders" / name
        for name, home in study.homes.items()
    }
    threads = max(1, num_cores() // jobs)
    encoders = [
        _task(ENCODERS, where[name], study.encoders[name], where) for name in study.needed()
    ]
    runs = []
    for seed in seeds:
        own = {name: output / study.kind.part / f"{name}-{seed}" for name in study.runs}
        for name, options in study.runs.items():
            told = [*options, f"{study.kind.seed}={seed}"]
            task = _task(study.kind, own[name], told, {**where, **own})
            runs.append(replace(task, options=[*task.options, *overrides]))

    def work(task: Task) -> None:
        run(
            task.kind.script,
            task.directory,
            task.options,
            done=task.kind.done,
            log="log.txt",
            threads=threads,
        )

    waiting, made, begun = [*encoders, *runs], set[Path](), dict[Future[None], Path]()
    with ending_all(), ThreadPoolExecutor(jobs) as pool:
        while waiting or begun:
            # Whoever is free takes the first task that has what it names.
            for task in list(waiting):
                if len(begun) < jobs and made >= task.needs:
                    waiting.remove(task)
                    begun[pool.submit(work, task)] = task.directory
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                future.result()
                made.add(begun.pop(future))
    return [task.directory for task in runs]


def _task(kind: Kind, directory: Path, options: Sequence[str], where: Mapping[str, Path]) -> Task:
    """A run whose options name others, which are at these places."""
    told = [_NAMED.sub(lambda match: where[match[1]].as_posix(), option) for option in options]
    return Task(kind, directory, told, frozenset(where[name] for name in named(options)))


if __name__ == "__main__":
    main()
