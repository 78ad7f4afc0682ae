"""Policies to episodes on disk: several workers, the same episodes however they are made.

Episode i of a collection follows from (seed, i) alone. A collection of `num_steps` steps is the
shortest row of episodes 0, 1, 2, ... that has as many, whatever the number of workers and however
often it was interrupted; collecting again adds what is missing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import ocrl
from ocrl.data.format import to_json
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs.collect_workers import Job, Ledger, collect_in_processes
from ocrl.envs.interface import PRESETS
from ocrl.envs.policies import build_policy
from ocrl.envs.record import count_steps, record_episode
from ocrl.envs.registry import gymnasium_id, make, resolve, short_name, unknown

_COMPARED = ("env", "env_arguments", "policy", "seed", "episode_length", "segmentation")
_PACKAGES = ("ocrl", "numpy", "gymnasium", "crafter", "minigrid")


def collect(
    env_name: str,
    env_kwargs: Mapping[str, Any],
    *,
    path: str | Path,
    num_steps: int,
    policy: str,
    num_workers: int,
    seed: int,
    episode_length: int | None,
    segmentation: Sequence[str] = PRESETS,
    progress: bool = True,
) -> EpisodeStore:
    """Collect episodes until there are `num_steps` steps, and return them all.

    Args:
        env_name: as in `ocrl.envs.make`.
        env_kwargs: arguments of the environment that replace those of its file.
        path: the folder of episodes; those already in it count.
        num_steps: steps in all. The last episode is whole, so there may be somewhat more.
        policy: see `ocrl.envs.policies`.
        num_workers: processes that play; 0 plays in this one.
        seed: of the whole collection.
        episode_length: steps after which an episode is truncated, None for the environment's own
            end.
        segmentation: presets of masks to keep.
        progress: show a bar on the terminal.

    Raises:
        ValueError: if a name or number makes no sense, or the episodes at `path` were collected
            otherwise.
        OSError: if the disk is full, or a worker was killed (`ChildProcessError`); whole episodes
            are kept.
        KeyboardInterrupt: after Ctrl-C; the message says how to go on.
    """
    _check(num_steps=num_steps, num_workers=num_workers, seed=seed, episode_length=episode_length)
    for preset in segmentation:
        if preset not in PRESETS:
            raise ValueError(unknown("segmentation preset", preset, PRESETS))
    path = Path(path)
    settings = {
        "env": gymnasium_id(short_name(env_name)),
        "env_arguments": resolve(env_name, env_kwargs),
        "policy": policy,
        "seed": seed,
        "episode_length": episode_length,
        "segmentation": list(segmentation),
    }
    ledger = Ledger(num_steps, episode_length)
    store = _existing(path)
    if store is not None:
        check_provenance(store, settings)
        for index in range(len(store)):
            ledger.add(int(store.episode(index)["episode"]), int(store.lengths[index]) - 1)
    if not ledger.is_complete:
        job = Job(
            env_name=env_name,
            env_kwargs=dict(env_kwargs),
            policy=policy,
            seed=seed,
            episode_length=episode_length,
            segmentation=tuple(segmentation),
            path=path,
            metadata=to_json(settings | _origin(env_name, env_kwargs, policy)),
        )
        _run(job, ledger, num_workers=num_workers, progress=progress)
    return EpisodeStore(path)


def _check(*, num_steps: int, num_workers: int, seed: int, episode_length: int | None) -> None:
    lowest = {"num_steps": (num_steps, 1), "num_workers": (num_workers, 0), "seed": (seed, 0)}
    if episode_length is not None:
        lowest["episode_length"] = (episode_length, 1)
    for name, (value, least) in lowest.items():
        if value < least:
            raise ValueError(f"expected {name} of at least {least}, got {value}")


def _existing(path: Path) -> EpisodeStore | None:
    try:
        return EpisodeStore(path, verify="none")
    except FileNotFoundError:
        return None


def check_provenance(store: EpisodeStore, settings: Mapping[str, Any]) -> None:
    """Compare where the episodes of a store come from with where new ones would.

    Raises:
        ValueError: naming the first difference.
    """
    asked = _flat(to_json({name: settings[name] for name in _COMPARED}))
    found = _flat({name: store.metadata[name] for name in _COMPARED if name in store.metadata})
    for name in {**asked, **found}:
        if asked.get(name, _MISSING) != found.get(name, _MISSING):
            raise ValueError(
                f"the episodes in {store.path} were collected with {name}="
                f"{found.get(name, _MISSING)!r}, not {asked.get(name, _MISSING)!r}: give another "
                "data.path, or the settings they were collected with"
            )


_MISSING = "(not noted)"


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def _origin(env_name: str, env_kwargs: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """What else is worth knowing about the episodes.

    Plays a few steps first, so that mistakes show before any worker starts, and so that what is
    compiled at first use is compiled once.
    """
    env = make(env_name, **env_kwargs)
    player = build_policy(policy, env)
    record_episode(env, player, seed=0, number=0, episode_length=2, segmentation=PRESETS)
    return {
        "categories": env.categories,
        "attribute_names": env.attribute_names,
        "attribute_classes": dict(env.attribute_classes),
        "action_space": str(env.action_space),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": _git_hash(),
    }


def _version(package: str) -> str | None:
    if package == "ocrl":
        return ocrl.__version__
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return None


def _git_hash() -> str | None:
    """The commit of this checkout; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def _run(job: Job, ledger: Ledger, *, num_workers: int, progress: bool) -> None:
    try:
        with _bar(ledger, shown=progress) as update:
            if num_workers == 0:
                _collect_here(job, ledger, update)
            else:
                collect_in_processes(job, ledger, num_workers=num_workers, update=update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped: {_saved(job, ledger)}") from None
    except ChildProcessError as error:
        raise ChildProcessError(f"{error}; {_saved(job, ledger)}") from error


def _saved(job: Job, ledger: Ledger) -> str:
    store = _existing(job.path)
    steps = 0 if store is None else store.num_frames - len(store)
    return (
        f"{steps} steps of {ledger.num_steps} are safe in {job.path}, "
        "run the same command again to go on"
    )


def _collect_here(job: Job, ledger: Ledger, update: Callable[[], None]) -> None:
    env = make(job.env_name, **job.env_kwargs)
    policy = build_policy(job.policy, env)
    with EpisodeWriter(job.path, metadata=job.metadata) as writer:
        while (number := ledger.next_number()) is not None:

            def note(steps: int, number: int = number) -> None:
                ledger.note(number, steps)
                if steps % 100 == 0:
                    update()

            episode = job.record(env, policy, number, after_step=note)
            writer.append(episode)
            ledger.add(number, count_steps(episode))
            update()


@contextmanager
def _bar(ledger: Ledger, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar with the rate and the time left; gives a function that brings it up to date."""
    bar = Progress(
        TextColumn("collecting"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
        TextColumn("{task.fields[rate]:,.0f} steps/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    before = ledger.num_played
    task = bar.add_task("", total=ledger.num_steps, completed=before, rate=0.0)

    def update() -> None:
        played = ledger.num_played
        elapsed = bar.tasks[0].elapsed or 0.0
        rate = (played - before) / elapsed if elapsed > 0 else 0.0
        bar.update(task, completed=min(played, ledger.num_steps), rate=rate)

    with bar:
        yield update
        update()
