"""What futures cost, against sums done by hand, and that imagination is asked once for all."""

import runpy
from pathlib import Path

import pytest
import torch

from ocrl.agents.costs import GoalCost, RewardCost, imagined_cost
from ocrl.slot_world import Dream

SMALL_WORLD = runpy.run_path(str(Path(__file__).parents[1] / "ocrl/small_world.py"))
E, N, H, K, D = 2, 5, 3, 3, 8


def dream(count=E * N, **changes):
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "slots": torch.randn(count, H, K, D, generator=generator),
        "action": None,
        "reward": torch.randn(count, H, generator=generator),
        "goes_on": torch.rand(count, H, generator=generator),
        "state": None,
    }
    return Dream(**drawn | changes)


def test_rewards_count_as_far_as_the_episode_goes_on_and_the_rest_by_its_value():
    reward, goes_on = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([[0.5, 0.0, 1.0]])
    given = dream(1, reward=reward, goes_on=goes_on)
    # 1, and half of the time 9 more; after the second step it is over for sure.
    torch.testing.assert_close(RewardCost(0.9, ends=True)(given), -torch.tensor([1.0 + 0.45 * 10]))
    unknown = RewardCost(0.9, ends=False)(given)
    torch.testing.assert_close(unknown, -torch.tensor([1.0 + 9.0 + 81.0]))
    ends = dream(1, reward=reward, goes_on=torch.ones(1, 3))
    cost = RewardCost(0.5, ends=True, value=lambda rows: rows.sum((1, 2)))(ends)
    rest = 0.125 * ends.slots[:, -1].sum((1, 2))
    torch.testing.assert_close(cost, -(1.0 + 5.0 + 25.0 + rest))


def test_a_goal_is_compared_at_the_last_step_or_at_every_one():
    given, goal = dream(), torch.randn(E, K, D)
    error = (given.slots.unflatten(0, (E, N)) - goal[:, None, None]).square().mean((-2, -1))
    last = GoalCost(goal, matching="aligned", judged="last")(given)
    torch.testing.assert_close(last, error[:, :, -1].flatten())
    every = GoalCost(goal, matching="aligned", judged="every")(given)
    torch.testing.assert_close(every, error.mean(-1).flatten())
    # One goal for all, of some rows.
    part = GoalCost(goal[:1, :2], matching="aligned", judged="last")(given)
    wanted = (given.slots[:, -1, :2] - goal[0, :2]).square().mean((-2, -1))
    torch.testing.assert_close(part, wanted)


@pytest.mark.parametrize("judged", ["last", "every"])
def test_the_order_of_slots_does_not_matter_where_they_are_matched(judged):
    given = dream()
    order = torch.tensor([2, 0, 1])
    goal = given.slots[::N, -1] + 0.01
    matched = GoalCost(goal, matching="hungarian", judged=judged)
    turned = GoalCost(goal[:, order], matching="hungarian", judged=judged)
    torch.testing.assert_close(matched(given), turned(given))
    aligned = GoalCost(goal[:, order], matching="aligned", judged=judged)
    assert (turned(given) <= aligned(given) + 1e-5).all()
    assert turned(given).mean() < 0.9 * aligned(given).mean()
    if judged == "last":
        torch.testing.assert_close(turned(given)[::N], torch.full((E,), 1e-4), rtol=1e-2, atol=0)


def test_goals_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'aligned' or 'hungarian', got 'nearest'"):
        GoalCost(torch.zeros(1, K, D), matching="nearest", judged="last")
    with pytest.raises(ValueError, match="'last' or 'every', got 'first'"):
        GoalCost(torch.zeros(1, K, D), matching="aligned", judged="first")
    with pytest.raises(ValueError, match=r"a goal \(E,R,F\), got shape \(3, 8\)"):
        GoalCost(torch.zeros(K, D), matching="aligned", judged="last")
    for shape in ((E, K + 1, D), (E, K, D - 1), (3, K, D)):
        with pytest.raises(ValueError, match=r"up to 3 rows of 8 features .* for 10 futures"):
            GoalCost(torch.zeros(shape), matching="aligned", judged="last")(dream())


def test_the_past_is_read_once_and_candidates_do_not_touch_each_other(monkeypatch):
    world, clip = SMALL_WORLD["make"]().eval(), SMALL_WORLD["draw"]()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    torch.nn.init.normal_(world.outcome.to_reward.weight, std=0.3)
    slots = world.encode(clip).slots
    state = world.read(slots[:, :3], clip.action, clip.is_first[:, :3])
    begins = torch.tensor([False, True])
    cost = RewardCost(0.9, ends=True)
    lengths = []
    advance = world.dynamics.advance

    def counted(carried, *rest):
        lengths.append((carried.shape[0], carried.shape[1]))
        return advance(carried, *rest)

    monkeypatch.setattr(world.dynamics, "advance", counted)
    candidates = torch.randint(3, (2, N, H), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        asked = imagined_cost(world, slots[:, 2], state, begins, cost)
        costs = asked(candidates)
        assert lengths == [(2 * N, 1)] * H
        torch.testing.assert_close(asked(candidates[:, :2]), costs[:, :2])
        for row in range(2):
            past = slots[row : row + 1, :3] if row == 0 else slots[row : row + 1, 2:3]
            first = torch.zeros(1, past.shape[1], dtype=torch.bool)
            action = clip.action[row : row + 1]
            for index in range(N):
                fresh = world.read(past, action, first)
                alone = world.imagine(past[:, -1], fresh, candidates[row, index : index + 1], H)
                torch.testing.assert_close(cost(alone)[0], costs[row, index], atol=1e-4, rtol=1e-5)
    assert costs.std() > 1e-3
