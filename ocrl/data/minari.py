"""Export to and import from Minari, the exchange format of offline reinforcement learning.

Never through its JPEG encoding, which is its default and changes frames and masks. Minari itself is
optional: `pip install ocrl[minari]`. L steps make L + 1 frames.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ocrl.data.format import FORMAT, Arrays, ArraySpec, Header
from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder

_PER_STEP = ("action", "reward", "terminated", "truncated")
_NOT_OBSERVED = (*_PER_STEP, "is_first")
_OWN_NAMES = ("segmentation/", "objects/", "intrinsics", "extrinsics")
_logger = logging.getLogger(__name__)


def export_minari(
    store: EpisodeStore, dataset_id: str, *, data_format: Literal["arrow", "hdf5"] = "arrow"
) -> None:
    """Write a store as a Minari dataset, from which `import_minari` makes the same store again.

    Observations are a dictionary of all arrays with L + 1 rows (`segmentation/scene` is nested,
    truth values are 0 and 1). The dataset's description holds arrays and metadata as the header of
    a shard does, the metadata of an episode its `values` and, where it has another, its `origin`.
    Minari has no place for what is done after the last frame and what led to the first one, zeros
    in episodes as `docs/data.md` has them, and stores the dataset below `MINARI_DATASETS_PATH`.

    Args:
        store: the episodes; they must have actions and rewards.
        dataset_id: such as `crafter/random-v0`.
        data_format: Minari's storage.

    Raises:
        ValueError: if an episode is damaged, or has no actions or rewards.
        ImportError: if Minari is not installed.
    """
    minari = _import_minari()
    missing = [name for name in _PER_STEP if name not in store.arrays]
    if missing:
        raise ValueError(f"expected episodes with {list(_PER_STEP)}, got none of {missing}")
    observed = {name: spec for name, spec in store.arrays.items() if name not in _NOT_OBSERVED}
    dataset = minari.create_dataset_from_buffers(
        dataset_id,
        buffer=[_to_buffer(store, 0)],
        observation_space=_observation_space(observed),
        action_space=_action_space(store),
        description=json.dumps(Header(store.arrays, store.metadata).to_record()),
        data_format=data_format,
        jpeg_encoding=False,
    )
    dataset.storage.update_episodes(_to_buffer(store, index) for index in range(1, len(store)))
    dataset.storage.update_episode_metadata([_details(store, index) for index in range(len(store))])


def import_minari(dataset_id: str, path: str | Path, *, frames: str | None = None) -> EpisodeStore:
    """Make a store from a Minari dataset that is on this machine.

    Args:
        dataset_id: the dataset; one that `export_minari` wrote comes back as it was, see there.
            Of others the metadata keeps `description` and `action_space`.
        path: the store's folder; it appears when it is whole.
        frames: which observation holds the frames, such as `image` or `camera/front`; None takes
            the only one that looks like pictures.

    Raises:
        FileNotFoundError: if there is no such dataset.
        FileExistsError: if `path` is there already.
        ValueError: if it is not clear what its frames are, or its actions are no plain array.
        ImportError: if Minari is not installed.
    """
    minari = _import_minari()
    try:
        dataset = minari.load_dataset(dataset_id)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no Minari dataset {dataset_id!r} here; get it with `minari download {dataset_id}`"
        ) from error
    is_lossy = bool(dataset.storage.jpeg_encoding)
    if is_lossy:
        _logger.warning("%s was stored as JPEG: its frames are not exact", dataset_id)
    description = dataset.storage.metadata.get("description")
    header = _own_header(description, dataset_id)
    if header is None:
        metadata = {"source": "minari", "dataset": dataset_id, "is_lossy": is_lossy}
        metadata |= {"description": description, "action_space": str(dataset.action_space)}
        header = Header({}, metadata)
    episodes = _read_episodes(dataset, header, frames)
    with new_folder(path) as folder:
        for origin, group in itertools.groupby(episodes, key=lambda pair: pair[0]):
            with EpisodeWriter(folder, metadata=origin) as writer:
                for _, episode in group:
                    writer.append(episode)
    return EpisodeStore(path)


def _import_minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari is not installed; `pip install ocrl[minari]`") from error
    return minari


def _own_header(description: Any, dataset_id: str) -> Header | None:
    """What `export_minari` wrote as the description; None if it is of another origin."""
    try:
        record = json.loads(description)
    except (TypeError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    return Header.from_record(record, source=Path(dataset_id))


def _observation_space(arrays: Mapping[str, ArraySpec]) -> Any:
    from gymnasium import spaces

    def box(spec: ArraySpec) -> spaces.Box:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return spaces.Box(-np.inf, np.inf, spec.shape, dtype.type)
        if dtype.kind == "b":
            return spaces.Box(0, 1, spec.shape, np.uint8)
        limits = np.iinfo(dtype)
        return spaces.Box(limits.min, limits.max, spec.shape, dtype.type)

    def space(node: Any) -> spaces.Space[Any]:
        if isinstance(node, ArraySpec):
            return box(node)
        return spaces.Dict({name: space(child) for name, child in node.items()})

    return space(_nest(arrays))


def _action_space(store: EpisodeStore) -> Any:
    from gymnasium import spaces

    spec = store.arrays["action"]
    if np.dtype(spec.dtype).kind == "f" or spec.shape:
        return spaces.Box(-np.inf, np.inf, spec.shape, np.dtype(spec.dtype).type)
    largest = max(int(store.episode(index)["action"].max()) for index in range(len(store)))
    return spaces.Discrete(largest + 1)


def _to_buffer(store: EpisodeStore, index: int) -> Any:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    episode = store.episode(index)
    observed = {
        name: array.astype(np.uint8) if array.dtype.kind == "b" else array
        for name, array in episode.items()
        if name not in _NOT_OBSERVED and array.ndim
    }
    seed = episode.get("seed")
    return EpisodeBuffer(
        id=index,
        seed=None if seed is None else int(seed),
        observations=_nest(observed),
        actions=episode["action"][:-1],
        rewards=episode["reward"][1:],
        terminations=episode["terminated"][1:],
        truncations=episode["truncated"][1:],
    )


def _details(store: EpisodeStore, index: int) -> dict[str, str]:
    """What Minari has no place for, in words."""
    details = {"values": json.dumps(dict(store.entry(index).values))}
    if store.origin(index) != store.metadata:
        details["origin"] = json.dumps(dict(store.origin(index)))
    return details


def _read_episodes(
    dataset: Any, header: Header, frames: str | None
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Metadata and content of each episode."""
    for episode in dataset.iterate_episodes():
        (details,) = dataset.storage.get_episode_metadata([episode.id])
        values = {"seed": details["seed"]} if "seed" in details else {}
        metadata = header.metadata
        if header.arrays:
            values |= json.loads(details.get("values", "{}"))
            metadata = json.loads(details["origin"]) if "origin" in details else metadata
        yield metadata, _from_episode(episode, header.arrays, frames) | values


def _from_episode(episode: Any, specs: Mapping[str, ArraySpec], frames: str | None) -> Arrays:
    """The arrays of an episode; in `specs` those that are known by their names."""
    leaves = dict(_leaves(episode.observations, ""))
    name = frames if frames is not None else _guess_frames(leaves)
    if name not in leaves:
        raise ValueError(f"expected an observation {name!r}, got {sorted(leaves)}")
    if not isinstance(episode.actions, np.ndarray):
        raise ValueError(
            f"expected actions that are one array, got {type(episode.actions).__name__}"
        )
    arrays: Arrays = {"frames": leaves.pop(name)}
    for leaf, array in leaves.items():
        is_own = leaf in specs if specs else leaf.startswith(_OWN_NAMES)
        arrays[leaf if is_own and leaf != "frames" else f"observation/{leaf}"] = array
    arrays["action"] = np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])])
    outcomes = (
        ("reward", episode.rewards, np.float32),
        ("terminated", episode.terminations, np.bool_),
        ("truncated", episode.truncations, np.bool_),
    )
    for outcome, values, usual in outcomes:
        dtype = specs[outcome].dtype if outcome in specs else usual
        arrays[outcome] = np.concatenate([[0], values]).astype(dtype)
    return {
        name: array.astype(specs[name].dtype, copy=False) if name in specs else array
        for name, array in arrays.items()
    }


def _guess_frames(leaves: Mapping[str, NDArray[Any]]) -> str:
    pictures = [
        name
        for name, array in leaves.items()
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3, 4)
    ]
    if "frames" in leaves:
        return "frames"
    if len(pictures) != 1:
        raise ValueError(
            f"expected one observation of pictures (H,W,C) in uint8, got {pictures} among "
            f"{sorted(leaves)}; name it with frames="
        )
    return pictures[0]


def _nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` to `{"a": {"b": x}}`; Minari's names know no slash."""
    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        *groups, leaf = name.split("/")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = array
    return nested


def _leaves(node: Any, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays in nested observations; what is no array (words, say) is left out."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(child, f"{name}/{key}" if name else str(key))
    elif isinstance(node, np.ndarray) and node.dtype.kind in "biuf":
        yield name or "observation", node
