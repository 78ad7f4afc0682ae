"""Slots as the components of a Gaussian mixture: the E step, the M step and the loop around them.

B batch, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ocrl.nn.attention import competition
from ocrl.nn.mlp import MLP
from ocrl.nn.slot_attention import Gradient, check_gradient, unroll

EPS = 1e-6
"""Added to every responsibility: a component that owns nothing becomes the frame's own Gaussian."""

LOG_STD_LIMIT = 3.0
"""Bound on |log sigma|: the largest precision, exp(6), leaves three digits of float32 to a
squared distance that is computed as a difference of squares."""


def log_joint(
    keys: Tensor,
    keys_squared: Tensor,
    *,
    mean: Tensor,
    log_std: Tensor,
    log_weight: Tensor,
    likelihood_power: float,
) -> Tensor:
    """Log of weight times density of each token under each component, up to a constant.

    -1/2 sum_d (k_d - mu_d)^2 / sigma_d^2 - sum_d log sigma_d + log pi, the square multiplied out,
    so that two products of matrices take the place of a (B,K,N,D) tensor. The constant,
    -D/2 log 2 pi, is the same for all components.

    Args:
        keys: (B,N,D).
        keys_squared: (B,N,D), their squares, made once for several steps.
        mean: (B,K,D).
        log_std: (B,K,D).
        log_weight: (B,K,1).
        likelihood_power: factor on the log-density, without the weight: 1 for the mixture's own.

    Returns:
        (B,K,N).
    """
    precision = likelihood_power * torch.exp(-2 * log_std)
    scaled = mean * precision
    constant = -0.5 * (scaled * mean).sum(-1, keepdim=True) + log_weight
    constant = constant - likelihood_power * log_std.sum(-1, keepdim=True)
    linear = torch.baddbmm(constant, scaled, keys.mT)
    return torch.baddbmm(linear, precision, keys_squared.mT, alpha=-0.5)


def moments(
    attn: Tensor, values: Tensor, values_squared: Tensor, *, eps: float = EPS
) -> tuple[Tensor, Tensor, Tensor]:
    """What the M step needs of the values that each component owns.

    Args:
        attn: responsibilities (B,K,N), which sum to 1 over K.
        values: (B,N,D).
        values_squared: (B,N,D), their squares.
        eps: added to each responsibility.

    Returns:
        Mean (B,K,D), mean square (B,K,D) and log of the mixture weight (B,K,1); the weights are
        the components' shares of all tokens and sum to 1.
    """
    owned = attn + eps
    total = owned.sum(dim=-1, keepdim=True)
    owned = owned / total
    return owned @ values, owned @ values_squared, torch.log(total / total.sum(1, keepdim=True))


def log_deviation(mean: Tensor, square: Tensor, around: Tensor) -> Tensor:
    """Half the log of the mean squared distance to `around`, within `LOG_STD_LIMIT`.

    Args:
        mean: (B,K,D) of what a component owns.
        square: (B,K,D), its mean square.
        around: (B,K,D).

    Returns:
        (B,K,D).
    """
    variance = square - 2 * around * mean + around.square()
    most = math.exp(2 * LOG_STD_LIMIT)
    return 0.5 * variance.clamp(1 / most, most).log()


class MixtureCorrector(nn.Module):
    """Expectation maximisation on the tokens of a frame, with a GRU in the M step.

    The Slot Mixture Module (Kirilenko et al. 2024, arXiv 2311.04640). Each slot is a Gaussian with
    diagonal covariance and a weight. E step: responsibilities of the components, seen through the
    query map, for the keys. M step: the mean is updated by GRU and residual MLP from the mean of
    the values it owns, the deviation is that of these values around the **updated** mean, the
    weight is the share of tokens. Components are packed (B,K,2D+1): mean, log deviation, log
    weight.

    Differs from the published code in that the density has its 1/2 and its normaliser, the weights
    are shares of tokens (there they are 1/K at every step), the softmax is of logarithms, the
    deviations are bounded, and no transformer runs over the tokens before; the power on the
    density is an argument. Differs from the paper in that all slots start with one learned
    deviation. All of it is float32 whatever the autocast, but the key and value maps.

    Args:
        token_dim: F.
        slot_dim: D.
        mlp_dim: hidden size of the residual MLP after the GRU; no MLP if None.
        head_dim: hidden size of the MLP that makes a slot of mean and log deviation.
        likelihood_power: of the density in the E step, in (0,1]. 1 is the mixture's posterior,
            which over D dimensions is as good as hard; the published code has D^-1/2 on the
            squared distance.
        gradient: see `ocrl.nn.slot_attention.Corrector`.

    Raises:
        ValueError: if `likelihood_power` is not in (0,1] or `gradient` is unknown.
    """

    def __init__(
        self,
        token_dim: int,
        *,
        slot_dim: int,
        mlp_dim: int | None,
        head_dim: int,
        likelihood_power: float,
        gradient: Gradient,
    ) -> None:
        super().__init__()
        if not 0.0 < likelihood_power <= 1.0:
            raise ValueError(f"likelihood_power must be in (0,1], got {likelihood_power}")
        self.slot_dim = slot_dim
        self.likelihood_power = likelihood_power
        self.gradient = check_gradient(gradient)
        self.log_std = nn.Parameter(torch.zeros(slot_dim))
        self.norm_inputs = nn.LayerNorm(token_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.to_q = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_k = nn.Linear(token_dim, slot_dim, bias=False)
        self.to_v = nn.Linear(token_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.mlp: MLP | None = None
        if mlp_dim is not None:
            self.mlp = MLP(slot_dim, hidden_dims=[mlp_dim], out_dim=slot_dim, norm_first=True)
        self.to_slots = MLP(2 * slot_dim, hidden_dims=[head_dim], out_dim=slot_dim)

    def start(self, queries: Tensor) -> Tensor:
        """Components (B,K,2D+1) of equal weight around queries (B,K,D)."""
        queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
        log_weight = queries.new_full((*queries.shape[:2], 1), -math.log(queries.shape[1]))
        return torch.cat([queries, self.log_std.expand_as(queries), log_weight], dim=-1)

    def unpack(self, components: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (B,K,D), log deviation (B,K,D) and log weight (B,K,1)."""
        mean, log_std, log_weight = components.split([self.slot_dim, self.slot_dim, 1], dim=-1)
        return mean, log_std, log_weight

    def slots(self, components: Tensor) -> Tensor:
        """Slots (B,K,D) of components (B,K,2D+1)."""
        with torch.autocast(components.device.type, enabled=False):
            return self.to_slots(components[..., :-1])

    def forward(
        self, components: Tensor, tokens: Tensor, *, num_iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Fit components (B,K,2D+1) to tokens (B,N,F).

        Returns:
            Components (B,K,2D+1) and the last responsibilities (B,K,N), both float32 (float64 for
            float64 input).

        Raises:
            ValueError: if `num_iterations` is not positive.
        """
        components = components.to(torch.promote_types(components.dtype, torch.float32))
        tokens = self.norm_inputs(tokens)
        keys, values = (layer(tokens).to(components) for layer in (self.to_k, self.to_v))
        tables = keys, keys.square(), values, values.square()
        with torch.autocast(components.device.type, enabled=False):
            return unroll(
                lambda before: self._iterate(before, *tables),
                components,
                num_iterations=num_iterations,
                gradient=self.gradient,
            )

    def _iterate(
        self,
        components: Tensor,
        keys: Tensor,
        keys_squared: Tensor,
        values: Tensor,
        values_squared: Tensor,
    ) -> tuple[Tensor, Tensor]:
        mean, log_std, log_weight = self.unpack(components)
        logits = log_joint(
            keys,
            keys_squared,
            mean=self.to_q(self.norm_slots(mean)),
            log_std=self.to_q(log_std).clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT),
            log_weight=log_weight,
            likelihood_power=self.likelihood_power,
        )
        attn = competition(logits)
        owned, owned_squared, log_weight = moments(attn, values, values_squared)
        mean = self.gru(owned.flatten(0, 1), mean.flatten(0, 1)).view_as(mean)
        if self.mlp is not None:
            mean = mean + self.mlp(mean)
        log_std = log_deviation(owned, owned_squared, mean)
        return torch.cat([mean, log_std, log_weight], dim=-1), attn
