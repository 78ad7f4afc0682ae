import os
import signal

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import ocrl.envs

NUM_ENVS = 2
SETTINGS = {"size": 32, "max_steps": 3}


@pytest.fixture(params=[False, True], ids=["same_process", "sub_process"])
def envs(request):
    envs = ocrl.envs.make_vec("sprites", NUM_ENVS, processes=request.param, **SETTINGS)
    yield envs
    envs.close()


def actions(length):
    return np.random.default_rng(0).integers(4, size=(length, NUM_ENVS))


def play(envs, length):
    rows = [envs.reset(seed=7)[0], envs.segmentation("scene")]
    for action in actions(length):
        observation, reward, terminated, truncated, info = envs.step(action)
        rows += [observation, reward, terminated, truncated, envs.segmentation("scene")]
        if truncated.any():
            rows.append(np.stack(info["final_obs"]))
    return rows


def test_both_kinds_give_the_same():
    kinds = [ocrl.envs.make_vec("sprites", NUM_ENVS, processes=p, **SETTINGS) for p in (0, 1)]
    first, second = (play(envs, 8) for envs in kinds)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for envs in kinds:
        envs.close()


def test_autoreset_gives_the_last_frame_in_info_and_the_first_of_the_next_episode(envs):
    """Against each environment played by hand."""
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    singles = [ocrl.envs.make("sprites", **SETTINGS) for _ in range(NUM_ENVS)]
    observation, _ = envs.reset(seed=7)
    for index, single in enumerate(singles):
        np.testing.assert_array_equal(observation[index], single.reset(seed=7 + index)[0])
    num_ended = 0
    for action in actions(8):
        observation, reward, terminated, truncated, info = envs.step(action)
        masks = envs.segmentation("entities")
        for index, single in enumerate(singles):
            frame, *outcome, _ = single.step(action[index])
            assert outcome == [reward[index], terminated[index], truncated[index]]
            if truncated[index]:
                num_ended += 1
                assert info["_final_obs"][index]
                np.testing.assert_array_equal(info["final_obs"][index], frame)
                frame, _ = single.reset()
                assert (frame != info["final_obs"][index]).any()
            np.testing.assert_array_equal(observation[index], frame)
            np.testing.assert_array_equal(masks[index], single.segmentation("entities"))
    assert num_ended == 2 * NUM_ENVS


def test_masks_and_tables_come_for_all(envs):
    envs.reset(seed=0)
    masks = envs.segmentation()
    assert masks.shape == (NUM_ENVS, 32, 32)
    assert masks.dtype == np.uint16
    for mask, table in zip(masks, envs.objects(), strict=True):
        assert set(np.unique(mask)) - {0} <= set(table["id"])


def test_an_unknown_preset_does_no_harm(envs):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="expected a preset"):
        envs.segmentation("entity")
    assert envs.segmentation("entities").any()


def test_a_killed_process_is_named():
    envs = ocrl.envs.make_vec("sprites", NUM_ENVS, processes=True, **SETTINGS)
    envs.reset(seed=0)
    os.kill(envs.processes[1].pid, signal.SIGKILL)
    envs.processes[1].join()
    with pytest.raises(ChildProcessError, match=r"environment 1 \(exit code -9\) has ended"):
        envs.step(actions(1)[0])
    assert envs.closed
    assert not any(process.is_alive() for process in envs.processes)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_envs of at least 1"):
        ocrl.envs.make_vec("sprites", 0)
    for processes in (False, True):
        with pytest.raises(ValueError, match="unknown environment"):
            ocrl.envs.make_vec("sprits", 2, processes=processes)
