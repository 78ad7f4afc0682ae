"""Save and load a model: its configuration and its weights in one folder that describes itself.

    model.safetensors   weights: tensors only
    config.yaml         nested `_target_`s and plain values, resolved
    meta.json           version, step, env, metrics, fingerprint of the data
    resume/state.pt     what `save` is given to go on training from: of `ocrl.train`, the weights as
                        they are, their average, the optimiser and the time taken; may be missing

Loading executes nothing that a checkpoint brings: only classes derived from `torch.nn.Module`
that are defined under `ocrl.` or `torch.nn.` are built.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from yaml import YAMLError

from ocrl.interfaces import TaughtModule

VERSION = 1
"""Of the folder's layout; a checkpoint of another one is refused."""
ALLOWED_PACKAGES = ("ocrl.", "torch.nn.")
FOLDER = "checkpoint"
"""Where a run keeps its checkpoint, inside the run's directory."""
Base = TypeVar("Base")
_FILES = ("config.yaml", "meta.json", "model.safetensors")


def build(config: Mapping[str, Any] | DictConfig) -> Any:
    """Build the tree of modules that nested `_target_`s describe.

    Raises:
        ValueError: if a target is not a module class under `ocrl.` or `torch.nn.`, or if its
            arguments do not fit.
    """
    return _build(plain(config), "")


def plain(config: Mapping[str, Any] | DictConfig | ListConfig) -> Any:
    """Resolve interpolations into dictionaries, lists and plain values."""
    if isinstance(config, DictConfig | ListConfig):
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)


def _build(node: Any, where: str) -> Any:
    if isinstance(node, list):
        return [_build(item, f"{where}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {
        key: _build(value, f"{where}.{key}" if where else str(key))
        for key, value in node.items()
        if key != "_target_"
    }
    if "_target_" not in node:
        return arguments
    target = find_class(str(node["_target_"]), nn.Module, where=where)
    try:
        return target(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{where or 'config'}: cannot build {node['_target_']}: {error}"
        ) from error


def find_class(target: str, base: type[Base], *, where: str = "") -> type[Base]:
    """The class that a `_target_` names.

    Args:
        target: module and class.
        base: what it must be derived from.
        where: it stands in a configuration, for the message.

    Raises:
        ValueError: if it is none, or is not defined under `ocrl.` or `torch.nn.`.
    """
    kind = "torch.nn.Module" if base is nn.Module else base.__name__
    message = (
        f"{where or 'config'}: expected _target_ to name a {kind} class defined under "
        f"{' or '.join(ALLOWED_PACKAGES)}, got {target!r}"
    )
    module_name, _, class_name = target.rpartition(".")
    if not target.startswith(ALLOWED_PACKAGES):
        raise ValueError(message)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{message} ({error})") from error
    is_derived = isinstance(found, type) and issubclass(found, base)
    # A module reaches other packages through its own imports: ask where the class was defined.
    if not is_derived or not f"{found.__module__}.".startswith(ALLOWED_PACKAGES):
        raise ValueError(message)
    return found


def save(
    path: Path | str,
    model: nn.Module,
    *,
    config: Mapping[str, Any] | DictConfig,
    step: int,
    env: str,
    metrics: Mapping[str, float] | None = None,
    fingerprint: str = "",
    weights: Mapping[str, torch.Tensor] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; the previous one stays until the new one is whole.

    Args:
        path: the folder.
        model: what `build(config)` gave.
        config: how to build `model` again.
        step: optimiser steps done.
        env: name of the environment that the data came from.
        metrics: the latest measured figures.
        fingerprint: of the data.
        weights: written instead of the model's own, for example their moving average.
        resume: state to go on training from: tensors, numbers, strings, lists and dictionaries.

    Raises:
        OSError: if writing fails; what was there before is untouched.
    """
    with replacing(path) as temporary:
        tensors = model.state_dict() if weights is None else weights
        save_file(
            {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
            temporary / "model.safetensors",
        )
        write_yaml(temporary / "config.yaml", config)
        meta = {
            "version": VERSION,
            "step": step,
            "env": env,
            "metrics": dict(metrics or {}),
            "fingerprint": fingerprint,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        if resume is not None:
            (temporary / "resume").mkdir()
            torch.save(dict(resume), temporary / "resume" / "state.pt")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Fill a folder under a temporary name; what was at `path` stays until the new one is whole.

    Raises:
        OSError: if writing fails; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _swap(temporary, path)


def _sync(folder: Path) -> None:
    for entry in [*folder.rglob("*"), folder]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(temporary: Path, path: Path) -> None:
    previous = path.with_name(f"{path.name}.previous")
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    temporary.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(previous, ignore_errors=True)


def find(path: Path | str) -> Path:
    """Find the checkpoint folder of a path: itself, or the one in a run's directory.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = find_folder(path, FOLDER, files=("meta.json",))
    if found is None:
        raise FileNotFoundError(
            f"expected a checkpoint folder (model.safetensors, config.yaml, meta.json) at {path}"
        )
    return found


def find_folder(path: Path | str, name: str, *, files: Sequence[str]) -> Path | None:
    """A folder that `replacing` wrote: the path itself, or `name` inside; None if there is none.

    Args:
        path: the folder, or the directory of a run.
        name: of the folder in a run's directory.
        files: what it must hold.
    """
    path = Path(path)
    for candidate in (path, path / name):
        # A crash between the two renames of a save leaves only the previous one.
        for folder in (candidate, candidate.with_name(f"{candidate.name}.previous")):
            if all((folder / file).is_file() for file in files):
                return folder
    return None


def read_meta(path: Path | str) -> dict[str, Any]:
    """Read what a checkpoint says of itself.

    Raises:
        ValueError: if it was written in another version of the layout, or is damaged.
    """
    folder = find(path)
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{folder / 'meta.json'} is damaged: expected an object, got {meta!r}")
    if meta.get("version") != VERSION:
        raise ValueError(
            f"checkpoint {folder}: expected version {VERSION}, got {meta.get('version')}; "
            "load it with the release that wrote it"
        )
    return meta


def read_config(path: Path | str) -> dict[str, Any]:
    """Read the configuration that a checkpoint's model is built from."""
    folder = find(path)
    read_meta(folder)
    return read_yaml(folder / "config.yaml")


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a configuration, resolved.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        config: dict[str, Any] = plain(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return config


def write_yaml(file: Path, config: Mapping[str, Any] | DictConfig) -> None:
    """Write a configuration, resolved."""
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))))


def read_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint, on the CPU.

    Raises:
        ValueError: if the file is damaged.
    """
    folder = find(path)
    read_meta(folder)
    return read_tensors(folder / "model.safetensors")


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is damaged.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return tensors


def load_state(
    module: nn.Module, state: Mapping[str, torch.Tensor], folder: Path, *, strict: bool = True
) -> None:
    """Give a module the weights that lie in a folder beside what it was built from.

    Args:
        module: changed in place.
        state: the weights.
        folder: named if they do not fit.
        strict: whether the names must be the same.

    Raises:
        ValueError: if they do not fit.
    """
    try:
        module.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        sentence = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: the weights do not fit the configuration: {sentence}"
        ) from error


def read_resume(path: Path | str) -> dict[str, Any]:
    """Read the state to go on training from, on the CPU."""
    folder = find(path)
    read_meta(folder)
    return read_state(folder / "resume" / "state.pt")


def read_state(file: Path) -> dict[str, Any]:
    """Read tensors and plain values from a file of `torch.save`, on the CPU; executes nothing.

    Raises:
        ValueError: if the file is damaged, or holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return state


def load(path: Path | str) -> Any:
    """Load a model, on the CPU and in `eval()`.

    Args:
        path: a checkpoint folder or the directory of the run that wrote it.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is damaged, has another version or names an unknown class.
    """
    folder = find(path)
    try:
        model = build(read_config(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; was it made by another release of ocrl?") from error
    load_state(model, read_weights(folder), folder)
    return model.eval()


def load_encoder(encoder: nn.Module, path: Path | str) -> None:
    """Give an encoder, or the `encoder` that it wraps, the weights of a trained model's encoder.

    Args:
        encoder: changed in place.
        path: as in `load`.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is damaged, or its encoder is neither of the two.
    """
    weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in read_weights(path).items()
        if name.startswith("encoder.")
    }
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    wrapped = [child for name, child in encoder.named_children() if name == "encoder"]
    for candidate in (encoder, *wrapped):
        if {name: tensor.shape for name, tensor in candidate.state_dict().items()} == shapes:
            candidate.load_state_dict(weights)
            return
    raise ValueError(
        f"{find(path)}: expected the weights of this {type(encoder).__name__} or of an encoder "
        f"that it wraps, got those of {read_config(path).get('encoder', {}).get('_target_')} or "
        "of other sizes"
    )


def load_teachers(model: nn.Module) -> int:
    """Load the trained models that parts of a model learn from, if it has such parts.

    Args:
        model: each `ocrl.interfaces.TaughtModule` in it gets its teacher.

    Returns:
        How many such parts there are.

    Raises:
        FileNotFoundError: if there is no checkpoint at a part's `teacher_path`.
        ValueError: if no path is given, the checkpoint is damaged, or the teacher does not fit.
    """
    parts = {n: part for n, part in model.named_modules() if isinstance(part, TaughtModule)}
    for name, part in parts.items():
        if part.teacher_path is None:
            raise ValueError(
                f"expected teacher=PATH, a checkpoint for {name} to learn from, got none"
            )
        part.take_teacher(load(part.teacher_path), student=model)
    return len(parts)


def describe_difference(saved: Any, wanted: Any, where: str = "") -> str | None:
    """The first place where two configurations differ, in words; None if they are equal."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in [*saved, *(key for key in wanted if key not in saved)]:
            at = f"{where}.{key}" if where else str(key)
            if key not in saved or key not in wanted:
                return f"only {'this run' if key in wanted else 'it'} has {at}"
            found = describe_difference(saved[key], wanted[key], at)
            if found is not None:
                return found
        return None
    return None if saved == wanted else f"its {where} is {saved!r}, this run's is {wanted!r}"


def digest(path: Path | str) -> str:
    """SHA-256 of a checkpoint's weights and configuration, for those that depend on it."""
    folder = find(path)
    return digest_of([folder / "config.yaml", folder / "model.safetensors"])


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of what stands in files, one after the other."""
    sha256 = hashlib.sha256()
    for file in files:
        sha256.update(file.read_bytes())
    return sha256.hexdigest()


def push_to_hub(path: Path | str, name: str, *, private: bool) -> str:
    """Upload a checkpoint, without its resume state, to the Hugging Face hub.

    Args:
        path: as in `load`.
        name: of the repository, "owner/model"; it is made if it does not exist.
        private: whether a new repository is.

    Returns:
        The address of the upload.

    Raises:
        ValueError: if `huggingface_hub` is not installed.
    """
    folder = find(path)
    read_meta(folder)
    hub = _hub()
    hub.create_repo(name, private=private, exist_ok=True)
    return str(hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(_FILES)))


def from_pretrained(name: str, *, revision: str | None = None) -> Any:
    """Load a model from the Hugging Face hub, as `load` does from a folder.

    Raises:
        ValueError: if `huggingface_hub` is not installed, and as `load`.
    """
    return load(_hub().snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ValueError("the hub needs huggingface_hub: pip install 'ocrl[hub]'") from error


__all__: Sequence[str] = [
    "FOLDER",
    "VERSION",
    "build",
    "describe_difference",
    "digest",
    "find",
    "find_class",
    "from_pretrained",
    "load",
    "load_encoder",
    "load_teachers",
    "plain",
    "push_to_hub",
    "read_config",
    "read_meta",
    "read_resume",
    "read_state",
    "read_weights",
    "read_yaml",
    "replacing",
    "save",
    "write_yaml",
]
