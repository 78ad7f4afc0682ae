"""What probes read off slots, of a trained model and of untrained ones, as a table.

T frames, K slots, M objects of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch

from ocrl.data.clips import Split
from ocrl.discovery import DiscoveryModel, MaskSource
from ocrl.inspection.object_slots import (
    LabelledClip,
    ObjectSlots,
    gather,
    label_clips,
    match_by_masks,
)
from ocrl.inspection.probes import (
    Kind,
    ProbeScore,
    ProbeSettings,
    assign_by_position,
    factor_kinds,
    match_by_position,
    probe,
)
from ocrl.page import page, table, write_record
from ocrl.types import Clip

Matching = Literal["masks", "position"]
MATCHINGS: Mapping[str, str] = {
    "masks": "slots and objects matched by masks, frame by frame",
    "position": "slots and objects matched by the positions that a probe reads, clip by clip",
}
_UNITS = {"number": "R2", "class": "accuracy"}


@dataclass(frozen=True)
class Probed:
    """The probes of one model under one matching.

    Attributes:
        scores: factor to its scores on held-out episodes.
        share_matched: share of the held-out objects that have a slot.
        overlap: mean IoU of held-out objects with their slots, 0 without one.
    """

    scores: Mapping[str, ProbeScore]
    share_matched: float
    overlap: float


@dataclass
class ProbeResult:
    """What was found.

    Attributes:
        table: matching to model to its probes.
        kinds: factor to what it is.
        num_objects: objects in frames, of the training and of the held-out episodes.
        warnings: what a reader has to know, in words.
    """

    table: dict[str, dict[str, Probed]]
    kinds: dict[str, Kind]
    num_objects: tuple[int, int]
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values; NaN becomes null."""
        return {
            "kinds": self.kinds,
            "num_objects": dict(zip(("train", "holdout"), self.num_objects, strict=True)),
            "warnings": self.warnings,
            "table": {
                matching: {name: _plain(probed) for name, probed in models.items()}
                for matching, models in self.table.items()
            },
        }


def compare_probes(
    models: Mapping[str, DiscoveryModel],
    read: Callable[[Split], Iterable[Clip]],
    *,
    attribute_names: Sequence[str],
    matchings: Sequence[Matching],
    settings: ProbeSettings,
    kinds: Mapping[str, Kind] | None = None,
    mask_source: MaskSource = "decoder",
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Probe models on the same clips, whose episodes are split into training and held-out ones.

    Args:
        models: name to a model in `eval()`; those beside the trained one have random weights.
        read: "train" or "holdout" to its clips, with object tables.
        attribute_names: names of the columns of `attributes` in the object tables.
        matchings: names of `MATCHINGS`.
        settings: of the probes.
        kinds: of factors that do not look like what they are.
        mask_source: masks of the decoder or the encoder's attention.
        device: where the models are.

    Raises:
        ValueError: if a matching is unknown, or the clips have no objects.
    """
    if not matchings or set(matchings) - set(MATCHINGS):
        raise ValueError(f"expected matchings among {list(MATCHINGS)}, got {list(matchings)}")
    result = ProbeResult({matching: {} for matching in matchings}, {}, (0, 0))
    for name, model in models.items():
        train, test = (
            label_clips(
                model,
                read(split),
                attribute_names=attribute_names,
                mask_source=mask_source,
                device=device,
            )
            for split in ("train", "holdout")
        )
        for matching in matchings:
            rows = matched_rows(train, test, matching=matching, settings=settings)
            if not result.kinds:
                result.kinds = factor_kinds(rows[0].factors, given=kinds)
                result.num_objects = (len(rows[0].slots), len(rows[1].slots))
                result.warnings = _warnings(rows[0], result.kinds, matchings)
            result.table[matching][name] = Probed(
                probe(*rows, kinds=result.kinds, settings=settings),
                float(rows[1].is_matched.double().mean()),
                float(rows[1].overlap.double().mean()),
            )
    return result


def matched_rows(
    train: Sequence[LabelledClip],
    test: Sequence[LabelledClip],
    *,
    matching: Matching,
    settings: ProbeSettings,
) -> tuple[ObjectSlots, ObjectSlots]:
    """Objects and their slots, of training and of held-out clips."""
    if matching == "masks":
        pair = [gather(clips, [match_by_masks(clip) for clip in clips]) for clips in (train, test)]
        return pair[0], pair[1]
    found = match_by_position(train, penalty=settings.penalty, seed=settings.seed)
    matches, _ = assign_by_position(test, found.weight, found.bias)
    return gather(train, found.matches), gather(test, matches)


def _warnings(
    train: ObjectSlots, kinds: Mapping[str, Kind], matchings: Sequence[Matching]
) -> list[str]:
    constant = sorted(set(train.factors) - set(kinds))
    found = []
    if constant:
        found.append(f"Not probed, as no two objects differ in it: {', '.join(constant)}.")
    if "position" in matchings:
        found.append(
            "Matching by position looks at the held-out positions to choose the slots, so that "
            "untrained slots score well on position too; it tells about the other factors."
        )
    return found


def _plain(probed: Probed) -> dict[str, Any]:
    scores = {
        name: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(s).items()}
        for name, s in probed.scores.items()
    }
    return {
        "share_matched": probed.share_matched,
        "overlap": probed.overlap,
        "scores": scores,
    }


def summary(result: ProbeResult) -> list[str]:
    """What was found, in lines for a terminal."""
    lines = []
    for matching, models in result.table.items():
        lines.append(MATCHINGS[matching])
        for name, kind in result.kinds.items():
            first = next(iter(models.values())).scores[name]
            cells = [f"{first.constant:.3f} constant"]
            for model, probed in models.items():
                score = probed.scores[name]
                cells.append(f"{model} {score.linear:.3f} linear, {score.mlp:.3f} MLP")
            lines.append(f"{name:>12} {_UNITS[kind]:>8}: {'; '.join(cells)}")
    return lines + result.warnings


def write_probes(
    directory: Path | str, result: ProbeResult, *, title: str, details: Mapping[str, str]
) -> list[Path]:
    """Write `metrics.json` and `report.html`; return their paths.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    record = {"details": dict(details), **result.to_json()}
    train, test = result.num_objects
    details = {**details, "objects": f"{train} to train on, {test} of other episodes to score"}
    text = page(title, details=details, warnings=result.warnings, body=_body(result))
    return write_record(directory, record, text)


def _body(result: ProbeResult) -> list[str]:
    parts = []
    for matching, models in result.table.items():
        head = ["factor", "measure", "constant"]
        head += [f"{escape(name)}, {probe}" for name in models for probe in ("linear", "MLP")]
        rows = []
        for name, kind in result.kinds.items():
            scores = [probed.scores[name] for probed in models.values()]
            values = [v for score in scores for v in (score.linear, score.mlp)]
            best = max(values)
            cells = [f"<b>{v:.3f}</b>" if v == best else f"{v:.3f}" for v in values]
            rows.append([escape(name), _UNITS[kind], f"{scores[0].constant:.3f}", *cells])
        held = "; ".join(
            f"{escape(name)}: {probed.share_matched:.1%} of the objects have a slot, mean IoU "
            f"{probed.overlap:.3f}"
            for name, probed in models.items()
        )
        parts.append(f"<h2>{MATCHINGS[matching].capitalize()}</h2>")
        parts.append(f"<p class='soft'>{held}.</p>{table(head, rows)}")
    parts.append(
        "<p class='soft'>Constant: always the mean or the most frequent class of the training "
        "episodes; it is also the answer for an object without a slot. Linear: ridge regression "
        "or multinomial logistic regression. MLP: one hidden layer. R2 is 0 for the held-out "
        "mean. Random: the same architecture with weights that were never trained.</p>"
    )
    return parts
