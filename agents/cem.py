"""The cross-entropy method: of continuous actions, of discrete ones, and improved for control.

E environments, N candidates, M elites, H steps, A action size, for discrete actions their number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ocrl.agents.solvers import Plan, Problem, Solver, best, check_sizes, coloured


class CEM(Solver):
    """A Gaussian that is fitted to its best draws again and again.

    Rubinstein and Kroese 2004, as DINO-WM and C-JEPA plan (Zhou et al. 2024, arXiv 2411.04983; Nam
    et al. 2026, arXiv 2602.11389): 300 candidates, 30 elites, 30 iterations. The plan is the mean.
    Differs: draws are clipped to the box; the deviation does not fall below a floor; a search
    begins with the mean of the step before.

    Args:
        num_candidates: N of an iteration, the mean itself among them.
        num_elites: M.
        num_iterations: how often the Gaussian is fitted.
        std: its deviation at first, in halves of the box.
        min_std: the floor of it.
        momentum: share of the Gaussian before that stays.

    Raises:
        ValueError: if a number is out of range.
    """

    is_discrete = False

    def __init__(
        self,
        *,
        num_candidates: int,
        num_elites: int,
        num_iterations: int,
        std: float,
        min_std: float,
        momentum: float,
    ) -> None:
        check_sizes(
            num_candidates=num_candidates, num_kept=num_elites, num_iterations=num_iterations
        )
        check_gaussian(std=std, min_std=min_std, momentum=momentum)
        self.num_candidates, self.num_elites = num_candidates, num_elites
        self.num_iterations, self.momentum = num_iterations, momentum
        self.std, self.min_std = std, min_std

    def search(self, problem: Problem) -> Plan:
        """See `Solver.solve`."""
        low, high = problem.space.bounds(problem.device)
        mean, std = start_gaussian(problem, self.std)
        least = torch.full((len(mean),), torch.inf, device=problem.device)
        for _ in range(self.num_iterations):
            noise = problem.normal(self.num_candidates - 1, *mean.shape[1:])
            drawn = (mean[:, None] + std[:, None] * noise).clamp(low, high)
            candidates, costs = problem.tried(mean[:, None], drawn)
            elites = best(candidates, costs, self.num_elites)
            least = torch.minimum(least, costs.amin(1))
            mean = mean.lerp(elites.mean(1), 1 - self.momentum)
            std = std.lerp(elites.std(1, correction=0), 1 - self.momentum)
            std = std.clamp(min=self.min_std * (high - low) / 2)
        return Plan(mean, draw_sequence(problem, mean, std), least, mean, mean[:, None][:, :0])


class CategoricalCEM(Solver):
    """A probability for each discrete action at each step, fitted to the best draws.

    The cross-entropy method for sequences of choices (de Boer et al. 2005, "A tutorial on the
    cross-entropy method"). The plan is the best sequence drawn: the likeliest action of each step
    need not make one.

    Args:
        num_candidates: N of an iteration; the likeliest actions and the best so far are two more.
        num_elites: M.
        num_iterations: how often the probabilities are fitted.
        smoothing: share of every action alike that is mixed into them.
        momentum: share of the probabilities before that stays.

    Raises:
        ValueError: if a number is out of range.
    """

    is_discrete = True

    def __init__(
        self,
        *,
        num_candidates: int,
        num_elites: int,
        num_iterations: int,
        smoothing: float,
        momentum: float,
    ) -> None:
        check_sizes(
            num_candidates=num_candidates, num_kept=num_elites, num_iterations=num_iterations
        )
        if not 0 <= smoothing <= 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"expected smoothing in [0,1] and momentum in [0,1), got {smoothing} and {momentum}"
            )
        self.num_candidates, self.num_elites = num_candidates, num_elites
        self.num_iterations = num_iterations
        self.smoothing, self.momentum = smoothing, momentum

    def search(self, problem: Problem) -> Plan:
        """See `Solver.solve`."""
        number, horizon = problem.space.num_actions, problem.horizon
        shape = (len(problem.generators), horizon, number)
        start = torch.full(shape, 1 / number, device=problem.device)
        previous = None if problem.previous is None else problem.previous.mean
        chance = problem.moved_on(start, previous, time=1)
        action = chance.argmax(-1)
        least = torch.full((len(chance),), torch.inf, device=problem.device)
        for _ in range(self.num_iterations):
            drawn = draw_actions(chance, problem.uniform(self.num_candidates, horizon, number))
            # The two come last: where all cost the same, what is done is drawn.
            kept = torch.stack([chance.argmax(-1), action], dim=1)
            candidates, costs = problem.tried(drawn, kept)
            elites = best(candidates, costs, self.num_elites)
            least, action = costs.amin(1), elites[:, 0]
            share = functional.one_hot(elites, number).float().mean(1)
            share = share.lerp(start, self.smoothing)
            chance = chance.lerp(share, 1 - self.momentum)
        sequence = draw_actions(chance, problem.uniform(1, horizon, number))[:, 0]
        return Plan(action, sequence, least, chance, action[:, None][:, :0])


class ICEM(Solver):
    """The cross-entropy method with noise that lasts, few draws, and elites that are kept.

    Pinneri et al. 2020 (iCEM, arXiv 2008.06389): coloured noise; fewer candidates with each
    iteration; elites go on into the next iteration and, a step on, into the next search; the mean
    is tried in the last iteration; the plan is the best sequence drawn. Differs: the deviation
    does not fall below a floor.

    Args:
        num_candidates: N of the first iteration.
        num_elites: M.
        num_iterations: how often the Gaussian is fitted.
        std: its deviation at first, in halves of the box.
        min_std: the floor of it.
        momentum: share of the Gaussian before that stays.
        colour: exponent of the noise, see `coloured`.
        decay: candidates are divided by it with each iteration, down to twice the elites.
        share_kept: of the elites that go on.

    Raises:
        ValueError: if a number is out of range.
    """

    is_discrete = False

    def __init__(
        self,
        *,
        num_candidates: int,
        num_elites: int,
        num_iterations: int,
        std: float,
        min_std: float,
        momentum: float,
        colour: float,
        decay: float,
        share_kept: float,
    ) -> None:
        check_sizes(
            num_candidates=num_candidates, num_kept=num_elites, num_iterations=num_iterations
        )
        check_gaussian(std=std, min_std=min_std, momentum=momentum)
        if colour < 0 or decay < 1 or not 0 <= share_kept <= 1:
            raise ValueError(
                "expected colour of at least 0, decay of at least 1 and share_kept in [0,1], got "
                f"{colour}, {decay} and {share_kept}"
            )
        self.num_candidates, self.num_elites = num_candidates, num_elites
        self.num_iterations, self.momentum = num_iterations, momentum
        self.std, self.min_std = std, min_std
        self.colour, self.decay = colour, decay
        self.num_kept = round(share_kept * num_elites)

    def population(self, iteration: int) -> int:
        """N of an iteration."""
        least = min(2 * self.num_elites, self.num_candidates)
        return max(round(self.num_candidates / self.decay**iteration), least)

    def search(self, problem: Problem) -> Plan:
        """See `Solver.solve`."""
        low, high = problem.space.bounds(problem.device)
        mean, std = start_gaussian(problem, self.std)
        action, kept = mean, mean[:, None][:, :0]
        least = torch.full((len(mean),), torch.inf, device=problem.device)
        for iteration in range(self.num_iterations):
            number = self.population(iteration) + (self.num_kept if iteration == 0 else 0)
            noise = coloured(problem.normal(number, *mean.shape[1:]), exponent=self.colour)
            candidates = (mean[:, None] + std[:, None] * noise).clamp(low, high)
            if iteration == 0:
                fresh, candidates = candidates.split([self.num_kept, number - self.num_kept], 1)
                previous = None if problem.previous is None else problem.previous.kept
                kept = problem.moved_on(fresh, previous, time=2)
            is_last = iteration == self.num_iterations - 1
            centre = mean[:, None][:, : int(is_last)]
            candidates, costs = problem.tried(kept, candidates, centre)
            elites = best(candidates, costs, self.num_elites)
            cheapest = costs.amin(1)
            is_better = cheapest < least
            action = torch.where(is_better[:, None, None], elites[:, 0], action)
            least = torch.where(is_better, cheapest, least)
            kept = elites[:, : self.num_kept]
            mean = mean.lerp(elites.mean(1), 1 - self.momentum)
            std = std.lerp(elites.std(1, correction=0), 1 - self.momentum)
            std = std.clamp(min=self.min_std * (high - low) / 2)
        return Plan(action, draw_sequence(problem, mean, std), least, mean, kept)


def check_gaussian(*, std: float, min_std: float, momentum: float) -> None:
    """Refuse a Gaussian that can not be drawn from.

    Raises:
        ValueError: naming what is out of range.
    """
    if not 0 <= min_std <= std or std == 0 or not 0 <= momentum < 1:
        raise ValueError(
            "expected std above 0, min_std from 0 to std and momentum in [0,1), got "
            f"{std}, {min_std} and {momentum}"
        )


def start_gaussian(problem: Problem, std: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation (E,H,A) to begin with: the middle of the box, or the step before's."""
    low, high = problem.space.bounds(problem.device)
    shape = (len(problem.generators), problem.horizon, len(low))
    previous = None if problem.previous is None else problem.previous.mean
    mean = problem.moved_on(((low + high) / 2).expand(shape), previous, time=1)
    return mean, (std * (high - low) / 2).expand(shape)


def draw_sequence(problem: Problem, mean: Tensor, std: Tensor) -> Tensor:
    """Actions (E,H,A) from the Gaussian of mean and deviation (E,H,A)."""
    low, high = problem.space.bounds(problem.device)
    return (mean + std * problem.normal(*mean.shape[1:])).clamp(low, high)


def draw_actions(chance: Tensor, noise: Tensor) -> Tensor:
    """Actions (E,N,H) int64 by their probabilities (E,H,A), from uniform noise (E,N,H,A)."""
    # A race of exponential clocks: the first to ring does so by its rate, never with a rate of 0.
    return (chance[:, None] / -noise.log()).argmax(-1)
