"""Grouped codebooks: a vector to one discrete code per group, and codes to vectors.

D size of a vector, G groups, C codes of the largest codebook, E size of a code, L levels; any
leading axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.block import BlockLinear

_IMPOSSIBLE = -1e9
"""Logit of codes beyond a group's own: finite, so that 0 times it is 0."""


class Quantized(NamedTuple):
    """What a quantiser gives.

    Attributes:
        values: (...,out_dim); in `eval()` they are a function of the codes alone.
        codes: (...,G) int64.
        costs: named numbers (...,) per vector that an objective may lower.
    """

    values: Tensor
    codes: Tensor
    costs: Mapping[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Vectors to codes of G independent groups. In `eval()` codes are hard and nothing is drawn.

    Attributes:
        sizes: number of codes of each group.
        out_dim: size of what stands for the codes of all groups.
        is_blockwise: whether a group reads an equal part of the vector of its own, and not all.
    """

    sizes: tuple[int, ...]
    out_dim: int
    is_blockwise: bool

    @abstractmethod
    def forward(self, vectors: Tensor, *, progress: Tensor) -> Quantized:
        """Quantise vectors (...,D), in float32 whatever the autocast.

        Args:
            vectors: (...,D).
            progress: scalar in [0,1], the share of training that is done.
        """

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """What stands for codes (...,G): (...,out_dim)."""


class GumbelQuantizer(Quantizer):
    """Samples of a categorical per group, by bilinear forms with learned codes.

    The property branch of VQ-SA (Kirilenko, Korchemnyi, Smirnov, Kovalev and Panov 2023): each
    group maps the vector by a matrix of its own and compares it with its codes, Gumbel noise is
    added in training and the softmax at a temperature mixes the codes. The cost `divergence` is
    KL(q || uniform) in nats, summed over groups.

    Differs from the published code: the temperature falls along a cosine, where it stayed at 2 and
    soft mixtures carried what no code says; the noise is drawn in training only; evaluation is
    hard; and mixtures can be hard in training, straight through (Jang et al. 2017, arXiv
    1611.01144).

    Args:
        in_dim: D.
        sizes: codes of each group; groups of exactly as many codes as values get stuck, a few more
            do not.
        code_dim: E.
        temperature_start: at the start of training.
        temperature_end: from `anneal_until` on.
        anneal_until: share of training.
        is_straight_through: hard codes in training too, with the gradient of the soft ones.
        is_blockwise: see `Quantizer`.

    Raises:
        ValueError: if a size, a temperature or `anneal_until` is out of range.
    """

    codebook: nn.Parameter
    is_code: Tensor

    def __init__(
        self,
        in_dim: int,
        *,
        sizes: Sequence[int],
        code_dim: int,
        temperature_start: float,
        temperature_end: float,
        anneal_until: float,
        is_straight_through: bool,
        is_blockwise: bool,
    ) -> None:
        super().__init__()
        self.sizes = _check_sizes(sizes)
        if not 0.0 < temperature_end <= temperature_start:
            raise ValueError(
                "expected 0 < temperature_end <= temperature_start, "
                f"got {temperature_end} and {temperature_start}"
            )
        if not 0.0 < anneal_until <= 1.0:
            raise ValueError(f"anneal_until must be in (0,1], got {anneal_until}")
        self.out_dim = len(self.sizes) * code_dim
        self.temperatures = (temperature_start, temperature_end)
        self.anneal_until = anneal_until
        self.is_straight_through = is_straight_through
        self.is_blockwise = is_blockwise
        self.to_codes = _code_map(in_dim, self, bias=False)
        self.codebook = nn.Parameter(_unit_codes(self.sizes, code_dim))
        self.register_buffer("is_code", _code_mask(self.sizes), persistent=False)

    def temperature(self, progress: Tensor) -> Tensor:
        """The temperature when a share of training is done."""
        start, end = self.temperatures
        share = (progress / self.anneal_until).clamp(max=1.0)
        return end + (start - end) * 0.5 * (1.0 + torch.cos(math.pi * share))

    def forward(self, vectors: Tensor, *, progress: Tensor) -> Quantized:
        """See `Quantizer.forward`."""
        with torch.autocast(vectors.device.type, enabled=False):
            mapped = _split(self.to_codes(_wide(vectors)), self.sizes)
            logits = torch.einsum("...ge,gce->...gc", mapped, self.codebook)
            log_probs = logits.masked_fill(~self.is_code, _IMPOSSIBLE).log_softmax(-1)
            sampled = log_probs
            if self.training:
                # The negative log of an exponential variable is a Gumbel variable.
                sampled = log_probs - torch.empty_like(log_probs).exponential_().log()
            codes = sampled.argmax(-1)
            weights = functional.one_hot(codes, logits.shape[-1]).to(logits)
            if self.training:
                soft = (sampled / self.temperature(progress)).softmax(-1)
                weights = weights + soft - soft.detach() if self.is_straight_through else soft
            values = torch.einsum("...gc,gce->...ge", weights, self.codebook)
            sizes = self.is_code.sum(-1, keepdim=True)
            divergence = (log_probs.exp() * (log_probs + sizes.log())).sum((-1, -2))
        return Quantized(values.flatten(-2), codes, {"divergence": divergence})

    def embed(self, codes: Tensor) -> Tensor:
        """See `Quantizer.embed`."""
        return _look_up(self.codebook, codes)


class EMAQuantizer(Quantizer):
    """Nearest codes, which are moving averages of the vectors they stood for.

    VQ-VAE with exponential moving averages (van den Oord et al. 2017, arXiv 1711.00937, appendix
    A.1) in each group, on the unit sphere (Yu et al. 2022, arXiv 2110.04627): a learned map before
    a codebook would else shrink everything to lower the commitment. Codes that stood for next to
    nothing start again from vectors of the batch. The gradient is straight through. The cost
    `commitment` is the squared distance to the code, summed over groups.

    Averages are buffers, summed over the processes that train together, so they are part of every
    checkpoint and the same in each process; revived codes come from the first process. Each piece
    of a batch that is accumulated is an update of its own.

    Differs from the paper in the sphere, on which a code is the direction of a sum, so that no
    count has to be smoothed; in the revival; and in that all codes start from the first batch.

    Args:
        in_dim: D.
        sizes: codes of each group.
        code_dim: E, at least 2.
        decay: share of the average that an update keeps.
        revive_below: a code is revived when its share of the vectors falls below this part of an
            equal share.
        is_blockwise: see `Quantizer`.

    Raises:
        ValueError: if a size, the decay or `revive_below` is out of range.
    """

    codebook: Tensor
    shares: Tensor
    totals: Tensor
    is_code: Tensor

    def __init__(
        self,
        in_dim: int,
        *,
        sizes: Sequence[int],
        code_dim: int,
        decay: float,
        revive_below: float,
        is_blockwise: bool,
    ) -> None:
        super().__init__()
        self.sizes = _check_sizes(sizes)
        if code_dim < 2:
            raise ValueError(f"code_dim must be at least 2 on a sphere, got {code_dim}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0,1), got {decay}")
        if not 0.0 < revive_below < 1.0:
            raise ValueError(f"revive_below must be in (0,1), got {revive_below}")
        self.out_dim = len(self.sizes) * code_dim
        self.decay = decay
        self.revive_below = revive_below
        self.is_blockwise = is_blockwise
        self.to_codes = _code_map(in_dim, self, bias=False)
        codebook = _unit_codes(self.sizes, code_dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("shares", torch.zeros(codebook.shape[:2]))
        self.register_buffer("totals", torch.zeros_like(codebook))
        self.register_buffer("is_code", _code_mask(self.sizes), persistent=False)

    def forward(self, vectors: Tensor, *, progress: Tensor) -> Quantized:
        """See `Quantizer.forward`; in training it updates the codebook."""
        with torch.autocast(vectors.device.type, enabled=False):
            units = functional.normalize(_split(self.to_codes(_wide(vectors)), self.sizes), dim=-1)
            if self.training:
                self._revive(units.detach().flatten(0, -3))
            likeness = torch.einsum("...ge,gce->...gc", units.detach(), self.codebook)
            codes = likeness.masked_fill(~self.is_code, _IMPOSSIBLE).argmax(-1)
            nearest = self.embed(codes).unflatten(-1, units.shape[-2:])
            commitment = (units - nearest).square().sum((-1, -2))
            if self.training:
                self._update(units.detach().flatten(0, -3), codes.flatten(0, -2))
                nearest = units + (nearest - units).detach()
        return Quantized(nearest.flatten(-2), codes, {"commitment": commitment})

    def embed(self, codes: Tensor) -> Tensor:
        """See `Quantizer.embed`."""
        return _look_up(self.codebook, codes)

    @torch.no_grad()
    def _revive(self, units: Tensor) -> None:
        """Put codes that are hardly used onto random unit vectors (M,G,E)."""
        num_groups, num_codes = self.shares.shape
        equal = 1.0 / self.is_code.sum(-1, keepdim=True)
        is_dead = self.is_code & (self.shares < self.revive_below * equal)
        rows = torch.randint(len(units), (num_groups, num_codes), device=units.device)
        chosen = units[rows, torch.arange(num_groups, device=units.device)[:, None]]
        # Two codes on one vector would never part.
        noise = 0.01 * torch.randn_like(chosen) * chosen.shape[-1] ** -0.5
        chosen = functional.normalize(chosen + noise, dim=-1).to(self.codebook)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(chosen, src=0)
        self.codebook.copy_(torch.where(is_dead[..., None], chosen, self.codebook))
        self.totals.copy_(torch.where(is_dead[..., None], chosen * equal[..., None], self.totals))
        self.shares.copy_(torch.where(is_dead, equal, self.shares))

    @torch.no_grad()
    def _update(self, units: Tensor, codes: Tensor) -> None:
        """Move averages towards unit vectors (M,G,E) with codes (M,G)."""
        owned = functional.one_hot(codes, self.shares.shape[-1]).to(self.codebook)
        sums = torch.einsum("mgc,mge->gce", owned, units.to(self.codebook))
        # One exchange: counts, sums and, as the sum of a group's counts, how many there were.
        both = torch.cat([owned.sum(0)[..., None], sums], dim=-1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(both)
        both = both / both[:1, :, 0].sum()
        self.shares.lerp_(both[..., 0], 1.0 - self.decay)
        self.totals.lerp_(both[..., 1:], 1.0 - self.decay)
        moved = functional.normalize(self.totals, dim=-1)
        self.codebook.copy_(torch.where(self.is_code[..., None], moved, self.codebook))


class FSQQuantizer(Quantizer):
    """Every number to one of a few levels; a group's code counts through those of its numbers.

    Finite scalar quantisation (Mentzer et al. 2024, arXiv 2309.15505): nothing to learn but the
    map, no cost, no dead codes by construction of the levels. Differs from the paper in that the
    levels are the centres of L bins of equal width over the range of tanh, for odd and even L
    alike; and in the groups.

    Args:
        in_dim: D.
        levels: for each group the levels L of each of its numbers.
        is_blockwise: see `Quantizer`; groups must then have equally many numbers.

    Raises:
        ValueError: if a group is empty, a number has less than 2 levels, or groups that read a part
            each differ in length.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, in_dim: int, *, levels: Sequence[Sequence[int]], is_blockwise: bool) -> None:
        super().__init__()
        if not levels or not all(levels) or min(min(group) for group in levels) < 2:
            raise ValueError(f"expected groups of numbers with at least 2 levels, got {levels}")
        self.sizes = tuple(math.prod(group) for group in levels)
        self.lengths = tuple(len(group) for group in levels)
        self.out_dim = sum(self.lengths)
        if is_blockwise and len(set(self.lengths)) > 1:
            raise ValueError(
                f"expected groups of equally many numbers if each reads its part, got {levels}"
            )
        self.is_blockwise = is_blockwise
        self.to_codes = _code_map(in_dim, self, bias=True)
        strides = [math.prod(group[:place]) for group in levels for place in range(len(group))]
        flat = [level for group in levels for level in group]
        self.register_buffer("levels", torch.tensor(flat), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, vectors: Tensor, *, progress: Tensor) -> Quantized:
        """See `Quantizer.forward`."""
        with torch.autocast(vectors.device.type, enabled=False):
            bounded = self.to_codes(_wide(vectors)).tanh()
            bins = (0.5 * (bounded.detach() + 1.0) * self.levels).long()
            bins = torch.minimum(bins, self.levels - 1)
            values = self._centres(bins).to(bounded)
            if self.training:
                values = bounded + (values - bounded).detach()
        groups = (bins * self.strides).split(self.lengths, dim=-1)
        return Quantized(values, torch.stack([group.sum(-1) for group in groups], dim=-1), {})

    def embed(self, codes: Tensor) -> Tensor:
        """See `Quantizer.embed`."""
        lengths = torch.tensor(self.lengths, device=codes.device)
        spread = codes.repeat_interleave(lengths, dim=-1, output_size=self.out_dim)
        return self._centres(spread // self.strides % self.levels)

    def _centres(self, bins: Tensor) -> Tensor:
        return (2 * bins + 1) / self.levels - 1.0


def _code_map(in_dim: int, quantizer: Quantizer, *, bias: bool) -> nn.Module:
    """The linear map (...,D) to (...,out_dim) of a quantiser."""
    if not quantizer.is_blockwise:
        return nn.Linear(in_dim, quantizer.out_dim, bias=bias)
    num_groups = len(quantizer.sizes)
    return BlockLinear(in_dim, quantizer.out_dim, num_blocks=num_groups, bias=bias)


def _check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if not sizes or min(sizes) < 2:
        raise ValueError(f"expected sizes of groups with at least 2 codes each, got {list(sizes)}")
    return tuple(sizes)


def _code_mask(sizes: Sequence[int]) -> Tensor:
    """Which of (G,C) are codes and not padding."""
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]


def _unit_codes(sizes: Sequence[int], code_dim: int) -> Tensor:
    """Random unit vectors (G,C,E), zero where there is no code."""
    codes = functional.normalize(torch.randn(len(sizes), max(sizes), code_dim), dim=-1)
    return codes * _code_mask(sizes)[..., None]


def _wide(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _split(mapped: Tensor, sizes: Sequence[int]) -> Tensor:
    return rearrange(mapped, "... (g e) -> ... g e", g=len(sizes))


def _look_up(codebook: Tensor, codes: Tensor) -> Tensor:
    groups = torch.arange(len(codebook), device=codes.device)
    return codebook[groups, codes].flatten(-2)
