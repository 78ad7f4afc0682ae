from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocrl.data.store import EpisodeStore, EpisodeWriter

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_episodes.py"


@pytest.fixture(scope="module")
def command():
    specification = importlib.util.spec_from_file_location("convert_episodes", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "store", metadata={}) as writer:
        for rows in (5, 3):
            writer.append({"frames": generator.integers(0, 9, (rows, 6, 6, 3), dtype=np.uint8)})
    return tmp_path / "store"


def test_packing_and_back(command, store, tmp_path, capsys):
    assert command("pack", store, tmp_path / "packed") == 0
    assert command("unpack", tmp_path / "packed", tmp_path / "again") == 0
    for path in (store, tmp_path / "packed", tmp_path / "again"):
        assert command("verify", path) == 0
    fingerprint = EpisodeStore(store).fingerprint
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(f"2 episodes, 8 frames, {fingerprint}") for line in lines)


def test_damage_is_named_with_exit_code_1(command, store, capsys):
    os.truncate(store / "shard-000-00000" / "frames.bin", 6 * 6 * 3 * 6)
    assert command("verify", store) == 1
    error = capsys.readouterr().err
    assert "1 damage(s)" in error and "episode 1: frames.bin is missing or shorter" in error
    assert error.count("\n") == 1


def test_a_store_that_is_none_is_told_without_options_of_others(command, tmp_path, capsys):
    assert command("verify", tmp_path) == 1
    error = capsys.readouterr().err
    assert "holds no whole episode" in error and "data.path" not in error


def test_importing_a_video_folder_that_is_not_there(command, tmp_path, capsys):
    missing = tmp_path / "missing"
    assert command("import", missing, tmp_path / "store", "--image-size", 8, 8) == 1
    assert "correct the path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("import_", ["import", "import-clevr", "import-posed --layout uorf"])
def test_a_size_of_no_pixel_is_one_sentence(command, tmp_path, capsys, import_):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    name, *options = import_.split()
    arguments = (name, tmp_path, tmp_path / "store", *options, "--image-size", 0, 64)
    assert command(*arguments) == 1
    error = capsys.readouterr().err
    assert "an image size of at least 1 1, got 0 64" in error and error.count("\n") == 1


def test_an_unknown_command_lists_those_that_exist(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("pakc", "a", "b")
    assert "'unpack'" in capsys.readouterr().err
