"""From the name of an environment to the environment: one name per file in `configs/env`.

The files are the registry. A file `sprites-object_goal.yaml` gives the short name
`sprites-object_goal` and the Gymnasium id `ocrl/Sprites-ObjectGoal-v0`.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, cast

import gymnasium
import yaml

from ocrl.envs.interface import ObjectEnv

_TARGET = "_target_"
_NOT_THE_TASK = (_TARGET, "size", "max_objects", "world_cache", "render_mode")
"""Arguments that change how an environment is seen or stored, not what it asks."""


def names() -> tuple[str, ...]:
    """The short names that `make` knows, sorted."""
    files = resources.files("ocrl.configs").joinpath("env").iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".yaml")))


def gymnasium_id(name: str) -> str:
    """The Gymnasium id of a short name."""
    words = ("".join(map(_capitalised, part.split("_"))) for part in name.split("-"))
    return f"ocrl/{'-'.join(words)}-v0"


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def short_name(name: str) -> str:
    """The short name behind a short name or a Gymnasium id.

    Raises:
        ValueError: if there is no such environment; the message lists those that exist.
    """
    known = names()
    by_id = {gymnasium_id(entry): entry for entry in known}
    if name in known:
        return name
    if name in by_id:
        return by_id[name]
    raise ValueError(unknown("environment", name, (*known, *by_id), listed=known))


def unknown(kind: str, name: str, known: Iterable[str], *, listed: Iterable[str] = ()) -> str:
    """One sentence for a name that does not exist: what does, and the nearest spelling.

    Args:
        kind: what the name was meant to be.
        name: what was given.
        known: every name that would have been right.
        listed: the names to show, where `known` holds several spellings of each.
    """
    known = tuple(known)
    lowered = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" (did you mean {lowered[close[0]]!r}?)" if close else ""
    return f"unknown {kind} {name!r}{hint}: expected one of {', '.join(tuple(listed) or known)}"


def settings(name: str) -> dict[str, Any]:
    """Everything `configs/env/<name>.yaml` says, with what it inherits from a sibling.

    Raises:
        ValueError: if there is no such environment.
    """
    return copy.deepcopy(_read(short_name(name)))


def label(env: str, arguments: Mapping[str, Any]) -> str:
    """The name of an environment, with the arguments that make it another task than its file's."""
    own = settings(env)
    different = {
        name: arguments[name]
        for name, value in own.items()
        if name not in _NOT_THE_TASK and arguments.get(name, value) != value
    }
    return " ".join([env, *(f"{name}={value}" for name, value in different.items())])


@functools.cache
def _read(stem: str) -> dict[str, Any]:
    """What a file says, for good: a vector environment asks once for each of its copies."""
    file = resources.files("ocrl.configs").joinpath("env", f"{stem}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    merged: dict[str, Any] = {}
    # As in Hydra: later entries win, and the file itself comes last unless it says otherwise.
    parents = content.pop("defaults", [])
    for entry in parents if "_self_" in parents else [*parents, "_self_"]:
        merged |= content if entry == "_self_" else _read(entry)
    return merged


def make(name: str, **kwargs: Any) -> ObjectEnv:
    """Build an environment by name.

    Args:
        name: a short name ("crafter") or a Gymnasium id ("ocrl/Crafter-v0").
        **kwargs: arguments of the environment that replace those of its file.

    Raises:
        ValueError: if the environment or an argument does not exist; the message lists those that
            do and the nearest spelling.
    """
    arguments = resolve(name, kwargs)
    module, _, attribute = arguments.pop(_TARGET).rpartition(".")
    return cast(ObjectEnv, getattr(importlib.import_module(module), attribute)(**arguments))


def resolve(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an environment with `kwargs` in place of the file's own.

    Raises:
        ValueError: as in `make`.
    """
    arguments = settings(name)
    module, _, attribute = arguments[_TARGET].rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    for argument in kwargs:
        if argument not in known:
            kind = f"argument of environment {short_name(name)!r}:"
            raise ValueError(unknown(kind, argument, known))
    return arguments | dict(kwargs)


def register() -> None:
    """Register every name with Gymnasium; the files are read only when one is made."""
    for name in names():
        identity = gymnasium_id(name)
        if identity not in gymnasium.registry:
            gymnasium.register(
                identity, entry_point="ocrl.envs.registry:make", kwargs={"name": name}
            )
