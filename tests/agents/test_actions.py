"""Actions as environments have them and as networks know them."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from ocrl.agents.actions import Actions


def test_discrete_actions_begin_at_zero_for_a_network():
    actions = Actions(Discrete(3, start=5))
    assert (actions.num_actions, actions.action_dim) == (3, 0)
    known = actions.from_env(np.array([5, 7]))
    assert known.tolist() == [0, 2] and known.dtype == np.int64
    assert actions.to_env(torch.tensor([0, 2])).tolist() == [5, 7]
    drawn = actions.draw(200, device=torch.device("cpu"))
    assert set(drawn.tolist()) == {0, 1, 2}
    assert actions.empty().shape == () and actions.empty() == 0


def test_the_bounds_of_a_box_are_one_for_a_network():
    actions = Actions(Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)))
    assert (actions.num_actions, actions.action_dim) == (0, 2)
    known = actions.from_env(np.array([[-2.0, 10.0], [1.0, 2.5]]))
    np.testing.assert_allclose(known, [[-1.0, 1.0], [0.5, -0.5]])
    back = actions.to_env(torch.from_numpy(known))
    np.testing.assert_allclose(back, [[-2.0, 10.0], [1.0, 2.5]])
    assert back.dtype == np.float32
    # What rounding carries beyond a bound is none of the environment's business.
    assert actions.space.contains(actions.to_env(torch.tensor([1.0000001, -1.0000001])))
    drawn = actions.draw(4, 50, device=torch.device("cpu"))
    assert drawn.shape == (4, 50, 2) and drawn.abs().max() <= 1 and drawn.std() > 0.5
    assert actions.empty().shape == (2,)


def test_samples_follow_the_seed_of_the_space():
    space = Discrete(7)
    space.seed(3)
    first = Actions(space).sample(20)
    space.seed(3)
    assert first.shape == (20,) and (Actions(space).sample(20) == first).all()


@pytest.mark.parametrize(
    "space", [Box(-np.inf, np.inf, (2,)), MultiDiscrete([2, 3]), Box(0.0, 1.0, (2, 2))]
)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match=r"expected discrete actions, or a vector .* of bounded"):
        Actions(space)
