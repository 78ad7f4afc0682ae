"""Searches on problems whose answer is known: a bowl, a word of actions, the colour of noise."""

import inspect
import itertools
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ocrl.agents.cem import CEM, ICEM, CategoricalCEM, draw_actions
from ocrl.agents.mppi import MPPI
from ocrl.agents.solvers import ActionSpace, Plan, Problem, best, coloured

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "solver").glob("*.yaml"))
H = 4
BOX = ActionSpace(0, (-1.0, 0.0), (1.0, 4.0))
WORD = ActionSpace(5)
TARGET = torch.tensor([[0.7, 1.0], [-0.3, 3.5], [0.1, 0.5], [-0.8, 2.0]])
LETTERS = torch.tensor([3, 0, 4, 1])


def build(name, **changes):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=[f"+solver={name}"]).solver
    return instantiate({**config, **changes})


CONTINUOUS = [name for name in NAMES if not build(name).is_discrete]


def generators(count=2, seed=0):
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def bowl(candidates):
    """The distance to a target, in halves of the box; the lowest point is 0."""
    return ((candidates - TARGET) / torch.tensor([1.0, 2.0])).square().mean((-2, -1))


def letters(candidates):
    """How many letters of the word are wrong, from the first one on that is."""
    return -(candidates == LETTERS).int().cumprod(-1).sum(-1)


def problem(cost, *, space=BOX, count=2, seed=0, **changes):
    options = {"horizon": H, "device": torch.device("cpu"), **changes}
    return Problem(cost, space, generators=generators(count, seed), **options)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_lowest_point_of_a_bowl_is_found(name):
    # Noise that lasts is not for a target that goes up and down.
    changes = {"colour": 0.5} if name == "icem" else {}
    solver = build(name, num_candidates=200, num_elites=20, num_iterations=12, **changes)
    plan = solver.solve(problem(bowl))
    assert plan.action.shape == (2, H, 2)
    centre = bowl(torch.tensor([0.0, 2.0]).expand(1, 1, H, 2)).item()
    found = bowl(plan.action[:, None])[:, 0]
    assert (found < 0.01 * centre).all() and (plan.cost < 0.02 * centre).all()


def test_noise_that_lasts_finds_what_is_far_with_few_draws():
    def far(candidates):
        """How far from 1 a weight ends that is pushed for 12 steps."""
        speed = 0.02 * candidates[..., 0].cumsum(-1)
        return (1 - speed.sum(-1)).abs()

    options = {"space": ActionSpace(0, (-1.0,), (1.0,)), "count": 32, "horizon": 12}
    changes = {"num_candidates": 20, "num_elites": 4, "num_iterations": 2}
    red, white = (
        build("icem", colour=colour, **changes).solve(problem(far, **options)).cost.mean()
        for colour in (2.0, 0.0)
    )
    assert red < 0.5 * white


@pytest.mark.parametrize("name", CONTINUOUS)
def test_more_iterations_find_more(name):
    few, many = (
        bowl(build(name, num_iterations=count).solve(problem(bowl, count=8)).action[:, None])
        for count in (1, 8)
    )
    assert many.mean() < 0.5 * few.mean()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_actions_stay_in_the_box(name):
    def seen(candidates):
        assert (candidates >= torch.tensor(BOX.low)).all()
        assert (candidates <= torch.tensor(BOX.high)).all()
        return -candidates.sum((-2, -1))

    plan = build(name, num_candidates=200, num_iterations=8).solve(problem(seen))
    assert (plan.action <= torch.tensor(BOX.high)).all()
    # The best is in the corner.
    assert (plan.action > torch.tensor([0.5, 3.0])).all()


def test_a_word_of_actions_is_found():
    solver = build("categorical_cem", num_candidates=100, num_elites=10, num_iterations=8)
    plan = solver.solve(problem(letters, space=WORD, count=3))
    assert torch.equal(plan.action, LETTERS.expand(3, H)) and (plan.cost == -H).all()
    assert torch.allclose(plan.mean.sum(-1), torch.ones(3, H))
    assert (plan.mean.argmax(-1) == LETTERS).all()
    # 8 x 100 draws alone would hold one word in 625; it was not luck that all three found it.
    blind = build("categorical_cem", num_candidates=100, num_elites=100, num_iterations=8)
    blind.smoothing = 1.0
    assert (blind.solve(problem(letters, space=WORD, count=16)).cost > -H).any()


def test_where_all_cost_the_same_what_is_done_is_drawn():
    plan = build("categorical_cem").solve(
        problem(lambda c: torch.zeros(c.shape[:2]), space=WORD, count=40)
    )
    assert plan.action[:, 0].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_is_searched_as_if_it_were_alone(name):
    space, cost = (WORD, letters) if name.startswith("categorical") else (BOX, bowl)
    shift = torch.tensor([0.0, 0.3, -0.2]) if space is BOX else torch.zeros(3)

    def shifted(rows):
        return lambda candidates: (
            cost(candidates) + shift[rows, None] * candidates.float().flatten(2).sum(-1)
        )

    solver = build(name)
    together = solver.solve(problem(shifted([0, 1, 2]), space=space, count=3))
    for row in range(3):
        alone = solver.solve(problem(shifted([row]), space=space, count=1, seed=row))
        for one, all_three in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_three[row])
    again = solver.solve(problem(shifted([0, 1, 2]), space=space, count=3))
    assert all(torch.equal(one, other) for one, other in zip(again, together, strict=True))
    other = solver.solve(problem(shifted([0, 1, 2]), space=space, count=3, seed=7))
    assert not torch.equal(other.mean, together.mean)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_goes_on_from_the_step_before(name):
    space, cost = (WORD, letters) if name.startswith("categorical") else (BOX, bowl)
    kept = {"share_kept": 0.05} if name == "icem" else {}
    good = build(name, num_candidates=100, num_elites=20, num_iterations=10, **kept)
    before = good.solve(problem(cost, space=space, count=6))

    def later(candidates):
        """The same problem a step on; the last step is new and asks for what the first did."""
        return cost(candidates.roll(1, dims=2))

    kept = {"share_kept": 0.3} if name == "icem" else {}
    poor = build(name, num_candidates=8, num_elites=3, num_iterations=1, **kept)
    fresh = torch.tensor([False] * 3 + [True] * 3)
    plan = poor.solve(problem(later, space=space, count=6, previous=before, is_fresh=fresh))
    afresh = poor.solve(problem(later, space=space, count=6))
    # Rows that begin afresh are what they would be without a step before.
    for one, other in zip(plan, afresh, strict=True):
        torch.testing.assert_close(one[3:], other[3:])
    assert plan.cost[:3].mean() < afresh.cost[:3].mean() - (0.1 if space is BOX else 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_goes_on_from_where_a_plan_has_come(name):
    space = WORD if name.startswith("categorical") else BOX
    before = build(name).solve(problem(letters if space is WORD else bowl, space=space))
    asked = problem(bowl, space=space, previous=before, steps_done=3)
    start = torch.full_like(before.mean, 0.25)
    moved = asked.moved_on(start, before.mean, time=1)
    assert torch.equal(moved[:, :1], before.mean[:, 3:]) and (moved[:, 1:] == 0.25).all()


def test_elites_are_kept_from_one_iteration_and_one_search_to_the_next():
    sizes, firsts = [], []

    def seen(candidates):
        sizes.append(candidates.shape[1])
        firsts.append(candidates[:, :3])
        return bowl(candidates)

    solver = build("icem", num_candidates=60, num_elites=10, num_iterations=4, decay=2.0)
    plan = solver.solve(problem(seen))
    # Three kept; 60, 30, then twice the elites; the mean in the end.
    assert sizes == [63, 33, 23, 24] and plan.kept.shape == (2, 3, H, 2)
    for before, after in itertools.pairwise(firsts):
        assert (bowl(after).amin(1) <= bowl(before).amin(1)).all()
    costs = bowl(plan.kept)
    assert torch.equal(costs[:, 0], plan.cost) and (costs.diff() >= 0).all()
    firsts.clear()
    solver.solve(problem(seen, previous=plan))
    assert torch.equal(firsts[0][:, :, :-1], plan.kept[:, :, 1:])
    none = build("icem", share_kept=0.0)
    assert none.solve(problem(bowl)).kept.shape == (2, 0, H, 2)


def test_noise_has_its_colour_and_a_variance_of_1_at_every_step():
    torch.manual_seed(0)
    white = torch.randn(4000, 64, 1)
    torch.testing.assert_close(coloured(white, exponent=0.0), white)
    frequency = torch.fft.rfftfreq(64)[1:-1].log()
    for exponent in (0.5, 1.0, 2.0, 3.0):
        noise = coloured(white, exponent=exponent)
        power = torch.fft.rfft(noise, dim=1).abs().square().mean(0)[1:-1, 0].log()
        centred = frequency - frequency.mean()
        slope = (centred * power).sum() / centred.square().sum()
        assert abs(slope + exponent) < 0.05
        torch.testing.assert_close(noise.std(0), torch.ones(64, 1), rtol=0.08, atol=0.0)
    for horizon in (1, 2, 5):
        short = coloured(torch.randn(20000, horizon, 2), exponent=2.0)
        torch.testing.assert_close(short.std(0), torch.ones(horizon, 2), rtol=0.05, atol=0.0)


def test_actions_are_drawn_by_their_chances():
    chance = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]])
    noise = torch.rand(1, 20000, 1, 4, generator=torch.Generator().manual_seed(0))
    noise[0, 0] = 0.0
    drawn = draw_actions(chance, noise)
    share = torch.bincount(drawn.flatten(), minlength=4) / 20000
    torch.testing.assert_close(share, chance[0, 0], atol=0.02, rtol=0.0)
    assert share[3] == 0


def test_the_best_are_in_order_and_of_equals_the_earlier():
    candidates = torch.arange(5)[None, :, None].expand(2, 5, 3)
    costs = torch.tensor([[2.0, 0.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best(candidates, costs, 3)[..., 0].tolist() == [[1, 3, 2], [0, 1, 2]]


def test_mppi_weighs_the_better_more_whatever_the_scale_of_the_costs():
    solver = build("mppi", num_iterations=1)
    plans = [solver.solve(problem(lambda c, s=scale: s * bowl(c) + 5 * s)) for scale in (1.0, 64.0)]
    torch.testing.assert_close(plans[0].action, plans[1].action)
    hot, cold = (
        build("mppi", num_iterations=1, num_elites=64, temperature=value).solve(problem(bowl))
        for value in (100.0, 1e-4)
    )
    # All alike in the heat, the best alone in the cold.
    torch.testing.assert_close(bowl(cold.action[:, None])[:, 0], cold.cost)
    middle = torch.tensor([0.0, 2.0]).expand(2, H, 2)
    assert ((hot.action - middle) / torch.tensor([1.0, 2.0])).abs().max() < 0.4


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_drawn_around_the_plan(name):
    space, cost = (WORD, letters) if name.startswith("categorical") else (BOX, bowl)
    plan = build(name, num_candidates=200, num_iterations=8).solve(
        problem(cost, space=space, count=200)
    )
    if space is WORD:
        share = (plan.drawn == LETTERS).float().mean(0)
        # The smoothing leaves a few of the others.
        assert ((share > 0.85) & (share < 1)).all() and plan.drawn.shape == (200, H)
        return
    spread = (plan.drawn - plan.mean) / torch.tensor([1.0, 2.0])
    floor = build(name).min_std
    assert plan.drawn.shape == (200, H, 2) and 0.8 * floor < spread.std() < 4 * floor
    assert (plan.drawn <= torch.tensor(BOX.high)).all()


def test_spaces_are_read_and_others_refused():
    assert ActionSpace.of(gymnasium.spaces.Discrete(4)) == ActionSpace(4)
    box = ActionSpace.of(gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 2])))
    assert box == ActionSpace(0, (-1.0, 0.0), (1.0, 2.0)) and box.action_dim == 2
    for space in (
        gymnasium.spaces.Discrete(3, start=1),
        gymnasium.spaces.Box(-np.inf, 1, (2,)),
        gymnasium.spaces.Box(-1, 1, (2, 2)),
        gymnasium.spaces.MultiBinary(3),
    ):
        with pytest.raises(ValueError, match="expected discrete actions from 0 on or a bounded"):
            ActionSpace.of(space)


def test_problems_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"discrete actions for CategoricalCEM, .* use CEM, ICEM"):
        build("categorical_cem").solve(problem(bowl))
    with pytest.raises(ValueError, match=r"continuous actions for ICEM, .* use CategoricalCEM"):
        build("icem").solve(problem(letters, space=WORD))
    with pytest.raises(ValueError, match="horizon of at least 1, got 0"):
        build("cem").solve(problem(bowl, horizon=0))
    with pytest.raises(ValueError, match=r"costs \(2, 64\) of the candidates, got \(2,\)"):
        build("cem").solve(problem(lambda c: bowl(c)[:, 0]))

    def poisoned(candidates):
        return bowl(candidates).index_fill(0, torch.tensor([1]), torch.nan)

    with pytest.raises(ValueError, match="NaN or infinity in environment 1: what was observed"):
        build("mppi").solve(problem(poisoned))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("cem", {"num_elites": 65}, "num_elites from 1 to num_candidates, got 3, 65 and 64"),
        ("icem", {"num_iterations": 0}, "num_iterations of at least 1"),
        ("cem", {"std": 0.0, "min_std": 0.0}, "std above 0"),
        ("icem", {"momentum": 1.0}, r"momentum in \[0,1\)"),
        ("icem", {"decay": 0.5}, "decay of at least 1"),
        ("categorical_cem", {"smoothing": 1.5}, r"smoothing in \[0,1\]"),
        ("mppi", {"temperature": 0.0}, "a temperature above 0, got 0"),
    ],
)
def test_bad_arguments_are_refused(name, changes, words):
    with pytest.raises(Exception, match=words):
        build(name, **changes)


def test_every_solver_has_a_file():
    targets = {
        yaml.safe_load((CONFIGS / "solver" / f"{name}.yaml").read_text()).get("_target_", "")
        for name in NAMES
    }
    for solver in (CEM, CategoricalCEM, ICEM, MPPI):
        assert f"{solver.__module__}.{solver.__name__}" in targets
        assert not inspect.isabstract(solver)
    assert Plan._fields == ("action", "drawn", "cost", "mean", "kept")
