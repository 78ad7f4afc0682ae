import subprocess
import sys
from pathlib import Path

import numpy as np

from ocrl import envs

SCRIPT = Path(__file__).parents[2] / "scripts" / "pregenerate_worlds.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_worlds_are_kept_added_to_and_those_of_the_game(tmp_path):
    folder = tmp_path / "worlds"
    first = run(folder, "--seeds", 2, "--area", 32, 32)
    assert first.returncode == 0 and "added 2 worlds" in first.stderr
    more = run(folder, "--seeds", 2, "--start", 1, "--area", 32, 32)
    assert "added 1 worlds" in more.stderr
    assert len(list(folder.iterdir())) == 3
    plain = envs.make("crafter", area=(32, 32))
    cached = envs.make("crafter", area=(32, 32), world_cache=str(folder))
    assert np.array_equal(plain.reset(seed=2)[0], cached.reset(seed=2)[0])


def test_mistakes_are_said_in_one_sentence(tmp_path):
    nothing = run(tmp_path, "--seeds", 0)
    assert nothing.returncode == 2 and "at least one seed" in nothing.stderr
    file = tmp_path / "file"
    file.touch()
    taken = run(file)
    assert taken.returncode == 2 and f"expected a folder, got the file {file}" in taken.stderr
    assert "Traceback" not in nothing.stderr + taken.stderr
