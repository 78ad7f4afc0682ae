"""How well a model tells which objects there are: average precision on clips with their sets.

B batch, T frames, I = B * T frames of all clips, K slots, M objects of a table, F factors,
P coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ocrl.average_precision import PredictedSets, average_precision
from ocrl.decoders.properties import PropertyDecoder
from ocrl.log import TensorBoard
from ocrl.matching import hungarian, matched_scores
from ocrl.model import SlotModel
from ocrl.properties import COORDINATES, FACTORS, PRESENCE, PropertySpec
from ocrl.types import Clip, DecoderOutput


@dataclass(frozen=True)
class SetPredictionResult:
    """What an evaluation found.

    Attributes:
        ap: distance, in the unit of the spec, to average precision.
        accuracy: factor to the share of objects of which the slot matched with them, by the fewest
            wrong factors and then the least distance, tells the right class.
        distance: mean over objects of the distance to that slot, in the unit of the spec.
        count: share of frames in which as many slots as there are objects are more likely present
            than not.
        num_frames: frames in all.
        num_objects: objects in all of them.
    """

    ap: dict[float, float]
    accuracy: dict[str, float]
    distance: float
    count: float
    num_frames: int
    num_objects: int

    def scalars(self) -> dict[str, float]:
        """Every figure by one name, `ap/0.25`, those that are no number left out."""
        values = {f"ap/{distance:g}": value for distance, value in self.ap.items()}
        values |= {f"accuracy/{name}": value for name, value in self.accuracy.items()}
        values |= {"distance": self.distance, "count": self.count}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "figures": self.scalars(),
            "num_frames": self.num_frames,
            "num_objects": self.num_objects,
        }


def spec_of(model: nn.Module) -> PropertySpec:
    """The properties that a model predicts.

    Raises:
        ValueError: if it predicts none.
    """
    decoder = model.decoder
    if not isinstance(decoder, PropertyDecoder):
        raise ValueError(
            "expected a model with decoder=properties, as experiment=set_prediction has it, "
            f"got {type(decoder).__name__}"
        )
    return decoder.spec


@torch.inference_mode()
def evaluate_set_prediction(
    model: SlotModel, clips: Iterable[Clip], *, device: torch.device
) -> SetPredictionResult:
    """Predict the sets of all frames of all clips, and count over the whole pool.

    Args:
        model: with a `PropertyDecoder`; its mode is left as it is.
        clips: with the targets of the decoder's spec as `properties`.
        device: where the model is.

    Raises:
        ValueError: if the model predicts no properties, or there is no clip.
    """
    spec, was_training = spec_of(model), model.training
    model.eval()
    pools: list[PredictedSets] = []
    try:
        for clip in clips:
            moved = clip.to(device)
            encoded = model.encode(moved)
            decoded = model.decoder(encoded.slots, attn=encoded.attn)
            pools.append(_frames(spec, moved.properties, decoded))
    finally:
        model.train(was_training)
    if not pools:
        raise ValueError("expected at least one clip to evaluate on, got none")
    return score(spec, _joined(pools))


def score(spec: PropertySpec, sets: PredictedSets) -> SetPredictionResult:
    """Count over a pool of predictions."""
    is_wrong, distance = _matched(sets)
    is_object = sets.is_object
    right = 1 - is_wrong[is_object].double().mean(0)
    likely = (sets.presence > 0).sum(-1) == is_object.sum(-1)
    return SetPredictionResult(
        ap=average_precision(sets),
        accuracy=dict(zip(spec.factors, right.tolist(), strict=True)),
        distance=float(distance[is_object].nanmean()),
        count=float(likely.double().mean()),
        num_frames=len(is_object),
        num_objects=int(is_object.sum()),
    )


def _frames(
    spec: PropertySpec, targets: Mapping[str, Tensor], decoded: DecoderOutput
) -> PredictedSets:
    """Predictions and targets (B,T,...) of clips, by frame and on the CPU."""

    def stacked(parts: Mapping[str, Tensor], pick: Callable[[Tensor], Tensor]) -> Tensor:
        chosen = [pick(parts[FACTORS + name]) for name in spec.factors]
        empty = parts[PRESENCE].new_zeros((*parts[PRESENCE].shape, 0), dtype=torch.int64)
        return torch.stack(chosen, dim=-1) if chosen else empty

    predictions = decoded.aux
    values = {
        "presence": predictions[PRESENCE],
        "classes": stacked(predictions, lambda logits: logits.argmax(-1)),
        "coordinates": predictions[COORDINATES] * spec.scale,
        "is_object": targets[PRESENCE],
        "true_classes": stacked(targets, lambda index: index),
        "true_coordinates": targets[COORDINATES] * spec.scale,
    }
    return PredictedSets(**{name: value.flatten(0, 1).cpu() for name, value in values.items()})


def _joined(pools: list[PredictedSets]) -> PredictedSets:
    names = vars(pools[0])
    return PredictedSets(**{n: torch.cat([getattr(pool, n) for pool in pools]) for n in names})


def _matched(sets: PredictedSets) -> tuple[Tensor, Tensor]:
    """Which factors are wrong (I,M,F), and the distance (I,M), of the slot of each object.

    An object that got no slot, as there are fewer slots, has all factors wrong and distance NaN.
    """
    differs = sets.true_classes[:, :, None] != sets.classes[:, None]
    apart = sets.true_coordinates.double()[:, :, None] - sets.coordinates.double()[:, None]
    distance = apart.square().sum(-1).sqrt()
    # No sum of distances within a frame outweighs one wrong factor, and no padding an object.
    cost = differs.sum(-1) + distance / (1 + distance.sum((1, 2), keepdim=True))
    columns = hungarian((cost - differs.shape[-1] - 2) * sets.is_object[..., None])
    is_lost = columns < 0
    place = columns.clamp(min=0)[..., None, None].expand(-1, -1, 1, differs.shape[-1])
    is_wrong = differs.gather(2, place).squeeze(2) | is_lost[..., None]
    return is_wrong, matched_scores(distance, columns).masked_fill(is_lost, math.nan)


class SetPredictionMonitor:
    """Average precision on held-out clips, evaluated every so many steps of training."""

    def __init__(self, clips: Callable[[], Iterable[Clip]], *, device: torch.device) -> None:
        """Remember what to evaluate on.

        Args:
            clips: gives the same held-out clips, with their targets, at every call.
            device: where the model will be.
        """
        self._clips, self._device = clips, device

    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Evaluate a model; the trainer logs the figures."""
        if not isinstance(model, SlotModel):
            raise TypeError(f"expected a SlotModel, got {type(model).__name__}")
        return evaluate_set_prediction(model, self._clips(), device=self._device).scalars()
