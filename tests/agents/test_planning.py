"""Planning in a world that is known exactly."""

import runpy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils._pytree import tree_map

from ocrl import checkpoint
from ocrl.agents.costs import GoalCost, RewardCost
from ocrl.agents.planner import find_solver
from ocrl.agents.planning import Planning
from ocrl.agents.solvers import ActionSpace

CONFIGS = Path(__file__).parents[2] / "configs"
ICE = runpy.run_path(str(Path(__file__).with_name("analytic_world.py")))
R, F, Rink, make_world = (ICE[name] for name in ("R", "F", "Rink", "make_world"))


def arguments(**changes):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checkpoint.plain(compose(overrides=["+agent=planning"]).agent.arguments)
    return {name: value for name, value in config.items() if name != "_target_"} | changes


def make(*, is_discrete=False, **changes):
    sizes = {"num_actions": 4, "action_dim": 0} if is_discrete else {"num_actions": 0}
    sizes = {"action_dim": 2, **sizes}
    common = {"num_slots": R, "slot_dim": F, "has_presence": False}
    return Planning(**common, **sizes, **{"pooling": {}, **arguments(**changes)})


def play(planning, rink, num_steps, *, is_deterministic=True):
    """How many targets each environment reached, and the state."""
    state = planning.initial_state(len(rink.rows))
    reached = torch.zeros(len(rink.rows))
    for _ in range(num_steps):
        action, state = planning.act(
            rink.world, rink.rows, state, rink.is_first, is_deterministic=is_deterministic
        )
        reached += rink.step(action)
    return reached, state


@pytest.mark.parametrize("is_discrete", [False, True], ids=["continuous", "discrete"])
def test_a_planner_reaches_what_others_do_not(is_discrete):
    planning = make(is_discrete=is_discrete)
    reached, state = play(planning, Rink(4, is_discrete=is_discrete), 60)
    assert state["step"].tolist() == [60] * 4
    # The puck crosses the rink in about ten steps; whoever pushes at random seldom arrives.
    rink, arrived = Rink(4, is_discrete=is_discrete), torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        drawn = torch.randint(4, (4,), generator=generator)
        arrived += rink.step(drawn if is_discrete else ICE["MOVES"][drawn])
    assert (reached >= 4).all() and arrived.mean() < 0.3 * reached.mean()


def test_what_is_imagined_comes_true_over_ends_of_episodes():
    planning, rink = make(), Rink(3, is_discrete=False)
    state, ends = planning.initial_state(3), 0
    for _ in range(30):
        rows, is_first = rink.rows, rink.is_first
        seen = []
        cost = planning.cost(rink.world)
        action, later = planning.planner.choose(
            rink.world,
            rows,
            state,
            is_first,
            cost=lambda dream, cost=cost, seen=seen: seen.append(dream) or cost(dream),
            is_deterministic=True,
        )
        # Where an episode begins the puck stands still, whatever was before.
        speed = (
            torch.zeros(3, 2)
            if state["dynamics"] is None
            else (rows[:, 0, :2] - state["dynamics"]["before"][:, 0, :2]).masked_fill(
                is_first[:, None], 0.0
            )
        )
        number = len(seen[0].slots) // 3
        first = seen[0].slots.unflatten(0, (3, number))[:, :, 0, 0, :2]
        done = seen[0].action.unflatten(0, (3, number))[:, :, 0]
        expected = rows[:, None, 0, :2] + ICE["SLIDE"] * speed[:, None] + ICE["PUSH"] * done
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(later["dynamics"]["before"], rows)
        ends += int(rink.step(action).sum())
        state = later
    assert ends > 2


@pytest.mark.parametrize("is_discrete", [False, True], ids=["continuous", "discrete"])
def test_an_environment_is_planned_for_as_if_it_were_alone(is_discrete):
    planning, rink = make(is_discrete=is_discrete), Rink(3, is_discrete=is_discrete)
    _, state = play(planning, rink, 4)
    options = {"is_deterministic": False}
    together, after = planning.act(rink.world, rink.rows, state, rink.is_first, **options)
    for row in range(3):
        own = slice(row, row + 1)
        cut = tree_map(lambda value, own=own: value[own], state)
        alone, later = planning.act(rink.world, rink.rows[own], cut, rink.is_first[own], **options)
        torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(later["plan"].mean[0], after["plan"].mean[row])
    again, _ = planning.act(rink.world, rink.rows, state, rink.is_first, **options)
    assert torch.equal(again, together)
    other = make(is_discrete=is_discrete, seed=5)
    plan = other.act(rink.world, rink.rows, state, rink.is_first, **options)[1]["plan"]
    assert not torch.equal(plan.mean, after["plan"].mean)


def test_a_plan_is_done_or_drawn_around():
    planning, rink = make(), Rink(2, is_discrete=False)
    state = planning.initial_state(2)
    done, after = planning.act(rink.world, rink.rows, state, rink.is_first, is_deterministic=True)
    drawn, _ = planning.act(rink.world, rink.rows, state, rink.is_first, is_deterministic=False)
    assert torch.equal(done, after["plan"].action[:, 0])
    assert torch.equal(drawn, after["plan"].drawn[:, 0]) and not torch.equal(drawn, done)


def test_several_steps_of_a_plan_are_done_and_episodes_that_begin_have_their_own():
    planning, rink = make(steps_per_plan=3), Rink(3, is_discrete=False)
    searched = []
    solve = planning.planner.solver.solve
    planning.planner.solver.solve = lambda problem: (
        searched.append(len(problem.generators)) or solve(problem)
    )
    state, plans, begun = planning.initial_state(3), torch.zeros(3, dtype=torch.int64), None
    for step in range(12):
        begun = rink.is_first.clone()
        rink.is_first |= torch.tensor([False, step == 4, False])
        expected = ((plans % 3 == 0) | rink.is_first).sum()
        num_before = len(searched)
        action, state = planning.act(
            rink.world, rink.rows, state, rink.is_first, is_deterministic=True
        )
        # One search of those that need it, none where no plan is done.
        assert searched[num_before:] == ([int(expected)] if expected else [])
        plans = torch.where(rink.is_first, 0, plans)
        chosen = state["plan"].action[torch.arange(3), plans % 3]
        assert torch.equal(action, chosen)
        plans += 1
        rink.step(action)
        rink.is_first &= False
    assert begun is not None and sum(searched) == 3 * 4 + 1
    reached, _ = play(make(steps_per_plan=2, horizon=6), Rink(4, is_discrete=False), 60)
    assert (reached >= 3).all()


def test_with_a_goal_it_goes_where_there_is_no_reward():
    planning, rink = (
        make(matching="hungarian", judged="every", horizon=6),
        Rink(1, is_discrete=False),
    )
    goal = rink.rows.clone()
    goal[0, 0, :2] = torch.tensor([0.9, 0.1])
    planning.aim_at(goal.flip(1))
    assert isinstance(planning.cost(rink.world), GoalCost)
    rows, state = rink.rows, planning.initial_state(1)
    before = rink.world.dynamics.initial_state(1)
    first = torch.tensor([True])
    for _ in range(25):
        action, state = planning.act(rink.world, rows, state, first, is_deterministic=True)
        rows, before = rink.world.dynamics.step(rows, action, before, first)
        first = torch.tensor([False])
    assert (rows[0, 0, :2] - goal[0, 0, :2]).norm() < 0.1
    copy = make(matching="hungarian", judged="every", horizon=6)
    copy.load_state_dict(planning.state_dict())
    assert copy.has_goal and torch.equal(copy.goal, planning.goal)


def guide(**changes):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checkpoint.plain(compose(overrides=["+agent=planning_guided"]).agent.arguments)
    pooling = {"_target_": "ocrl.agents.pooling.Concatenation", "hidden_dims": [8], "dim": 8}
    sizes = {"num_slots": R, "slot_dim": F}
    return {"guide": config["guide"] | changes, "pooling": pooling | sizes}


@pytest.mark.parametrize("is_discrete", [False, True], ids=["continuous", "discrete"])
def test_a_guide_values_what_comes_after_the_horizon_and_is_tried(is_discrete):
    torch.manual_seed(0)
    planning, rink = make(is_discrete=is_discrete, **guide()), Rink(2, is_discrete=is_discrete)
    actor = planning.guide.actor
    torch.nn.init.normal_(actor.network.head.layers[-1].weight)
    torch.nn.init.normal_(planning.guide.slow_critic.network.head.layers[-1].weight)
    cost = planning.cost(rink.world)
    assert cost.value(rink.rows).std() > 0
    tried = []
    solve = planning.planner.solver.solve
    planning.planner.solver.solve = lambda problem: (
        tried.append(problem.proposals) or solve(problem)
    )
    state = planning.initial_state(2)
    options = {"is_deterministic": True}
    planning.act(rink.world, rink.rows, state, rink.is_first, **options)
    chosen = actor(rink.rows).mode()
    torch.testing.assert_close(tried[0][:, 0, 0], chosen)
    assert tried[0].shape[:3] == (2, 1, planning.planner.horizon)
    # Where only the guide's own sequence is worth something, it is what is done.
    planning.planner.solver = find_solver(planning.planner.space, **solvers(num_candidates=3))
    proposal = tried[0][:, 0]

    class OnlyThis:
        def __call__(self, dream):
            number = len(dream.action) // 2
            wanted = proposal.repeat_interleave(number, 0)
            return (dream.action - wanted).abs().flatten(1).sum(1).float()

    plan = planning.planner.choose(
        rink.world,
        rink.rows,
        state,
        rink.is_first,
        cost=OnlyThis(),
        actor=planning._likeliest,
        **options,
    )[1]["plan"]
    torch.testing.assert_close(plan.cost, torch.zeros(2))
    planning.aim_at(rink.rows[:1])
    planning.act(rink.world, rink.rows, state, rink.is_first, **options)
    assert set(planning.optimizers()) == {"actor", "critic"} and make().optimizers() == {}


def solvers(**changes):
    small = {"num_elites": 1, "num_iterations": 1, **changes}
    known = arguments()
    return {kind: known[kind] | small for kind in ("continuous", "discrete")}


def test_what_it_is_judged_by():
    assert make().cost(make_world(is_discrete=False)) == RewardCost(0.99, ends=True)
    endless = make_world(is_discrete=False, weights=ICE["WEIGHTS"] | {"continue": 0.0})
    assert make(gamma=0.9).cost(endless) == RewardCost(0.9, ends=False)
    unpaid = make_world(is_discrete=False, weights=ICE["WEIGHTS"] | {"reward": 0.0})
    with pytest.raises(ValueError, match="a goal, or a world model that has learned rewards"):
        make().cost(unpaid)


def test_a_horizon_beyond_training_works_and_is_warned_of():
    planning, rink = make(horizon=3), Rink(1, is_discrete=False)
    world = make_world(is_discrete=False, horizon=2)
    with pytest.warns(UserWarning, match=r"rollouts of 2 steps, and is asked for 3: .* errors add"):
        planning.act(
            world, rink.rows, planning.initial_state(1), rink.is_first, is_deterministic=True
        )


def test_mistakes_are_one_sentence():
    with pytest.raises(ValueError, match=r"agent.arguments.gamma in \(0,1\], got 0"):
        make(gamma=0.0)
    with pytest.raises(ValueError, match=r"agent.arguments.horizon of at least 1 .* got 0 and 1"):
        make(horizon=0)
    with pytest.raises(ValueError, match=r"steps_per_plan from 1 to it, got 5 and 6"):
        make(horizon=5, steps_per_plan=6)
    with pytest.raises(ValueError, match="matching 'aligned' or 'hungarian', got 'nearest'"):
        make(matching="nearest")
    icem = arguments()["continuous"]
    with pytest.raises(
        ValueError, match=r"agent.arguments.discrete: expected a solver of discrete"
    ):
        make(is_discrete=True, discrete=icem)
    with pytest.raises(ValueError, match=r"agent.arguments.continuous: .* 'pink'"):
        make(continuous={**icem, "pink": 1.0})
    with pytest.raises(ValueError, match="to name a Solver class"):
        find_solver(ActionSpace(3), continuous=icem, discrete={"_target_": "ocrl.model.SlotModel"})
    with pytest.raises(ValueError, match=r"expected a goal \(1, 2, 3\), got \(2, 2, 3\)"):
        make().aim_at(torch.zeros(2, R, F))
    with pytest.raises(ValueError, match=r"agent.arguments.guide: .* 'pink'"):
        make(**guide(pink=1))
    rink = Rink(2, is_discrete=False)
    rink.rows[1, 0, 0] = torch.nan
    planning = make()
    with pytest.raises(ValueError, match="infinity in environment 1: what was observed"):
        planning.act(
            rink.world, rink.rows, planning.initial_state(2), rink.is_first, is_deterministic=True
        )
