from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocrl.data.store import EpisodeStore, EpisodeWriter


def random_episode(rows: int, *, seed: int = 0, size: int = 8) -> dict[str, Any]:
    """An episode in which every row differs from every other one."""
    generator = np.random.default_rng([seed, rows])
    table = np.zeros(
        (rows, 3),
        [
            ("id", "u2"),
            ("category", "u1"),
            ("position", "f4", (2,)),
            ("box", "f4", (4,)),
            ("attributes", "f4", (0,)),
        ],
    )
    table["id"][:, 0] = 7
    table["box"] = generator.random((rows, 3, 4))
    return {
        "frames": generator.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "segmentation/entities": generator.integers(0, 65536, (rows, size, size), dtype=np.uint16),
        "action": generator.integers(0, 5, rows),
        "reward": generator.random(rows, dtype=np.float32),
        "terminated": np.arange(rows) == rows - 1,
        "truncated": np.zeros(rows, bool),
        "objects": table,
        "seed": seed,
    }


@pytest.fixture(name="random_episode")
def random_episode_fixture() -> Callable[..., dict[str, Any]]:
    return random_episode


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., EpisodeStore]:
    def make(rows: list[int], *, name: str = "store", **options: Any) -> EpisodeStore:
        with EpisodeWriter(tmp_path / name, metadata={"env": "test"}, **options) as writer:
            for seed, count in enumerate(rows):
                writer.append(random_episode(count, seed=seed))
        return EpisodeStore(tmp_path / name)

    return make
