"""A world whose rows move by known rules, so that what is imagined comes true: a puck on ice.

Row 0 is the puck, row 1 a target; x and y are the first two features. The puck goes on as it did
between the last two frames, slowed, and is pushed by the action. A step is worth how much nearer
the target it brought the puck; at the target the episode ends.
"""

import torch

from ocrl.agents.set_world import SetWorld
from ocrl.interfaces import SlotDynamics
from ocrl.nn.outcome import Outcome
from ocrl.types import SlotPrediction

PUSH, SLIDE, NEAR = 0.1, 0.5, 0.1
MOVES = torch.tensor([[0.0, -1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
R, F = 2, 3
WEIGHTS = {"slots": 1.0, "reward": 1.0, "continue": 1.0}


class Ice(SlotDynamics):
    """Remembers the frame before."""

    slot_dim = F

    def __init__(self, is_discrete):
        super().__init__()
        self.num_actions, self.action_dim = (4, 0) if is_discrete else (0, 2)

    def initial_state(self, batch_size):
        return {"before": torch.full((batch_size, R, F), torch.nan)}

    def advance(self, carried, action, state, is_first):
        assert carried.shape[1] == 1
        rows = carried[:, 0]
        speed = rows[:, 0, :2] - state["before"][:, 0, :2]
        speed = torch.where(is_first, 0.0, speed)
        push = MOVES[action[:, 0]] if self.num_actions else action[:, 0]
        later = rows.clone()
        later[:, 0, :2] += SLIDE * speed + PUSH * push
        return SlotPrediction(later[:, None], later[:, None]), {"before": rows}


class Nearer(torch.nn.Module):
    """Stands for an outcome head."""

    def forward(self, before, action, after):
        def distance(rows):
            return (rows[..., 0, :2] - rows[..., 1, :2]).norm(dim=-1)

        left = distance(after)
        sure = torch.full_like(left, torch.inf)
        return Outcome(sure, distance(before) - left, 50 * (left - NEAR))

    def reward(self, outcome):
        return outcome.reward

    def goes_on(self, outcome):
        return outcome.goes_on.sigmoid()


def make_world(*, is_discrete, horizon=8, weights=WEIGHTS):
    return SetWorld(
        Ice(is_discrete), outcome=Nearer(), weights=weights, num_context=2, horizon=horizon
    ).eval()


class Rink:
    """Plays what the world says, in E environments that begin again at the target."""

    def __init__(self, num_envs, *, is_discrete, seed=0):
        self.world = make_world(is_discrete=is_discrete)
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = torch.stack([self.draw() for _ in range(num_envs)])
        self.state = self.world.dynamics.initial_state(num_envs)
        self.is_first = torch.ones(num_envs, dtype=torch.bool)

    def draw(self):
        rows = torch.zeros(R, F)
        rows[:, :2] = torch.rand(R, 2, generator=self.generator)
        return rows

    def step(self, action):
        self.rows, self.state = self.world.dynamics.step(
            self.rows, action, self.state, self.is_first
        )
        left = (self.rows[:, 0, :2] - self.rows[:, 1, :2]).norm(dim=-1)
        self.is_first = left < NEAR
        for row in self.is_first.nonzero().flatten():
            self.rows[row] = self.draw()
        return self.is_first
