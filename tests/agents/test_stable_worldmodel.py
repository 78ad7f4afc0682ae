"""The protocol of `stable-worldmodel` in its shapes, and its own solvers where it is installed."""

import importlib
import importlib.util
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from ocrl.agents.costs import GoalCost, RewardCost
from ocrl.agents.stable_worldmodel import CostableWorldModel

SMALL_WORLD = runpy.run_path(str(Path(__file__).parents[1] / "ocrl/small_world.py"))
B, S, T, K, D = 2, 5, 4, 3, 8


def make(*options, matching="aligned", judged="last", **changes):
    world = SMALL_WORLD["make"](*options, **changes)
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    torch.nn.init.normal_(world.outcome.to_reward.weight, std=0.3)
    return CostableWorldModel(world, matching=matching, judged=judged, discount=0.9)


BOX = ("num_actions=0", "action_dim=2")
CLIP = SMALL_WORLD["draw"]()


def info(num_frames=1, *, goal=True, history=None):
    """What a solver hands over: every candidate observes the same."""
    rows = {"pixels": CLIP.video[:, :num_frames] / 255.0}
    if goal:
        rows["goal"] = CLIP.video[:, 5:] / 255.0
    if history is not None:
        rows["action_history"] = history
    return {name: value[:, None].expand(B, S, *value.shape[1:]) for name, value in rows.items()} | {
        "id": np.zeros((B, S))
    }


def one_hot(actions):
    return torch.nn.functional.one_hot(actions, 3).float()


def test_frames_are_encoded_as_the_world_model_does():
    adapter = make()
    given = {"pixels": CLIP.video / 255.0}
    slots = adapter.encode(given)["emb"]
    assert given["emb"] is slots and slots.shape == (B, 6, K, D)
    torch.testing.assert_close(slots, adapter.model.encode(CLIP).slots)
    last = adapter.encode({"pixels": CLIP.video.movedim(2, -1)})["emb"]
    torch.testing.assert_close(last, slots)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_a_rollout_is_what_the_world_model_imagines(num_frames):
    adapter = make()
    candidates = torch.randint(3, (B, S, T), generator=torch.Generator().manual_seed(0))
    done = CLIP.action[:, : num_frames - 1]
    history = one_hot(done) if num_frames > 1 else None
    given = info(num_frames, history=history)
    with torch.no_grad():
        out = adapter.rollout(given, one_hot(candidates))
        assert out is given and out["predicted_emb"].shape == (B, S, num_frames + T, K, D)
        assert out["predicted_reward"].shape == out["predicted_continue"].shape == (B, S, T)
        world = adapter.model
        slots = world.encode(CLIP[:num_frames]).slots
        state = world.read(slots, done, CLIP.is_first[:, :num_frames])
        for index in range(S):
            dream = world.imagine(slots[:, -1], state, candidates[:, index], T)
            expected = torch.cat([slots, dream.slots], dim=1)
            torch.testing.assert_close(out["predicted_emb"][:, index], expected)
            torch.testing.assert_close(out["predicted_reward"][:, index], dream.reward)


def test_the_context_is_encoded_once_for_all_iterations(monkeypatch):
    adapter, given, encoded = make(), info(), []
    encode = adapter.model.encode
    monkeypatch.setattr(
        adapter.model, "encode", lambda clip: encoded.append(clip.video.shape) or encode(clip)
    )
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        adapter.get_cost(given, one_hot(torch.randint(3, (B, S, T), generator=generator)))
    # The goal and the context, not once per candidate.
    assert encoded == [(B, 1, 3, 16, 16)] * 2


@pytest.mark.parametrize("matching", ["aligned", "hungarian"])
def test_costs_are_distances_from_the_goal_or_rewards_without_one(matching):
    adapter = make(*BOX, matching=matching, judged="every")
    candidates = torch.rand(B, S, T, 2) * 2 - 1
    with torch.no_grad():
        cost = adapter.get_cost(info(), candidates)
        assert cost.shape == (B, S) and cost.std(1).min() > 0
        slots = adapter.model.encode(CLIP[:1]).slots[:, 0]
        goal = adapter.encode({"pixels": CLIP.video[:, 5:]})["emb"][:, 0]
        state = adapter.model.dynamics.initial_state(B * S)
        dream = adapter.model.imagine(
            slots.repeat_interleave(S, 0), state, candidates.flatten(0, 1), T
        )
        expected = GoalCost(goal, matching=matching, judged="every")(dream)
        torch.testing.assert_close(cost, expected.view(B, S))
        plain = adapter.get_cost(info(goal=False), candidates)
        torch.testing.assert_close(plain, RewardCost(0.9, ends=True)(dream).view(B, S))


def test_several_actions_in_a_planned_step():
    adapter = make(*BOX)
    actions = torch.rand(B, S, 4, 2)
    with torch.no_grad():
        single = adapter.rollout(info(), actions)["predicted_emb"]
        blocks = adapter.rollout(info(), actions.view(B, S, 2, 4))
    torch.testing.assert_close(blocks["predicted_emb"], single[:, :, [0, 2, 4]])
    assert blocks["predicted_reward"].shape == (B, S, 4)


def test_what_does_not_fit_is_refused():
    adapter, candidates = make(*BOX), torch.zeros(B, S, T, 2)
    with pytest.raises(ValueError, match=r"expected pixels \(B,T,3,16,16\), got NoneType"):
        adapter.rollout({}, candidates)
    with pytest.raises(ValueError, match=r"got \(2, 1, 3, 8, 8\)"):
        adapter.encode({"pixels": torch.zeros(B, 1, 3, 8, 8)})
    with pytest.raises(ValueError, match="from -2 to 0: leave out the normalisation"):
        bad = torch.zeros(B, 1, 3, 16, 16)
        bad[0, 0, 0, 0, 0] = -2
        adapter.encode({"pixels": bad})
    with pytest.raises(ValueError, match=r"actions \(B,S,T,2\) .* got \(2, 5, 4, 3\)"):
        adapter.get_cost(info(), torch.zeros(B, S, T, 3))
    with pytest.raises(ValueError, match=r"action_history \(B,S,2,A\) beside 3 frames"):
        adapter.rollout(info(3), candidates)
    with pytest.raises(ValueError, match="one action between two frames of the context, got 2"):
        adapter.rollout(info(3, history=torch.zeros(B, 2, 4)), candidates)


def package(name):
    """A module of the package, which warns of what else it could use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def solver_of(name, adapter):
    """A solver of the package, of whichever release is installed."""
    try:
        solvers, named = package("stable_worldmodel.planning.solver"), {"cost": adapter}
    except ModuleNotFoundError:
        solvers, named = package("stable_worldmodel.solver"), {"model": adapter}
    return getattr(solvers, name)(**named, num_samples=60, n_steps=4, topk=10, seed=0)


@pytest.mark.parametrize("name", ["CEMSolver", "CategoricalCEMSolver"])
def test_its_solvers_plan_on_slots(name):
    if importlib.util.find_spec("stable_worldmodel") is None:
        pytest.skip("stable-worldmodel is not installed")
    is_box = name == "CEMSolver"
    adapter = make(*(BOX if is_box else ()))
    solver = solver_of(name, adapter)
    spaces = gymnasium.spaces
    space = spaces.Box(-1.0, 1.0, (B, 2)) if is_box else spaces.Discrete(3)
    config = SimpleNamespace(horizon=T, action_block=1, receding_horizon=1)
    solver.configure(action_space=space, n_envs=B, config=config)
    frames = {"pixels": CLIP.video[:, :1] / 255.0, "goal": CLIP.video[:, 5:] / 255.0}
    plan = solver.solve(dict(frames))["actions"]
    found = plan if is_box else one_hot(plan[..., 0])
    expanded = {name: value[:, None] for name, value in frames.items()}
    blind = torch.zeros(B, 40, T, 2).normal_() if is_box else one_hot(torch.randint(3, (B, 40, T)))
    with torch.no_grad():
        cost = adapter.get_cost(dict(expanded), found[:, None].float())
        others = adapter.get_cost(
            {n: v.expand(B, 40, *v.shape[2:]) for n, v in expanded.items()}, blind
        )
    assert (cost[:, 0] < others.median(1).values).all()
