"""Which codes of slots say which factor of objects, measured and written down.

G code groups, C codes of the largest group, F factors, V values, P objects in frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocrl.data.clips import Split
from ocrl.discovery import DiscoveryModel, MaskSource
from ocrl.health import code_use
from ocrl.inspection.causal_edits import DrawnClip, EditScores, Judge, draw_clips, edit_codes
from ocrl.inspection.disentanglement import (
    Disentanglement,
    code_factor_counts,
    discretise,
    disentanglement,
    normalised_mutual_information,
    purity,
    shuffled_information,
    value_given_code,
)
from ocrl.inspection.edit import coded
from ocrl.inspection.object_slots import gather
from ocrl.inspection.probes import ProbeSettings
from ocrl.page import page, table, write_record
from ocrl.types import Clip


@dataclass
class CodeReport:
    """What was found.

    Attributes:
        sizes: codes of each group, G of them.
        values: factor to the names of its values.
        counts: (G,F,C,V) codes of slots and values of their objects, on the training episodes.
        information: (G,F) normalised mutual information.
        shuffled: (G,F) the same with shuffled factors: what chance gives.
        purity: (G,F) see `ocrl.inspection.disentanglement.purity`.
        scores: of `information`.
        perplexity: (G,) of the codes of objects.
        num_used: (G,) different codes of objects.
        judge_accuracy: factor to how often the judge of edits is right on held-out drawings.
        edits: on held-out episodes.
        num_objects: objects in frames with a slot, of the training and the held-out episodes.
        warnings: what a reader has to know, in words.
    """

    sizes: tuple[int, ...]
    values: dict[str, tuple[str, ...]]
    counts: Tensor
    information: Tensor
    shuffled: Tensor
    purity: Tensor
    scores: Disentanglement
    perplexity: Tensor
    num_used: Tensor
    judge_accuracy: dict[str, float]
    edits: EditScores
    num_objects: tuple[int, int]
    warnings: list[str] = field(default_factory=list)

    @property
    def intended(self) -> list[str]:
        """For each group the factor it tells most about, of those that the judge sees."""
        return [list(self.values)[k] for k in self.edits.intended.tolist()]

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values; NaN becomes null."""
        content = {
            "sizes": list(self.sizes),
            "values": {name: list(values) for name, values in self.values.items()},
            "counts": self.counts,
            "information": self.information,
            "shuffled": self.shuffled,
            "purity": self.purity,
            "scores": self.scores._asdict(),
            "perplexity": self.perplexity,
            "num_used": self.num_used,
            "judge_accuracy": self.judge_accuracy,
            "intended": self.intended,
            "edits": {k: v for k, v in vars(self.edits).items() if k not in ("names", "intended")},
            "num_objects": dict(zip(("train", "holdout"), self.num_objects, strict=True)),
            "warnings": self.warnings,
        }
        plain: dict[str, Any] = _plain(content)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure_codes(
    model: DiscoveryModel,
    read: Callable[[Split], Iterable[Clip]],
    *,
    attribute_names: Sequence[str],
    settings: ProbeSettings,
    window: int,
    num_bins: int,
    mask_source: MaskSource = "decoder",
    device: torch.device | str = "cpu",
) -> CodeReport:
    """Count codes and factors on the training episodes; edit codes on the held-out ones.

    Args:
        model: in `eval()`, with codes and a decoder that makes pictures.
        read: "train" or "holdout" to its clips, with object tables.
        attribute_names: names of the columns of `attributes` in the object tables.
        settings: of the judge's perceptrons, and the seed of all that is drawn.
        window: side in pixels of what the judge sees of a picture.
        num_bins: of position, per axis.
        mask_source: masks that slots and objects are matched by.
        device: where the model is.

    Raises:
        ValueError: if the model has no codes or draws no pictures, the clips have no objects, or
            no factor varies.
    """
    sizes = coded(model.encoder).code_sizes
    train, test = (
        draw_clips(
            model,
            read(split),
            attribute_names=attribute_names,
            mask_source=mask_source,
            device=device,
        )
        for split in ("train", "holdout")
    )
    own, held = (_rows(clips) for clips in (train, test))
    joined = {name: torch.cat([own.factors[name], held.factors[name]]) for name in own.factors}
    factors = discretise(joined, num_bins=num_bins)
    if not factors:
        raise ValueError(f"expected a factor that varies, got none among {sorted(joined)}")
    names = list(factors)
    assert own.codes is not None
    values = torch.stack([factors[name].values[: len(own.slots)] for name in names], dim=1)
    limits = {
        "num_codes": max(sizes),
        "num_values": max(len(factor.names) for factor in factors.values()),
    }
    counts = code_factor_counts(own.codes, values, **limits)
    information = normalised_mutual_information(counts)
    judge = Judge(train, test, factors=factors, side=window, settings=settings)
    edits = edit_codes(
        model,
        test,
        judge=judge,
        names=names,
        information=information,
        in_use=[group.unique() for group in own.codes.unbind(1)],
        num_bins=num_bins,
        seed=settings.seed,
        device=device,
    )
    perplexity, num_used = code_use(own.codes)
    report = CodeReport(
        sizes,
        {name: factors[name].names for name in names},
        counts,
        information,
        shuffled_information(own.codes, values, **limits, seed=settings.seed),
        purity(counts),
        disentanglement(information),
        perplexity,
        num_used,
        judge.accuracy,
        edits,
        (len(own.slots), len(held.slots)),
    )
    report.warnings = list(_warnings(report, judge))
    return report


def _rows(clips: Sequence[DrawnClip]) -> Any:
    return gather([clip.labelled for clip in clips], [clip.match for clip in clips]).matched()


def _warnings(report: CodeReport, judge: Judge) -> Iterable[str]:
    for name, is_seen in zip(report.values, report.edits.is_seen.tolist(), strict=True):
        if not is_seen:
            yield (
                f"The judge of edits is right about {name} in {judge.accuracy[name]:.0%} of the "
                f"drawings only (always the most frequent value: {judge.common[name]:.0%}): what "
                f"edits do to {name} is not counted."
            )
    for group, number in enumerate(report.num_used.tolist()):
        if number < 2:
            yield f"All objects have one code in group {group}: it says nothing."


def summary(report: CodeReport) -> list[str]:
    """What was found, in lines for a terminal."""
    scores = report.scores
    lines = [
        f"modularity {scores.mean_modularity:.3f}, completeness {scores.mean_completeness:.3f}, "
        f"gap {scores.gap:.3f}"
    ]
    for group, name in enumerate(report.intended):
        best = report.edits.intended[group]
        lines.append(
            f"group {group}: tells most about {name} (NMI {report.information[group, best]:.3f}, "
            f"by chance {report.shuffled[group, best]:.3f}); of {report.edits.num_edits[group]} "
            f"edits {report.edits.only_intended[group]:.1%} change only that, and of those that "
            f"change anything {report.edits.one_factor[group]:.1%} one factor; outside the object "
            f"{report.edits.outside[group]:.2%} of the pixels change"
        )
    return lines + report.warnings


def write_code_report(
    directory: Path | str, report: CodeReport, *, title: str, details: Mapping[str, str]
) -> list[Path]:
    """Write `metrics.json` and `report.html`; return their paths.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    record = {"details": dict(details), **report.to_json()}
    train, test = report.num_objects
    details = {**details, "objects": f"{train} counted, {test} of other episodes to edit"}
    text = page(title, details=details, warnings=report.warnings, body=_body(report))
    return write_record(directory, record, text)


def _cell(value: float, *, strong: bool = False) -> str:
    """A number over a shade of itself."""
    if not math.isfinite(value):
        return "&ndash;"
    shade = f"background:color-mix(in srgb,var(--model) {45 * min(max(value, 0), 1):.0f}%,#0000)"
    text = f"<b>{value:.3f}</b>" if strong else f"{value:.3f}"
    return f"<span style='display:block;margin:-6px -10px;padding:6px 10px;{shade}'>{text}</span>"


def _matrix(values: Tensor, names: Sequence[str], intended: Sequence[str] = ()) -> str:
    """A table (G,F) of numbers in [0,1]."""
    rows = [
        [
            f"group {group}",
            *(
                _cell(value, strong=bool(intended) and intended[group] == name)
                for name, value in zip(names, row, strict=True)
            ),
        ]
        for group, row in enumerate(values.tolist())
    ]
    return table(["", *map(escape, names)], rows)


def _body(report: CodeReport) -> list[str]:
    names = list(report.values)
    scores, edits = report.scores, report.edits
    cards = {
        "modularity": (scores.mean_modularity, "1: every group tells about one factor"),
        "completeness": (scores.mean_completeness, "1: one group tells all about a factor"),
        "gap": (scores.gap, "best group of a factor minus the second best"),
        "clean edits": (
            float(edits.only_intended.nanmean()),
            "share of edits that change the intended factor alone",
        ),
    }
    body = [
        "<div class='cards'>"
        + "".join(
            f"<div class='card'><h3>{name}</h3><div class='number'>{value:.3f}</div>"
            f"<p class='soft'>{meaning}</p></div>"
            for name, (value, meaning) in cards.items()
        )
        + "</div>",
        "<h2>What each group tells about each factor</h2>",
        "<p class='soft'>Mutual information of code and factor over the entropy of the factor. "
        "Bold: the factor that a group tells most about.</p>",
        _matrix(report.information, names, report.intended),
        "<p class='soft'>By chance, with the factors shuffled over the objects:</p>",
        _matrix(report.shuffled, names),
        "<h2>What editing a code does</h2>",
        "<p class='soft'>Share of edits after which a factor is judged to differ. One object of "
        "each held-out frame gets another of the codes in use; the slots are drawn before and "
        "after; a perceptron that sees pictures only judges the factors, the mask's place the "
        "position. What it errs in more than half as often as a guess does is not counted.</p>",
        _matrix(edits.changed, names, report.intended),
        _edit_table(report),
        "<h2>Use</h2>",
        table(
            ["", "codes", "in use", "perplexity", "modularity"],
            [
                [f"group {g}", str(size), f"{int(used)}", f"{perplexity:.2f}", _cell(own)]
                for g, (size, used, perplexity, own) in enumerate(
                    zip(
                        report.sizes,
                        report.num_used.tolist(),
                        report.perplexity.tolist(),
                        scores.modularity.tolist(),
                        strict=True,
                    )
                )
            ],
        ),
        "<h2>p(value | code)</h2>",
    ]
    body.extend(_value_tables(report))
    return body


def _edit_table(report: CodeReport) -> str:
    edits = report.edits
    rows = []
    for group, name in enumerate(report.intended):
        accuracy = report.judge_accuracy.get(name, math.nan)
        rows.append(
            [
                f"group {group}",
                escape(name),
                str(int(edits.num_edits[group])),
                _cell(float(edits.only_intended[group]), strong=True),
                _cell(float(edits.one_factor[group])),
                _cell(float(edits.inside[group])),
                _cell(float(edits.outside[group])),
                f"{accuracy:.3f}" if math.isfinite(accuracy) else "by mask",
            ]
        )
    head = ["", "intended factor", "edits", "only that changes", "one factor, of all changes"]
    pixels = ["pixels changed inside", "pixels changed outside"]
    return table([*head, *pixels, "judge's accuracy"], rows)


def _value_tables(report: CodeReport) -> Iterable[str]:
    """For each group the table of the factor that it tells most about."""
    names = list(report.values)
    for group, name in enumerate(report.intended):
        index, values = names.index(name), report.values[name]
        counts = report.counts[group, index, : report.sizes[group], : len(values)]
        shares = value_given_code(counts)
        used = torch.nonzero(counts.sum(1)).flatten().tolist()
        rows = [
            [f"code {code}", str(int(counts[code].sum())), *map(_cell, shares[code].tolist())]
            for code in used
        ]
        head = ["", "objects", *(escape(value) for value in values)]
        yield (
            f"<details{' open' if group == 0 else ''}><summary>group {group}: {escape(name)}, "
            f"purity {float(report.purity[group, index]):.3f}</summary>{table(head, rows)}"
            "</details>"
        )
