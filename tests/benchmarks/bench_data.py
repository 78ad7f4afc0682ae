"""Random clips per second from the store and its archive, against one .npz file per episode.

    python tests/benchmarks/bench_data.py [--quick] [--json PATH]

Clips of 16 Crafter frames of 64x64 with masks, in batches of 32, from a warm page cache. Ways are
timed in turns in one process; the best turn counts. Clips per second of processor time, over all
threads, are what a busy machine does not change.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ocrl.data.archive import pack
from ocrl.data.clips import ClipLoader
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs import make

T, BATCH_SIZE = 16, 32
TARGETS = {"memory map": 10_000, "archive": 2_000}


def collect(folder: Path, *, num_episodes: int, length: int) -> None:
    env = make("crafter")
    with EpisodeWriter(folder, metadata={"env": "crafter"}) as writer:
        for seed in range(num_episodes):
            frames, masks, actions = [env.reset(seed=seed)[0]], [env.segmentation()], []
            env.action_space.seed(seed)
            while len(actions) < length:
                actions.append(env.action_space.sample())
                frame, _, terminated, truncated, _ = env.step(actions[-1])
                frames.append(frame)
                masks.append(env.segmentation())
                if terminated or truncated:
                    break
            rows = len(frames)
            flags = np.zeros(rows, bool)
            writer.append(
                {
                    "frames": np.stack(frames),
                    "segmentation/entities": np.stack(masks),
                    "action": np.array([*actions, 0], np.int64),
                    "reward": np.zeros(rows, np.float32),
                    "terminated": flags,
                    "truncated": flags,
                    "seed": seed,
                }
            )


def npz_batch(folder: Path, num_episodes: int, step: int) -> torch.Tensor:
    generator = np.random.default_rng(step)
    frames, masks = [], []
    for episode in generator.integers(num_episodes, size=BATCH_SIZE):
        with np.load(folder / f"{episode}.npz") as arrays:
            start = generator.integers(len(arrays["is_first"]) - T + 1)
            frames.append(torch.from_numpy(arrays["frames"][start : start + T]))
            mask = arrays["segmentation/entities"][start : start + T]
            masks.append(torch.from_numpy(mask.astype(np.int32)))
    torch.stack(masks)
    return torch.stack(frames)


def rates(
    ways: dict[str, tuple[Callable[[int], object], int]], *, turns: int
) -> dict[str, dict[str, float]]:
    """Clips per second and per second of processor time."""
    best = {name: {"clips_per_second": 0.0, "clips_per_cpu_second": 0.0} for name in ways}
    for _ in range(turns):
        for name, (batch, repeats) in ways.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for step in range(repeats):
                batch(step)
            elapsed = {
                "clips_per_second": time.perf_counter() - begin,
                "clips_per_cpu_second": time.process_time() - begin_cpu,
            }
            for kind, seconds in elapsed.items():
                best[name][kind] = max(best[name][kind], repeats * BATCH_SIZE / seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    num_episodes, length = (8, 120) if arguments.quick else (30, 300)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(folder / "plain", num_episodes=num_episodes, length=length)
        store = EpisodeStore(folder / "plain")
        pack(store, folder / "packed.ocrl")
        archive = EpisodeStore(folder / "packed.ocrl")
        for index in range(len(store)):
            np.savez_compressed(folder / f"{index}.npz", **store.episode(index))
        store.verify()
        archive.verify()
        settings = {"clip_length": T, "batch_size": BATCH_SIZE, "seed": 0}
        loaders = {
            way: ClipLoader(source, segmentation=["entities"], split="all", **settings)
            for way, source in (("memory map", store), ("archive", archive))
        }
        plain, packed = loaders["memory map"].batch, loaders["archive"].batch
        ways: dict[str, tuple[Callable[[int], object], int]] = {
            "npz per episode": (lambda step: npz_batch(folder, len(store), step), 1),
            "memory map": (plain, 100),
            "archive": (packed, 20),
        }
        best = rates(ways, turns=4 if arguments.quick else 10)
        raw = sum(array.nbytes for array in store.episode(0).values()) / store.lengths[0]
        ratio = raw * store.num_frames / (folder / "packed.ocrl").stat().st_size
    write = sys.stdout.write
    write(f"{'way':<18}{'clips/s':>10}{'target':>9}{'ratio':>9}{'clips/cpu s':>13}\n")
    baseline = best["npz per episode"]["clips_per_second"]
    for way, found in best.items():
        rate, cpu_rate = found["clips_per_second"], found["clips_per_cpu_second"]
        target = TARGETS.get(way, "")
        write(f"{way:<18}{rate:>10.0f}{target:>9}{rate / baseline:>8.0f}x{cpu_rate:>13.0f}\n")
    write(f"the archive is {ratio:.1f} times smaller than the memory maps\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({**best, "compression": ratio}, indent=2))


if __name__ == "__main__":
    main()
