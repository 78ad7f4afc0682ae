"""What a world model foretold, for the eye: a table, a page, and a moving picture.

H steps, C H' W' frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ocrl.horizon import METHODS, PREDICTION, HorizonResult, Rollout
from ocrl.lettering import Table, captioned, labelled
from ocrl.page import hint, meanings, movie, number, page, table, write_bytes, write_record
from ocrl.visualize import enlarge, overlay, strip, to_png, to_uint8, write_mp4

METRICS = {
    "slot_error": (
        "slot error",
        "mean squared error after matching; lower is better",
    ),
    "psnr": ("PSNR", "of the frame, in dB"),
    "ssim": ("SSIM", "of the frame"),
    "perceptual": ("perceptual", "distance of the frames' features; lower is better"),
    "video_fg_ari": ("video FG-ARI", "of the masks foretold so far"),
    "video_mbo_i": ("video mBO", "of the masks foretold so far"),
    "video_identity_switches": ("switches", "of objects between slots so far; lower is better"),
    "motion_from_rest": (
        "motion from rest",
        "share of the squared ways of objects that rested in the context that masks go with them",
    ),
    "reward_error": ("reward error", "mean absolute error; lower is better"),
    "termination_auc": ("termination AUC", "whether the episode terminates at that very step"),
    "hits@1": ("hits@1", "share of clips whose future is the nearest of all clips"),
    "hits@5": ("hits@5", "the same, among the five nearest"),
    "mrr": ("MRR", "mean reciprocal rank of that"),
}
"""Short names of the figures and what they mean, in the order of a table."""
_SMALLEST_PICTURE = 192
_NOTE = (
    "+n: so many steps after the last frame that the model saw. its masks: a colour for each "
    "slot; the slot that owns most of the clip is left without colour."
)


def write_results(
    directory: Path | str,
    result: HorizonResult,
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float = 8.0,
) -> list[Path]:
    """Write `metrics.json`, `report.html`, and if there are examples `rollout.mp4`, `rollout.png`.

    Args:
        directory: where to; it is made if it is not there.
        result: what `ocrl.horizon.evaluate_horizons` found.
        title: the heading of the report.
        details: what was evaluated: lines of name and value under the heading.
        frames_per_second: of the moving pictures.

    Returns:
        The paths written.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    record = {"details": dict(details), **result.to_json()}
    measured = {
        "measured on": f"{result.num_clips} clips, after {result.num_context} frames of context"
    }
    body = [*_table(result), *_movies(result, frames_per_second), *_explanation(result)]
    text = page(title, details={**details, **measured}, warnings=result.warnings, body=body)
    written = write_record(directory, record, text)
    if result.examples:
        written.append(Path(directory) / "rollout.mp4")
        video = torch.cat(
            [captioned(movie, names) for names, movie in map(rollout_movie, result.examples)]
        )
        write_mp4(written[-1], video, frames_per_second=frames_per_second)
        written.append(Path(directory) / "rollout.png")
        write_bytes(written[-1], to_png(rollout_picture(result)))
    return written


def summary(result: HorizonResult) -> list[str]:
    """What was found, in lines for a terminal."""
    steps = "".join(f"{horizon:>9}" for horizon in result.horizons)
    lines = [f"{'steps ahead':>27}{steps}"]
    for metric, methods in result.table.items():
        for method in METHODS:
            if method in methods:
                cells = "".join(f"{_number(value):>9}" for value in methods[method])
                lines.append(f"{METRICS[metric][0]:>16} {method:>10}{cells}")
    return lines + result.warnings


def rollout_picture(result: HorizonResult) -> Tensor:
    """Each example at the horizons (3,H',W'): what came, what was foretold, its masks."""
    at = [horizon - 1 for horizon in result.horizons]
    columns = [f"+{horizon}" for horizon in result.horizons]
    tables = []
    for index, example in enumerate(result.examples):
        rows = {name: row[at] for name, row in _rows(example).items()}
        tables.append(Table(f"clip {index + 1}", columns, rows))
    return labelled(tables, note=_NOTE)


def rollout_movie(example: Rollout) -> tuple[list[str], Tensor]:
    """A clip as it came beside what was foretold: names, and a video (H,3,...) of the columns."""
    columns = _rows(example)
    frames = zip(*columns.values(), strict=True)
    return list(columns), torch.stack([strip(torch.stack(frame), gap=4) for frame in frames])


def _rows(example: Rollout) -> dict[str, Tensor]:
    """Videos (H,3,...) of what came, what was foretold, if it was drawn, and its masks."""
    scale = max(1, _SMALLEST_PICTURE // example.video.shape[-2])
    truth = to_uint8(example.video)
    rows = {"truth": enlarge(truth, scale)}
    foretold = truth
    if example.recon is not None:
        foretold = to_uint8(example.recon)
        rows["prediction"] = enlarge(foretold, scale)
    rows["its masks"] = overlay(foretold, example.ids, scale=scale)
    return rows


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _table(result: HorizonResult) -> Iterator[str]:
    rows: list[list[str]] = []
    for metric, methods in result.table.items():
        name, meaning = METRICS[metric]
        rows.append([hint(name, meaning)])
        for method in METHODS:
            if method in methods:
                shown = f"<b>{method}</b>" if method == PREDICTION else method
                rows.append([shown, *(number(value) for value in methods[method])])
    yield "<h2>Steps ahead</h2>"
    yield table(["", *map(str, result.horizons)], rows)


def _movies(result: HorizonResult, frames_per_second: float) -> Iterator[str]:
    if result.examples:
        yield "<h2>Clips</h2>"
    for example in result.examples:
        names, video = rollout_movie(example)
        alt = "what came and what was foretold"
        moving = movie(names, video, alt=alt, frames_per_second=frames_per_second)
        yield f"<div class='card wide'>{moving}</div>"


def _explanation(result: HorizonResult) -> Iterator[str]:
    yield (
        "<h2>What the figures mean</h2><div class='card'><p><b>prediction</b> is the world model, "
        "which saw the context and the actions. <b>copy</b> says that the last frame of the "
        "context stays: its true frame, its slots, the mean reward. <b>encoder</b> sees every "
        "frame, so that its slots, what the decoder makes of them, and the outcomes read from "
        "them are what a perfect dynamics would reach.</p>"
        f"{meanings(METRICS[metric] for metric in result.table)}</div>"
    )
