from functools import partial

import numpy as np
import pytest

from ocrl import envs


@pytest.fixture
def run(run_script, tmp_path):
    return partial(run_script, "pregenerate_worlds", folder=tmp_path)


def test_worlds_are_kept_added_to_and_those_of_the_game(run, tmp_path):
    folder = tmp_path / "worlds"
    first = run(folder, "--seeds", 2, "--area", 32, 32)
    assert first.returncode == 0 and "added 2 worlds" in first.stderr
    more = run(folder, "--seeds", 2, "--start", 1, "--area", 32, 32)
    assert "added 1 worlds" in more.stderr
    assert len(list(folder.iterdir())) == 3
    plain = envs.make("crafter", area=(32, 32))
    cached = envs.make("crafter", area=(32, 32), world_cache=str(folder))
    assert np.array_equal(plain.reset(seed=2)[0], cached.reset(seed=2)[0])


def test_mistakes_are_said_in_one_sentence(run, tmp_path):
    nothing = run(tmp_path, "--seeds", 0)
    assert nothing.returncode == 2 and "at least one seed" in nothing.stderr
    file = tmp_path / "file"
    file.touch()
    taken = run(file)
    assert taken.returncode == 2 and f"expected a folder, got the file {file}" in taken.stderr
    assert "Traceback" not in nothing.stderr + taken.stderr
