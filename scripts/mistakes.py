"""Mistakes of a command line in words: names that do not exist, values of another kind, errors."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_AT_LEAST = {
    "num_slots": 1,
    "slot_dim": 1,
    "image_size": 1,
    "data.batch_size": 1,
    "optimizer.lr": 0,
}
"""What would else be refused far from the command line, by what is made of it."""
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def explain(error: Exception, name: str, arguments: list[str]) -> str | None:
    """Say a user's mistake in one sentence; None where it is not the user's."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return _one_line(error.__cause__)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        return unknown(group or "configuration", option, options_of(group) or error.options or [])
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_override(error, name, arguments)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}); nothing whole was lost: free some space and run the "
            "same command again"
        )
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory ({_one_line(error)}); lower data.batch_size or data.clip_length"
    if isinstance(error, ValueError | OSError):
        return _one_line(error)
    return None


def unknown(what: str, given: str, known: Iterable[str], *, meant: Sequence[str] = ()) -> str:
    """Say that a name does not exist, which ones do, and which was meant: else the nearest."""
    names = sorted(known)
    meant = meant or difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    return f"there is no {what} {given!r}; there are {', '.join(names)}.{_guess(meant)}"


def _guess(meant: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""


def options_of(group: str) -> list[str]:
    """Names of the files in a configuration group, those in its folders as folder/name."""
    files = (path.relative_to(CONFIGS / group) for path in (CONFIGS / group).rglob("*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _explain_override(error: Exception, name: str, arguments: list[str]) -> str:
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+~")
        if "=" not in argument and not argument.startswith(("-", "~")):
            return f"expected options as name=value, got {argument!r}"
        if "=" not in argument or argument.startswith(("-", "+", "~", "hydra.", "hydra/")):
            continue
        known = known_keys(name, arguments, without=argument)
        if known and key not in known:
            return _unknown_option(key, {k for k in known if not k.endswith("_target_")})
    return _one_line(error)


def _unknown_option(key: str, known: set[str]) -> str:
    if "@" in key:
        places = [k for k in known if "@" in k] or [k for k in known if "." not in k]
        adds = f" +{key} adds it." if options_of(key.partition("@")[0]) else ""
        return unknown("group", key, places) + adds
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if "@" not in k and k.rpartition(".")[0] == parent]
    meant = _of_same_name(key, known)
    if not siblings and parent in known and not options_of(parent):
        return f"there is no option {key!r}: {parent} is a value.{_guess(meant)}"
    return unknown("option", key, siblings or [k for k in known if "." not in k], meant=meant)


def _of_same_name(key: str, known: set[str]) -> list[str]:
    """Up to three options that end as a key does, below what exists of the way to it."""
    parent, _, last = key.rpartition(".")
    while parent and not any(k.startswith(f"{parent}.") for k in known):
        parent = parent.rpartition(".")[0]
    below = f"{parent}." if parent else ""
    groups = [k for k in known if k.startswith(f"{last}@{below}")]
    same = [k for k in known if k.startswith(below) and k.endswith(f".{last}") and "@" not in k]
    return sorted(groups or same, key=lambda k: (k.count("."), k))[:3]


def check_kinds(name: str, arguments: Sequence[str]) -> None:
    """Compare the values on a command line with those that stand in the configuration without them.

    Where a number or a list stands, another one is expected, or nothing (null); where true or false
    stands, one of them or a choice of several.

    Raises:
        ValueError: naming the first option whose value is of another kind.
    """
    given = [a for a in arguments if "=" in a and not a.startswith(("-", "~", "hydra"))]
    groups = _groups()
    try:
        parsed = OverridesParser.create().parse_overrides(given)
        values = [o for o in parsed if "." in o.key_or_group or o.key_or_group not in groups]
        chosen = [o.input_line for o in parsed if o not in values or o.is_add()]
        config = composed(name, [word for word in chosen if word is not None])
    except (HydraException, OmegaConfBaseException):
        return  # said better where the configuration is composed
    for override in values:
        value = override.value()
        if override.is_sweep_override() or value is None or "${" in str(value):
            continue
        expected = _kind_beside(_standing(config, override.key_or_group), value)
        if expected is not None:
            shown = override.get_value_string()
            raise ValueError(f"expected {override.key_or_group} to be {expected}, got {shown}")


def check_sizes(config: DictConfig) -> None:
    """Refuse numbers that are too small for any model, by the name of their option.

    Raises:
        ValueError: naming the first of them.
    """
    for key, least in _AT_LEAST.items():
        value = _standing(config, key)
        numbers = value if isinstance(value, ListConfig) else [value]
        if any(isinstance(number, int | float) and number < least for number in numbers):
            raise ValueError(f"expected {key} of at least {least}, got {value}")


def _standing(config: DictConfig, key: str) -> Any:
    """What a configuration has there; None too where only the running command knows."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _kind_beside(stands: Any, value: Any) -> str | None:
    """What a value had to be where `stands` stands; None if it is."""
    if isinstance(stands, bool):
        return None if isinstance(value, bool | list) else "true or false"
    if isinstance(stands, int | float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if is_number else f"a number, such as {stands:g}"
    if isinstance(stands, ListConfig) and not isinstance(value, list):
        words = ",".join(map(str, stands)) or "..."
        return f"a list, such as [{words}]"
    return None


def known_keys(name: str, arguments: list[str], *, without: str) -> set[str]:
    """Every dotted key, and every group in its place, that the command line may set."""
    groups = _groups()
    others = [argument for argument in arguments if argument != without and "=" in argument]
    for overrides in (others, [a for a in others if a.split("=", 1)[0] in groups], []):
        try:
            OverridesParser.create().parse_overrides(overrides)
            config = composed(name, overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        keys = set(_dotted(OmegaConf.to_container(config), ""))
        return keys | set(chosen_groups(name, overrides))
    return set()


def chosen_groups(name: str, overrides: list[str]) -> list[str]:
    """The groups that a configuration chooses from, each as group or group@place."""
    choices = composed(name, overrides, with_hydra=True).hydra.runtime.choices
    return sorted(key for key in map(str, choices) if not key.startswith("hydra/"))


def composed(name: str, overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """The configuration that a command line makes, with Hydra's own part if asked for."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose(name, overrides=overrides, return_hydra_config=with_hydra)


def _groups() -> set[str]:
    return {path.name for path in CONFIGS.iterdir() if path.is_dir() and options_of(path.name)}


def _dotted(node: Any, prefix: str) -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")
