"""Probes: what can be read off a slot about the object it holds.

P objects in frames, D slot size, O outputs, V values of a class, T frames, K slots,
M objects of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocrl.inspection.object_slots import LabelledClip, ObjectSlots
from ocrl.matching import hungarian

Kind = Literal["number", "class"]
_MAX_CLASSES = 32
_LEARNING_RATE = 3e-3
_BATCH_SIZE = 256


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted.

    Attributes:
        penalty: of the linear probes, on standardised slots.
        hidden_dim: of the perceptron.
        num_steps: its training.
        seed: its weights and batches.

    Raises:
        ValueError: if a size is not from 1 on, or the penalty is below 0.
    """

    penalty: float
    hidden_dim: int
    num_steps: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} to be from 1 on, got {getattr(self, name)}")
        if self.penalty < 0:
            raise ValueError(f"expected a penalty of at least 0, got {self.penalty}")


@dataclass(frozen=True)
class Standardizer:
    """Subtracts means (D,) and divides by deviations (D,), as found on training rows."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: Tensor, *, eps: float = 1e-6) -> Standardizer:
        """Measure rows (P,D), in float64; what does not vary becomes 0."""
        rows = rows.double()
        deviation = rows.std(0, correction=0)
        return cls(rows.mean(0), deviation.where(deviation > eps, 1.0))

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (...,D) in float64 with mean 0 and variance 1 over the training rows."""
        return (rows.double() - self.mean) / self.deviation


def fit_ridge(inputs: Tensor, targets: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights (D,O) and bias (O,) of ridge regression, in closed form and float64.

    The minimum of the mean over rows of |x W + b - y|^2, plus `penalty` |W|^2; the bias is free.

    Args:
        inputs: (P,D).
        targets: (P,O).
        penalty: not negative; positive where inputs depend on each other.
    """
    x, y = inputs.double(), targets.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    gram = x.T @ x / len(x) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ (y - mean_y) / len(x))
    return weight, mean_y - mean_x @ weight


def fit_softmax(
    inputs: Tensor, classes: Tensor, *, num_classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weights (D,V) and bias (V,) of multinomial logistic regression, by L-BFGS in float64.

    The minimum of the mean cross entropy plus `penalty` |W|^2, which is the only one.

    Args:
        inputs: (P,D).
        classes: (P,) int64 in [0, V).
        num_classes: V.
        penalty: positive.
    """
    x = inputs.double()
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, classes) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def fit_network(
    inputs: Tensor,
    targets: Tensor,
    *,
    out_dim: int,
    settings: ProbeSettings,
) -> nn.Module:
    """A perceptron with one hidden layer, trained by AdamW on batches drawn at random.

    The rate falls to 0 along a cosine.

    Args:
        inputs: (P,D), standardised.
        targets: (P,) int64 classes for a cross entropy, or (P,O) numbers for squared errors.
        out_dim: O or V.
        settings: size, steps and seed; the global generator stays as it is.
    """
    x = inputs.float()
    y = targets.float() if targets.ndim == 2 else targets
    measure = F.mse_loss if targets.ndim == 2 else F.cross_entropy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = nn.Sequential(
            nn.Linear(x.shape[1], settings.hidden_dim),
            nn.ReLU(),
            nn.Linear(settings.hidden_dim, out_dim),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.num_steps)
        for _ in range(settings.num_steps):
            rows = torch.randint(len(x), (_BATCH_SIZE,))
            optimizer.zero_grad()
            measure(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False)


def r_squared(predicted: Tensor, truth: Tensor) -> float:
    """1 - squared error / variance, over (P,O), averaged over columns; 0 for predicting the mean.

    Columns that do not vary are left out; NaN if none varies.
    """
    truth, predicted = truth.double(), predicted.double()
    error = (truth - predicted).square().sum(0)
    spread = (truth - truth.mean(0)).square().sum(0)
    return float((1 - error / spread).where(spread > 0, torch.nan).nanmean())


def factor_kinds(
    factors: Mapping[str, Tensor], *, given: Mapping[str, Kind] | None = None
) -> dict[str, Kind]:
    """Which factors (P,C) are numbers and which are classes; constant ones are left out.

    A class has one column of at most 32 different whole numbers; `position` is a number.

    Args:
        factors: name to (P,C).
        given: kinds of some of them, which count more than what the values look like.

    Raises:
        ValueError: if a factor or a kind does not exist.
    """
    kinds: dict[str, Kind] = {}
    given = given or {}
    for name, kind in given.items():
        if name not in factors:
            raise ValueError(f"expected factors among {sorted(factors)} in kinds, got {name!r}")
        if kind not in ("number", "class") or (kind == "class" and factors[name].shape[1] > 1):
            raise ValueError(f"expected 'number' or, of one column, 'class' for {name}, got {kind}")
    for name, values in factors.items():
        distinct = values.unique(dim=0)
        if len(distinct) < 2:
            continue
        is_whole = bool((distinct == distinct.round()).all())
        is_class = is_whole and values.shape[1] == 1 and len(distinct) <= _MAX_CLASSES
        kinds[name] = given.get(name, "class" if is_class and name != "position" else "number")
    return kinds


@dataclass(frozen=True)
class ProbeScore:
    """How well one factor is read off held-out slots.

    Attributes:
        kind: R^2 of a `number`, accuracy of a `class`.
        constant: of always saying the training rows' mean or most frequent class.
        linear: of ridge regression or multinomial logistic regression.
        mlp: of a perceptron.
    """

    kind: Kind
    constant: float
    linear: float
    mlp: float


def probe(
    train: ObjectSlots,
    test: ObjectSlots,
    *,
    kinds: Mapping[str, Kind],
    settings: ProbeSettings,
) -> dict[str, ProbeScore]:
    """Fit probes on some objects and score them on others.

    Of an object without a slot nothing can be read: the constant is the answer there, so that
    models which miss unlike objects are scored on the same ones. A class that the training
    objects lack can only be got wrong.

    Args:
        train: objects of some episodes.
        test: objects of others.
        kinds: factors that are probed, see `factor_kinds`.
        settings: how.
    """
    own = train.matched()
    standard = Standardizer.of(own.slots)
    fit = {"number": _probe_number, "class": _probe_class}
    return {
        name: fit[kind](
            standard(own.slots),
            own.factors[name],
            standard(test.slots),
            test.factors[name],
            test.is_matched[:, None],
            settings,
        )
        for name, kind in kinds.items()
    }


def _probe_number(
    inputs: Tensor,
    targets: Tensor,
    asked: Tensor,
    expected: Tensor,
    is_known: Tensor,
    settings: ProbeSettings,
) -> ProbeScore:
    standard = Standardizer.of(targets)
    wanted, expected = standard(targets), standard(expected)
    weight, bias = fit_ridge(inputs, wanted, penalty=settings.penalty)
    network = fit_network(inputs, wanted, out_dim=wanted.shape[1], settings=settings)
    answers = (
        torch.zeros_like(expected),
        (asked @ weight + bias) * is_known,
        network(asked.float()).double() * is_known,
    )
    return ProbeScore("number", *(r_squared(answer, expected) for answer in answers))


def _probe_class(
    inputs: Tensor,
    targets: Tensor,
    asked: Tensor,
    expected: Tensor,
    is_known: Tensor,
    settings: ProbeSettings,
) -> ProbeScore:
    values, classes = targets.squeeze(1).unique(return_inverse=True)
    weight, bias = fit_softmax(inputs, classes, num_classes=len(values), penalty=settings.penalty)
    network = fit_network(inputs, classes, out_dim=len(values), settings=settings)
    constant = classes.mode().values.expand(len(asked))
    answers = (
        constant,
        (asked @ weight + bias).argmax(1).where(is_known.squeeze(1), constant),
        network(asked.float()).argmax(1).where(is_known.squeeze(1), constant),
    )
    truth = expected.squeeze(1)
    right = (float((values[answer] == truth).double().mean()) for answer in answers)
    return ProbeScore("class", *right)


@dataclass(frozen=True)
class PositionMatching:
    """Which slot holds which object, found by reading positions.

    Attributes:
        matches: per clip (T,M) slots, the same in all frames of a clip; -1 where an object is out
            of view or has none.
        weight: (D,2) of the probe of positions.
        bias: (2,).
        error: mean squared distance of positions read and true, in squared sides of the frame.
    """

    matches: list[Tensor]
    weight: Tensor
    bias: Tensor
    error: float


def match_by_position(
    clips: Sequence[LabelledClip],
    *,
    penalty: float,
    num_rounds: int = 20,
    num_starts: int = 4,
    seed: int = 0,
) -> PositionMatching:
    """Match slots to objects by expectation maximisation over permutations; no mask is needed.

    Singh, Wang and Ahn, "Parallelized Spatiotemporal Binding" (PSB, 2024, appendix E.1): start
    with any permutation of each clip; fit a linear probe of positions under it; choose each
    clip's best permutation under the probe, one for all of its frames; repeat until none changes.

    Differs from the paper in that several starts are tried and the one with the least error is
    kept, since a bad start ends in a bad optimum; and in the ridge.

    Args:
        clips: with a factor `position`.
        penalty: of the probe, on slots as they are.
        num_rounds: at most.
        num_starts: drawn from `seed`.
        seed: of the starts.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [_settle(clips, penalty, num_rounds, generator) for _ in range(num_starts)]
    return min(found, key=lambda result: result.error)


def assign_by_position(
    clips: Sequence[LabelledClip], weight: Tensor, bias: Tensor
) -> tuple[list[Tensor], float]:
    """The best permutation of each clip under a probe (D,2), (2,), and the mean squared error.

    On held-out clips it still looks at their true positions, as the paper does: how well position
    itself can be read is then flattered, by how much a random encoder tells.
    """
    matches, total, number = [], 0.0, 0
    for clip in clips:
        cost = _costs(clip, weight, bias)
        chosen = hungarian(cost)
        kept = cost.gather(1, chosen.clamp(min=0)[:, None]).squeeze(1)[chosen >= 0]
        matches.append(torch.where(clip.is_seen, chosen, -1))
        total += float(kept.sum())
        number += int((matches[-1] >= 0).sum())
    return matches, total / max(number, 1)


def _settle(
    clips: Sequence[LabelledClip],
    penalty: float,
    num_rounds: int,
    generator: torch.Generator,
) -> PositionMatching:
    matches = []
    for clip in clips:
        num_slots, num_objects = clip.slots.shape[1], clip.is_seen.shape[1]
        order = torch.randperm(max(num_slots, num_objects), generator=generator)[:num_objects]
        matches.append(torch.where(clip.is_seen & (order < num_slots), order, -1))
    for _ in range(num_rounds):
        weight, bias = fit_ridge(*_rows(clips, matches), penalty=penalty)
        previous, (matches, error) = matches, assign_by_position(clips, weight, bias)
        if all(torch.equal(a, b) for a, b in zip(previous, matches, strict=True)):
            break
    return PositionMatching(matches, weight, bias, error)


def _rows(clips: Sequence[LabelledClip], matches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    slots, positions = [], []
    for clip, match in zip(clips, matches, strict=True):
        frame, row = torch.nonzero(match >= 0, as_tuple=True)
        slots.append(clip.slots[frame, match[frame, row]])
        positions.append(clip.factors["position"][frame, row])
    return torch.cat(slots), torch.cat(positions)


def _costs(clip: LabelledClip, weight: Tensor, bias: Tensor) -> Tensor:
    """Summed squared error (M,K) over frames, were an object at home in a slot."""
    read = clip.slots.double() @ weight + bias
    seen = clip.is_seen.double()
    truth = clip.factors["position"].double() * seen[..., None]
    squares = seen.T @ read.square().sum(-1) + truth.square().sum((0, -1))[:, None]
    return squares - 2 * torch.einsum("tmc,tkc->mk", truth, read)
