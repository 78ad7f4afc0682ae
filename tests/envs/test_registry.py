import importlib.util
from pathlib import Path

import gymnasium
import pytest
import yaml

import ocrl.configs
import ocrl.envs
from ocrl.envs import registry

FILES = sorted((Path(ocrl.configs.__file__).parent / "env").glob("*.yaml"))


def test_every_file_is_a_name_and_a_gymnasium_id():
    assert FILES
    assert ocrl.envs.names() == tuple(sorted(path.stem for path in FILES))
    for path in FILES:
        assert registry.gymnasium_id(path.stem) in gymnasium.registry


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("crafter", "ocrl/Crafter-v0"),
        ("sprites-object_goal", "ocrl/Sprites-ObjectGoal-v0"),
        ("sprites", "ocrl/Sprites-v0"),
    ],
)
def test_ids_that_people_type(name, identity):
    assert registry.gymnasium_id(name) == identity
    assert registry.short_name(identity) == registry.short_name(name) == name


def test_make_takes_both_spellings_and_arguments():
    by_name = ocrl.envs.make("sprites", size=48)
    by_id = ocrl.envs.make("ocrl/Sprites-v0")
    assert type(by_name) is type(by_id)
    assert by_name.observation_space.shape == (48, 48, 3)
    assert by_id.observation_space.shape == (64, 64, 3)


def test_changed_settings_change_nothing_for_the_next_one():
    first = registry.settings("scenes3d")
    first["colors"].append("no colour")
    first["size"] = 1
    assert "no colour" not in registry.settings("scenes3d")["colors"]
    assert registry.settings("scenes3d")["size"] != 1


def test_gymnasium_makes_the_same_environment():
    made = gymnasium.make("ocrl/Sprites-ObjectGoal-v0", size=48)
    direct = ocrl.envs.make("sprites-object_goal", size=48)
    assert isinstance(made.unwrapped, ocrl.envs.ObjectEnv)
    first, second = made.reset(seed=5)[0], direct.reset(seed=5)[0]
    assert (first == second).all()
    made.close()


def test_a_file_inherits_from_its_sibling_and_wins_over_it():
    parent = yaml.safe_load((FILES[0].parent / "sprites.yaml").read_text())
    child = yaml.safe_load((FILES[0].parent / "sprites-object_goal.yaml").read_text())
    del child["defaults"]
    settings = registry.settings("sprites-object_goal")
    assert settings == parent | child
    assert settings["task"] == "object_goal" != parent["task"]


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("craftr", "'crafter'"),
        ("Crafter", "'crafter'"),
        ("sprites-object_gaol", "'sprites-object_goal'"),
        ("ocrl/Sprites-ObjectGaol-v0", "'ocrl/Sprites-ObjectGoal-v0'"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_exist(given, nearest):
    with pytest.raises(ValueError, match="unknown environment") as caught:
        ocrl.envs.make(given)
    assert f"did you mean {nearest}?" in str(caught.value)
    for path in FILES:
        assert path.stem in str(caught.value)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(ValueError, match="unknown environment 'zzzz': expected one of"):
        ocrl.envs.make("zzzz")


def test_a_label_has_what_makes_it_another_task():
    label, settings = registry.label, registry.settings
    assert label("crafter", {**settings("crafter"), "size": 72}) == "crafter"
    changed = {
        **settings("minigrid"),
        "id": "A-v0",
        "size": 32,
        "view": "partial",
        "max_objects": 4,
    }
    assert label("minigrid", changed) == "minigrid id=A-v0 view=partial"


def test_an_unknown_argument_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'sise' \(did you mean 'size'\?\): expected one of"):
        ocrl.envs.make("sprites", sise=48)


@pytest.mark.parametrize("package", ["envs", "agents"])
def test_the_bare_name_says_what_to_import(package):
    file = Path(ocrl.configs.__file__).parent.parent / package / "__init__.py"
    spec = importlib.util.spec_from_file_location(package, file)
    with pytest.raises(ImportError, match=f"import ocrl.{package}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_every_discrete_action_has_a_word() -> None:
    for name in ("sprites-object_goal", "minigrid", "crafter"):
        env = registry.make(name)
        assert len(env.action_names) == env.action_space.n, name
        assert all(word == word.lower() for word in env.action_names)
    assert registry.make("sprites-reach").action_names == ()
