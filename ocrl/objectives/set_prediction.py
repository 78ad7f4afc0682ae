"""Predict the set of objects in a frame: each slot is compared with the object that fits it best.

B batch, T frames, K slots, M objects of a table, P coordinates, C classes of a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.matching import hungarian, matched_scores
from ocrl.properties import COORDINATES, FACTORS, PRESENCE
from ocrl.types import Clip, DecoderOutput, SlotOutput

Activation = Literal["sigmoid", "softmax"]
Parts = Mapping[str, Tensor]


class SetPrediction(Objective):
    """Negative log likelihood of the objects, each slot being told which of them it is.

    For every object the sum over factors of the cross-entropy in nats, plus the Huber loss of its
    coordinates in [0,1], summed over them; for every slot the binary cross-entropy of presence. The
    matching minimises just this sum. It is the set loss of DETR (Carion et al. 2020, arXiv
    2005.12872) in that slots without an object learn only that they have none, but matches by the
    loss itself, instead of by probabilities.

    Args:
        coordinate_weight: factor on the Huber loss.
        presence_weight: factor on the cross-entropy of presence.
        huber_delta: beyond this error, as a share of a coordinate's range, the Huber loss grows
            with slope 1; below, it is the error's square by twice `huber_delta`.

    Raises:
        ValueError: if a weight is below 0, or `huber_delta` not above it.
    """

    def __init__(
        self, coordinate_weight: float, *, presence_weight: float, huber_delta: float
    ) -> None:
        super().__init__()
        _check_weights(coordinate_weight=coordinate_weight, presence_weight=presence_weight)
        if not huber_delta > 0:
            raise ValueError(f"expected a huber_delta above 0, got {huber_delta}")
        self.coordinate_weight = coordinate_weight
        self.presence_weight = presence_weight
        self.huber_delta = huber_delta

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Sum over the K slots of a frame, mean over (B,T).

        Raises:
            ValueError: if the clip has no such properties, or a frame more objects than slots.
        """
        targets, predictions = _sets(clip, decoded)
        with torch.autocast(decoded.recon.device.type, enabled=False):
            costs = self.costs(targets, predictions)
        return _matched(costs)

    def costs(self, targets: Parts, predictions: Parts) -> Tensor:
        """The loss (B,T,K,K) of each object, or absence of one, with each slot."""
        is_there = targets[PRESENCE]
        given, wanted = torch.broadcast_tensors(
            predictions[COORDINATES][..., None, :, :], targets[COORDINATES][..., None, :]
        )
        distance = F.smooth_l1_loss(given, wanted, reduction="none", beta=self.huber_delta)
        costs = self.coordinate_weight * distance.sum(-1)
        for name in _factors(predictions):
            log_probabilities = predictions[name].log_softmax(-1)
            classes = _one_hot(targets, predictions, name)
            costs = costs - classes @ log_probabilities.transpose(-2, -1)
        logits = predictions[PRESENCE][..., None, :]
        presence = torch.where(is_there[..., None], F.softplus(-logits), F.softplus(logits))
        return costs * is_there[..., None] + self.presence_weight * presence


class SetRegression(Objective):
    """The published loss: an object is a vector of coordinates, one-hot classes and presence.

    Mean over its numbers of the Huber loss with delta 1 (Locatello et al. 2020, arXiv 2006.15055),
    matched by the same. Slots without an object are compared with a vector of zeros,
    classes too. All numbers are in [0,1], where that loss is half the square, so the costs of all
    pairs are one matrix product. With coordinates in [-1,1], as the Slot Mixture Module has them
    (Kirilenko et al. 2024, arXiv 2311.04640), errors are twice as large: there `coordinate_weight`
    is 4 (while they stay below 1), which explains a part of its advantage.

    Args:
        coordinate_weight: factor on the loss of coordinates; 1 in the paper.
        activation: logits of classes to numbers: `sigmoid` for each, as in Slot Attention, or
            `softmax` over a factor, as in the Slot Mixture Module.

    Raises:
        ValueError: if the weight is below 0, or there is no such activation.
    """

    def __init__(self, coordinate_weight: float, *, activation: Activation) -> None:
        super().__init__()
        _check_weights(coordinate_weight=coordinate_weight)
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"activation must be 'sigmoid' or 'softmax', got {activation!r}")
        self.coordinate_weight = coordinate_weight
        self.activation = activation

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Sum over the K slots of a frame, mean over (B,T).

        Raises:
            ValueError: if the clip has no such properties, or a frame more objects than slots.
        """
        targets, predictions = _sets(clip, decoded)
        with torch.autocast(decoded.recon.device.type, enabled=False):
            costs = self.costs(targets, predictions)
        return _matched(costs)

    def costs(self, targets: Parts, predictions: Parts) -> Tensor:
        """The loss (B,T,K,K) of each object, or row of zeros, with each slot."""
        is_there = targets[PRESENCE][..., None]
        root = self.coordinate_weight**0.5
        wanted = [targets[COORDINATES] * root * is_there, is_there.float()]
        given = [predictions[COORDINATES] * root, predictions[PRESENCE][..., None].sigmoid()]
        for name in _factors(predictions):
            wanted.append(_one_hot(targets, predictions, name) * is_there)
            logits = predictions[name]
            given.append(logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1))
        goal, guess = torch.cat(wanted, dim=-1), torch.cat(given, dim=-1)
        squares = goal.square().sum(-1)[..., None] + guess.square().sum(-1)[..., None, :]
        return (squares - 2 * goal @ guess.transpose(-2, -1)) / (2 * goal.shape[-1])


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"expected a {name} of at least 0, got {weight}")


def _factors(predictions: Parts) -> list[str]:
    return [name for name in predictions if name.startswith(FACTORS)]


def _one_hot(targets: Parts, predictions: Parts, name: str) -> Tensor:
    """(B,T,K,C)."""
    return F.one_hot(targets[name], predictions[name].shape[-1]).float()


def _sets(clip: Clip, decoded: DecoderOutput) -> tuple[dict[str, Tensor], Parts]:
    """Targets with K rows, objects first, and predictions.

    Raises:
        ValueError: if they are not of the same properties, or a frame has more objects than slots.
    """
    predictions = decoded.aux
    if PRESENCE not in predictions:
        raise ValueError(
            "expected a decoder that gives the presence of objects (decoder=properties), "
            f"got one that gives {sorted(predictions)}"
        )
    if set(predictions) != set(clip.properties):
        raise ValueError(
            f"expected a clip with the properties {sorted(predictions)}, got "
            f"{sorted(clip.properties)}; load it with those of the decoder's spec"
        )
    num_slots = predictions[PRESENCE].shape[-1]
    most = int(clip.properties[PRESENCE].sum(-1).max())
    if most > num_slots:
        raise ValueError(
            f"expected at most num_slots={num_slots} objects in a frame, got {most}; "
            f"set num_slots={most} or more"
        )
    return {name: _rows(value, num_slots) for name, value in clip.properties.items()}, predictions


def _rows(values: Tensor, num_rows: int) -> Tensor:
    """Cut or pad (B,T,M,...) with zeros to (B,T,K,...)."""
    values = values[:, :, :num_rows]
    missing = num_rows - values.shape[2]
    return F.pad(values, [0, 0] * (values.ndim - 3) + [0, missing]) if missing else values


def _matched(costs: Tensor) -> Tensor:
    """The smallest sum of costs (B,T,K,K) of a one-to-one matching, mean over (B,T)."""
    return matched_scores(costs, hungarian(costs)).sum(-1).mean()
