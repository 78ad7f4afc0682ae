"""Model predictive path integral control: a mean of all candidates, weighted by what they cost.

E environments, N candidates, H steps, A action size.
"""

from __future__ import annotations

import torch

from ocrl.agents.cem import check_gaussian, draw_sequence, start_gaussian
from ocrl.agents.solvers import Plan, Problem, Solver, best, check_sizes


class MPPI(Solver):
    """Candidates drawn around a mean pull it towards themselves, the better the more.

    Williams et al. 2017 (ICRA, "Information theoretic MPC"), with the deviation fitted again in
    each iteration and weights among the best candidates only, as TD-MPC2 plans (Hansen et al.
    2024, arXiv 2310.16828). Differs from both: costs are measured from the best candidate's in
    standard deviations of the elites' costs, so that a temperature means the same for every reward.

    Args:
        num_candidates: N of an iteration, the mean itself among them.
        num_elites: how many of them have a weight.
        num_iterations: how often mean and deviation are fitted.
        std: the deviation at first, in halves of the box.
        min_std: the floor of it.
        temperature: the lower, the more the best ones weigh.

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
        temperature: float,
    ) -> None:
        check_sizes(
            num_candidates=num_candidates, num_kept=num_elites, num_iterations=num_iterations
        )
        check_gaussian(std=std, min_std=min_std, momentum=0.0)
        if temperature <= 0:
            raise ValueError(f"expected a temperature above 0, got {temperature}")
        self.num_candidates, self.num_elites = num_candidates, num_elites
        self.num_iterations, self.temperature = num_iterations, temperature
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
            lowest = costs.sort(dim=1).values[:, : self.num_elites]
            above = lowest - lowest[:, :1]
            spread = above.std(1, correction=0, keepdim=True).clamp(min=1e-8)
            weight = (-above / (self.temperature * spread)).softmax(1)[..., None, None]
            least = torch.minimum(least, lowest[:, 0])
            mean = (weight * elites).sum(1)
            variance = (weight * (elites - mean[:, None]).square()).sum(1)
            std = variance.sqrt().clamp(min=self.min_std * (high - low) / 2)
        return Plan(mean, draw_sequence(problem, mean, std), least, mean, mean[:, None][:, :0])
