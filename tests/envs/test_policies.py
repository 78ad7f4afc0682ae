import numpy as np
import pytest

import ocrl.envs
from ocrl.envs.policies import RANDOM_SHARE, build_policy
from ocrl.envs.policies_crafter import _first_step


@pytest.fixture(scope="module")
def crafter():
    return ocrl.envs.make("crafter")


@pytest.fixture
def sprites():
    return ocrl.envs.make("sprites", size=32)


def play(env, policy, *, seed, length):
    """Actions and positions of the player."""
    observation, _ = env.reset(seed=seed)
    policy.reset(np.random.default_rng(seed))
    actions, cells, info = [], set(), {}
    for _ in range(length):
        actions.append(policy(observation))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        cells.add(tuple(info.get("player_pos", ())))
        if terminated or truncated:
            break
    return actions, cells, info


@pytest.mark.parametrize("name", ["random", "scripted", "mixed"])
@pytest.mark.parametrize("env_name", ["crafter", "sprites", "minigrid"])
def test_an_episode_follows_from_the_generator_alone(name, env_name):
    env = ocrl.envs.make(env_name)
    policy = build_policy(name, env)
    first, *_ = play(env, policy, seed=3, length=25)
    play(env, policy, seed=4, length=10)
    again, *_ = play(env, build_policy(name, env), seed=3, length=25)
    np.testing.assert_array_equal(first, again)
    assert all(env.action_space.contains(action) for action in first)


def test_mixed_is_random_now_and_then(sprites):
    class Scripted:
        def reset(self, rng):
            pass

        def __call__(self, observation):
            return "scripted"

    policy = build_policy("mixed", sprites)
    policy._scripted = Scripted()
    policy.reset(np.random.default_rng(0))
    share = np.mean([policy(None) != "scripted" for _ in range(4000)])
    assert abs(share - RANDOM_SHARE) < 0.03


def test_the_explorer_sees_more_of_the_world_than_random_play(crafter):
    counts = {}
    for name in ("random", "scripted"):
        policy = build_policy(name, crafter)
        plays = [play(crafter, policy, seed=seed, length=200) for seed in range(6)]
        counts[name] = sum(len(cells) for _, cells, _ in plays)
        if name == "scripted":
            reached = {
                achievement
                for *_, info in plays
                for achievement, count in info["achievements"].items()
                if count
            }
    assert counts["scripted"] > 3 * counts["random"]
    assert reached >= {"collect_wood", "collect_drink", "eat_cow", "defeat_zombie"}
    assert reached & {"place_table", "make_wood_pickaxe"}


def test_the_explorer_never_walks_into_lava(crafter):
    policy = build_policy("scripted", crafter)
    for seed in range(8):
        play(crafter, policy, seed=100 + seed, length=250)
        player = crafter._game.player
        assert crafter._game.world[player.pos][0] != "lava"


def test_the_explorer_changes_nothing_by_looking(crafter):
    """The same actions without it give the same episode."""
    actions, *_ = play(crafter, build_policy("scripted", crafter), seed=11, length=120)
    played = crafter.render()
    crafter.reset(seed=11)
    for action in actions:
        crafter.step(action)
    np.testing.assert_array_equal(crafter.render(), played)


@pytest.mark.parametrize(
    ("wall", "creature", "expected"),
    [
        ([], [], 1),
        ([(3, 2)], [], None),
        ([(3, y) for y in range(5)], [], -1),
        ([(3, y) for y in range(1, 5)], [], 2),
        ([(3, y) for y in range(4)], [], 3),
        ([(3, y) for y in range(1, 5)], [(3, 0)], -1),
    ],
)
def test_first_step_of_a_shortest_path(wall, creature, expected):
    """From (2,2) to (4,2) on a 5x5 map; 1 is right, 2 up, 3 down."""
    passable = np.ones((5, 5), np.bool_)
    occupied = np.zeros((5, 5), np.uint32)
    wanted = np.zeros((5, 5), np.bool_)
    wanted[4, 2] = True
    for cell in wall:
        passable[cell] = False
    for cell in creature:
        occupied[cell] = 7
    step = _first_step(passable, occupied, wanted, 2, 2)
    assert step in ((2, 3) if expected is None else (expected,))


def test_a_goal_may_be_what_nobody_walks_on():
    passable = np.ones((5, 5), np.bool_)
    wanted = np.zeros((5, 5), np.bool_)
    wanted[2, 3], passable[2, 3] = True, False
    assert _first_step(passable, np.zeros((5, 5), np.uint32), wanted, 2, 2) == 3


def test_an_unknown_policy_is_answered_with_those_that_exist(sprites):
    with pytest.raises(ValueError, match=r"'scriptd' \(did you mean 'scripted'\?\)") as caught:
        build_policy("scriptd", sprites)
    for name in ("random", "mixed", "module:factory"):
        assert name in str(caught.value)


def test_an_environment_without_a_player_says_so(sprites):
    class Bare:
        action_space = sprites.action_space

    with pytest.raises(ValueError, match="scripted player, got Bare: use policy=random"):
        build_policy("scripted", Bare())


@pytest.fixture
def agents(tmp_path, monkeypatch):
    (tmp_path / "my_saved_agents.py").write_text(
        """
class Agent:
    def __init__(self, env, action):
        self.action = int(action)

    def reset(self, rng):
        pass

    def __call__(self, observation):
        return self.action

def load(env, action="3"):
    return Agent(env, action)

def nothing(env):
    return None
"""
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("agents")
def test_a_saved_agent_is_found_by_module_and_factory(sprites):
    assert play(sprites, build_policy("my_saved_agents:load", sprites), seed=0, length=2)[0] == [
        3,
        3,
    ]
    policy = build_policy("my_saved_agents:load:2", sprites)
    assert play(sprites, policy, seed=0, length=2)[0] == [2, 2]


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:load", "No module named 'no_such_module'"),
        ("my_saved_agents:lode", "has no attribute 'lode'"),
        ("my_saved_agents:nothing", r"callable with a method reset\(rng\), got None"),
    ],
)
def test_what_is_no_agent_is_named(sprites, name, message):
    with pytest.raises(ValueError, match=message):
        build_policy(name, sprites)
