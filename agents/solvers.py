"""Searches for actions whose future costs least: what they share.

E environments, N candidates, M of them kept, H steps, A action size, for discrete actions their
number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

Cost = Callable[[Tensor], Tensor]
"""Candidates (E,N,H,A), or (E,N,H) int64 of discrete actions, to costs (E,N); less is better."""


@dataclass(frozen=True)
class ActionSpace:
    """What can be done in a step.

    Attributes:
        num_actions: of a discrete space, 0 for none.
        low: A least values of a continuous space.
        high: A largest ones.
    """

    num_actions: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def of(cls, space: Space[Any]) -> ActionSpace:
        """That of an environment.

        Raises:
            ValueError: if it is neither discrete from 0 on nor a bounded box (A,).
        """
        if isinstance(space, Discrete) and space.start == 0:
            return cls(int(space.n))
        if isinstance(space, Box) and len(space.shape) == 1 and space.is_bounded():
            return cls(0, tuple(space.low.tolist()), tuple(space.high.tolist()))
        raise ValueError(
            f"expected discrete actions from 0 on or a bounded box (A,) to search in, got {space}"
        )

    @property
    def action_dim(self) -> int:
        """A of a continuous space, 0 for none."""
        return len(self.low)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Least and largest values (A,) of a continuous space."""
        return torch.tensor(self.low, device=device), torch.tensor(self.high, device=device)


class Plan(NamedTuple):
    """What a search found, and what the next one can begin with.

    Attributes:
        action: (E,H,A), or (E,H) int64: what to do.
        drawn: (E,H,A), or (E,H) int64: a sequence drawn from where the search ended.
        cost: (E,) the least of any candidate.
        mean: (E,H,A) of the distribution; of discrete actions the probability of each.
        kept: (E,M,H,A), or (E,M,H) int64: the best candidates; M is 0 where none are kept.
    """

    action: Tensor
    drawn: Tensor
    cost: Tensor
    mean: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Problem:
    """What a search is to solve, for each environment by itself.

    Attributes:
        cost: of candidates.
        space: of the actions.
        horizon: H.
        generators: E of them, on the CPU: draws for an environment come from its own, so that
            neither the others nor the device change them.
        device: of the candidates.
        previous: the plan before, whose first `steps_done` actions were done; None to begin afresh.
        is_fresh: (E,) bool, environments that begin afresh all the same; None for no other.
        proposals: (E,P,H,A) or (E,P,H), tried in every iteration beside N candidates; None for
            none.
        steps_done: since the plan before, up to H.
    """

    cost: Cost
    space: ActionSpace
    horizon: int
    generators: Sequence[torch.Generator]
    device: torch.device
    previous: Plan | None = None
    is_fresh: Tensor | None = None
    proposals: Tensor | None = None
    steps_done: int = 1

    def normal(self, *shape: int) -> Tensor:
        """Normal noise (E,*shape)."""
        drawn = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform noise (E,*shape) in [0,1)."""
        drawn = [torch.rand(shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)

    def moved_on(self, start: Tensor, previous: Tensor | None, *, time: int) -> Tensor:
        """What to begin with: what the search before ended with, from where that has come.

        Args:
            start: of environments that begin afresh; the others take its last steps.
            previous: of the search before, of the same shape; None if all begin afresh.
            time: the axis of steps.
        """
        if previous is None:
            return start
        left = self.horizon - self.steps_done
        parts = (
            previous.narrow(time, self.steps_done, left),
            start.narrow(time, left, self.steps_done),
        )
        moved = torch.cat(parts, dim=time)
        if self.is_fresh is None:
            return moved
        return torch.where(self.is_fresh.view(-1, *[1] * (start.ndim - 1)), start, moved)

    def tried(self, *candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (E,...,H,A) together with the proposals, and what they cost (E,N).

        Raises:
            ValueError: if they are of another shape, or not finite.
        """
        proposals = () if self.proposals is None else (self.proposals,)
        together = torch.cat([*candidates, *proposals], dim=1)
        costs = self.cost(together).float()
        if costs.shape != together.shape[:2]:
            raise ValueError(
                f"expected costs {tuple(together.shape[:2])} of the candidates, got "
                f"{tuple(costs.shape)}"
            )
        rows = (~costs.isfinite()).any(1).nonzero().flatten().tolist()
        if rows:
            raise ValueError(
                f"expected finite costs, got NaN or infinity in environment "
                f"{', '.join(map(str, rows))}: what was observed or imagined there is not finite"
            )
        return together, costs


class Solver(ABC):
    """A search without memory: all that changes from step to step is in the plan.

    The same problem and generators give the same plan, and no environment touches another.

    Attributes:
        is_discrete: whether it searches discrete actions, or else continuous ones.
    """

    is_discrete: bool

    def solve(self, problem: Problem) -> Plan:
        """Search.

        Raises:
            ValueError: if the horizon is not positive, the actions are of the other kind, or the
                costs are no costs.
        """
        if problem.horizon < 1:
            raise ValueError(f"expected a horizon of at least 1, got {problem.horizon}")
        if bool(problem.space.num_actions) != self.is_discrete:
            kind = "discrete" if self.is_discrete else "continuous"
            other = "CEM, ICEM or MPPI" if self.is_discrete else "CategoricalCEM"
            raise ValueError(
                f"expected {kind} actions for {type(self).__name__}, got {problem.space}; use "
                f"{other}"
            )
        return self.search(problem)

    @abstractmethod
    def search(self, problem: Problem) -> Plan:
        """Search actions of the right kind, see `solve`."""


def best(candidates: Tensor, costs: Tensor, number: int) -> Tensor:
    """The candidates (E,number,...) that cost least, the cheapest first, of equals the earlier."""
    index = costs.argsort(dim=1, stable=True)[:, :number]
    index = index.view(*index.shape, *[1] * (candidates.ndim - 2))
    return candidates.gather(1, index.expand(-1, -1, *candidates.shape[2:]))


def coloured(noise: Tensor, *, exponent: float) -> Tensor:
    """White noise (...,H,A) as noise whose power falls with the frequency to the `exponent`.

    Timmer and Koenig 1995 ("On generating power law noise"), with the variance of 1 at every step:
    1 is pink, 2 red; 0 leaves it white. The lowest frequency stands for the mean as well.
    """
    horizon = noise.shape[-2]
    frequency = torch.fft.rfftfreq(horizon, device=noise.device).clamp(min=1.0 / horizon)
    size = frequency ** (-exponent / 2)
    # All but the first, and the last of an even number, stand for themselves and their mirror.
    count = torch.full_like(size, 2.0)
    count[0] = 1.0
    if horizon % 2 == 0:
        count[-1] = 1.0
    size = size * (horizon / (size.square() * count).sum()).sqrt()
    spectrum = torch.fft.rfft(noise, dim=-2) * size[:, None]
    return torch.fft.irfft(spectrum, n=horizon, dim=-2)


def check_sizes(*, num_candidates: int, num_kept: int, num_iterations: int) -> None:
    """Refuse a search of no candidates, or one that keeps more than there are.

    Raises:
        ValueError: naming all three.
    """
    if not 1 <= num_kept <= num_candidates or num_iterations < 1:
        raise ValueError(
            "expected num_iterations of at least 1 and num_elites from 1 to num_candidates, got "
            f"{num_iterations}, {num_kept} and {num_candidates}"
        )
