import gymnasium
import minigrid  # noqa: F401  registers the ids
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES
from minigrid.envs.babyai.core import verifier

import ocrl.envs
from ocrl.envs.minigrid_mission import MissionCode


def make_game(name, seed=0):
    game = gymnasium.make(name, disable_env_checker=True).unwrapped
    game.reset(seed=seed)
    return game


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MiniGrid-DoorKey-5x5-v0", 1),
        ("MiniGrid-GoToObject-6x6-N2-v0", 6 + 3),
        ("MiniGrid-Fetch-5x5-N2-v0", 5 + 6 + 2),
        ("MiniGrid-PutNear-6x6-N2-v0", 6 + 3 + 6 + 3),
        ("MiniGrid-KeyCorridorS3R1-v0", 6 + 1),
        ("BabyAI-PutNextLocal-v0", 128),
        ("BabyAI-BossLevel-v0", 128),
    ],
)
def test_missions_have_codes_of_one_size_one_to_one(name, size):
    game, missions = make_game(name), {}
    code = MissionCode(game)
    assert code.size == size
    for seed in range(12):
        game.reset(seed=seed)
        vector = code(game)
        assert vector.shape == (size,)
        assert vector.dtype == np.float32
        assert set(vector.tolist()) <= {0.0, 1.0}
        missions.setdefault(game.mission, tuple(vector))
        assert missions[game.mission] == tuple(vector)
    assert len(set(missions.values())) == len(missions)
    assert (len(missions) > 1) == (size > 1)


def test_gaps_of_a_sentence_by_hand():
    """Put the <colour> <type> near the <colour> <type>."""
    game = make_game("MiniGrid-PutNear-6x6-N2-v0")
    game.mission = "put the red key near the green ball"
    vector = MissionCode(game)(game).tolist()
    colors = [[float(name == color) for name in COLOR_NAMES] for color in ("red", "green")]
    types = [[float(name == kind) for name in ("key", "ball", "box")] for kind in ("key", "ball")]
    assert vector == [*colors[0], *types[0], *colors[1], *types[1]]
    game.mission = "put the red key into the green ball"
    with pytest.raises(ValueError, match="expected one of 324 missions"):
        MissionCode(game)(game)


def test_a_sequence_is_coded_in_the_order_in_which_it_is_done():
    game = make_game("BabyAI-BossLevel-v0")
    code = MissionCode(game)
    go = verifier.GoToInstr(verifier.ObjDesc("door", "blue", "left"))
    take = verifier.PickupInstr(verifier.ObjDesc(None, "red"))
    put = verifier.PutNextInstr(verifier.ObjDesc("ball"), verifier.ObjDesc("box", "grey"))

    def coded(instruction):
        game.instrs = instruction
        return code(game).reshape(2, 2, 32)

    then, after = coded(verifier.BeforeInstr(go, take)), coded(verifier.AfterInstr(take, go))
    np.testing.assert_array_equal(then, after)
    assert not then[:, 1].any()
    first, last = then[:, 0]
    assert first.sum() == 4 and last.sum() == 2
    assert (coded(verifier.BeforeInstr(take, go)) != then).any()
    both = coded(verifier.BeforeInstr(verifier.AndInstr(go, put), take))
    np.testing.assert_array_equal(both[0, 0], first)
    np.testing.assert_array_equal(both[1, 0], last)
    verb, moved, fixed = np.split(both[0, 1], [4, 18])
    assert verb.tolist() == [0, 0, 0, 1]
    assert moved.sum() == 1 and fixed.sum() == 2
    assert moved[verifier.OBJ_TYPES.index("ball")] == 1
    assert fixed[len(verifier.OBJ_TYPES) + COLOR_NAMES.index("grey")] == 1


def test_the_mission_is_observed_and_lasts_an_episode():
    envs = ocrl.envs.make_vec(
        "minigrid", 2, id="MiniGrid-Fetch-5x5-N2-v0", observe=["frame", "mission"]
    )
    seen = {}
    for seed in range(4):
        observation, info = envs.reset(seed=seed)
        for _ in range(3):
            for mission, vector in zip(info["mission"], observation["mission"], strict=True):
                assert seen.setdefault(mission, tuple(vector)) == tuple(vector)
            observation, *_, info = envs.step(np.array([0, 1]))
    assert len(set(seen.values())) == len(seen) > 2
