"""Which codes say which factor: statistics of codes and factors counted together.

P objects in frames, G code groups, C codes of the largest group, F factors, V values of the largest
factor. Everything is counted in integers and computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def code_factor_counts(
    codes: Tensor, factors: Tensor, *, num_codes: int, num_values: int
) -> Tensor:
    """How often each code stands with each value.

    Args:
        codes: (P,G) int in [0, C).
        factors: (P,F) int in [0, V).
        num_codes: C.
        num_values: V.

    Returns:
        (G,F,C,V) int64.

    Raises:
        ValueError: if the shapes do not fit, or a code or a value is out of range.
    """
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            f"expected codes (P,G) and factors (P,F), got {tuple(codes.shape)} and "
            f"{tuple(factors.shape)}"
        )
    for name, values, size in (("codes", codes, num_codes), ("factors", factors, num_values)):
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < size):
            raise ValueError(
                f"expected {name} in [0, {size}), got [{int(values.min())}, {int(values.max())}]"
            )
    both = codes.long()[:, :, None] * num_values + factors.long()[:, None, :]
    pairs = both.flatten(1).unbind(1)
    counts = [pair.bincount(minlength=num_codes * num_values) for pair in pairs]
    shape = (codes.shape[1], factors.shape[1], num_codes, num_values)
    return torch.stack(counts).view(shape)


def value_given_code(counts: Tensor) -> Tensor:
    """p(value | code), (...,C,V) from counts (...,C,V); NaN for a code that never occurs.

    The table of figure 3 in Kirilenko et al. 2023 (VQ-SA).
    """
    table = counts.double()
    return table / table.sum(-1, keepdim=True)


def entropy(counts: Tensor) -> Tensor:
    """Entropy (...) in nats of counts (...,N); NaN of nothing."""
    shares = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(-1)


def normalised_mutual_information(counts: Tensor) -> Tensor:
    """I(code; value) / H(value), (...) from counts (...,C,V).

    The share of what there is to know about a factor that a code tells. 0 if the factor does not
    vary. Counted on few objects it is too large; compare it with that of shuffled factors.
    """
    values, codes = entropy(counts.sum(-2)), entropy(counts.sum(-1))
    information = values + codes - entropy(counts.flatten(-2))
    is_known = values > 0
    ratio = information / values.where(is_known, 1.0)
    return ratio.where(is_known, 0.0).clamp(0.0, 1.0)


def shuffled_information(
    codes: Tensor, factors: Tensor, *, num_codes: int, num_values: int, seed: int = 0
) -> Tensor:
    """The normalised mutual information (G,F) that is left when factors are shuffled: its bias."""
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    counts = code_factor_counts(codes, factors[order], num_codes=num_codes, num_values=num_values)
    return normalised_mutual_information(counts)


def purity(counts: Tensor) -> Tensor:
    """The share (...) of objects with the most frequent value of their code, from (...,C,V)."""
    table = counts.double()
    return table.amax(-1).sum(-1) / table.sum((-2, -1))


class Disentanglement(NamedTuple):
    """Scores of a table of importances, all in [0,1].

    Attributes:
        modularity: (G,), 1 for a group that tells about one factor only; NaN for one that tells
            about none, or if there is one factor.
        completeness: (F,), 1 for a factor that one group tells about; NaN for one that no group
            tells about, or if there is one group.
        mean_modularity: over groups, by how much they tell.
        mean_completeness: over factors.
        gap: the importance of the best group of a factor minus that of the second best, mean over
            factors.
    """

    modularity: Tensor
    completeness: Tensor
    mean_modularity: float
    mean_completeness: float
    gap: float


def disentanglement(importance: Tensor) -> Disentanglement:
    """Modularity and completeness of groups of codes against factors.

    Eastwood and Williams 2018 (DCI, ICLR): modularity is their disentanglement
    D_i = 1 - H_F(P_i) with rows of importance as distributions, weighted by the sums of the rows;
    completeness C_k = 1 - H_G(P_k) with columns. The gap is that of Chen et al. 2018 (arXiv
    1802.04942, equation 6). Differs in the importance: normalised mutual information instead of
    the weights of a regressor.

    Args:
        importance: (G,F), not negative.

    Raises:
        ValueError: if it has another shape, or negative or undefined entries.
    """
    if importance.ndim != 2 or not bool((importance >= 0).all()):
        raise ValueError(
            f"expected importances (G,F) that are not negative, got shape "
            f"{tuple(importance.shape)} and least {importance.min() if importance.numel() else '-'}"
        )
    table = importance.double()
    modularity, completeness = _concentration(table), _concentration(table.mT)
    weight = table.sum(1)
    known = modularity.isfinite()
    best = F.pad(table, (0, 0, 0, 1)).topk(2, dim=0).values
    share = weight[known] / weight[known].sum()
    return Disentanglement(
        modularity,
        completeness,
        float((share * modularity[known]).sum()) if known.any() else math.nan,
        float(completeness.nanmean()),
        float((best[0] - best[1]).mean()),
    )


def _concentration(table: Tensor) -> Tensor:
    """1 - entropy of each row (R,S) over that of equal shares; NaN for rows of zeros or S = 1."""
    if table.shape[1] < 2:
        return torch.full_like(table[:, 0], torch.nan)
    return 1.0 - entropy(table) / math.log(table.shape[1])


class Discrete(NamedTuple):
    """A factor as values that can be counted.

    Attributes:
        values: (P,) int64.
        names: of the values.
    """

    values: Tensor
    names: tuple[str, ...]


def discretise(
    columns: Mapping[str, Tensor], *, num_bins: int, max_values: int = 32
) -> dict[str, Discrete]:
    """Factors (P,C) as countable values; those that do not vary are left out.

    A column of at most `max_values` different numbers keeps them. Others are cut into `num_bins`
    equal parts of their range; `position` always is, on [0,1] and for both axes together, as in
    the evaluation of SysBinder (Singh et al. 2023, arXiv 2211.01177).

    Args:
        columns: name to (P,C).
        max_values: different values of a column.
        num_bins: per axis.
    """
    found = {}
    for name, rows in columns.items():
        if name == "position":
            bins = (rows.double() * num_bins).long().clamp(0, num_bins - 1)
            values = bins[:, 1] * num_bins + bins[:, 0]
            names = tuple(f"x{k % num_bins} y{k // num_bins}" for k in range(num_bins**2))
            used = values.unique()
            found[name] = Discrete(torch.searchsorted(used, values), tuple(names[k] for k in used))
        else:
            found[name] = _discrete(rows.double()[:, 0], max_values, num_bins)
    return {name: factor for name, factor in found.items() if len(factor.names) > 1}


def _discrete(column: Tensor, max_values: int, num_bins: int) -> Discrete:
    distinct, values = column.unique(return_inverse=True)
    if len(distinct) <= max_values:
        return Discrete(values, tuple(f"{float(value):.4g}" for value in distinct))
    low, high = float(distinct[0]), float(distinct[-1])
    values = ((column - low) / (high - low) * num_bins).long().clamp(max=num_bins - 1)
    edges = [low + (high - low) * k / num_bins for k in range(num_bins + 1)]
    names = tuple(f"{edges[k]:.3g} to {edges[k + 1]:.3g}" for k in range(num_bins))
    return Discrete(values, names)
