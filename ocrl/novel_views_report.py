"""One HTML file that shows posed slots: scores, views seen and not seen, an orbit of each slot.

T frames, V views, K slots, C H W image, O cameras of an orbit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ocrl.colours import colour_objects, slot_colours
from ocrl.discovery import MODEL
from ocrl.lettering import captioned
from ocrl.novel_views import ViewsExample, ViewsResult
from ocrl.page import hint, meanings, movie, number, page, table, write_record
from ocrl.visualize import enlarge, grid, overlay, slot_pictures, to_uint8, write_mp4

SEGMENTS = {
    "fg_ari": ("FG-ARI", "Pixels of objects, each picture of each camera by itself."),
    "fg_ari_time": ("over time", "FG-ARI of each camera, all frames as one picture."),
    "fg_ari_cameras": ("over cameras", "FG-ARI of each moment, all cameras as one picture."),
    "fg_ari_both": ("over both", "FG-ARI of all cameras and frames of a clip as one picture."),
    "fg_ari_held_out": ("held out", "FG-ARI of pictures of cameras that were not seen."),
    "ari_both": ("ARI", "As FG-ARI over both, with the background's pixels counted."),
    "mbo_both": ("mBO", "Best overlap (IoU) of each object with a segment, over both."),
}
PICTURES = {
    "psnr": ("PSNR, seen", "dB, of the cameras that the encoder saw."),
    "held_out_psnr": ("PSNR, held out", "dB, of the cameras that it did not see."),
    "ssim": ("SSIM, seen", "Structural similarity, of the cameras that the encoder saw."),
    "held_out_ssim": ("SSIM, held out", "Structural similarity, of the others."),
}
_SEPARATION = {
    "static_explained": "of the pixels of no object are explained by what has no slot",
    "objects_lost": "of the pixels of objects are (fewer are better)",
}
_SMALLEST_PICTURE = 96


def write_views(
    directory: Path | str,
    result: ViewsResult,
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float = 8.0,
    training: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write `metrics.json`, `report.html` and, with examples, `views.mp4` and `orbit.mp4`.

    Args:
        directory: where to; it is made if it is not there.
        result: what `evaluate_views` found.
        title: the heading of the report.
        details: what was evaluated: lines of name and value.
        frames_per_second: of the moving pictures.
        training: what it cost, such as `steps` and `minutes`, to stand in the record.

    Returns:
        The paths written.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    record = {"details": dict(details), "training": dict(training or {}), **result.to_json()}
    measured = {
        "measured on": f"{result.num_clips} clips, {result.num_frames} frames of "
        f"{result.num_views} cameras, of which the encoder saw {result.num_seen}",
        "slots": str(result.num_slots),
    }
    body = [
        *_table("Objects across cameras and time", SEGMENTS, result.segments),
        *_table("Pictures", PICTURES, result.pictures),
        *_separation(result),
        *_examples(result, frames_per_second),
        *_explanation(result),
    ]
    text = page(title, details={**details, **measured}, warnings=result.warnings, body=body)
    written = write_record(directory, record, text)
    movies = {"views.mp4": [views_movie(example) for example in result.examples]}
    movies["orbit.mp4"] = [
        movie for example in result.examples if (movie := orbit_movie(example)) is not None
    ]
    for name, videos in movies.items():
        if videos:
            written.append(Path(directory) / name)
            video = torch.cat([captioned(video, names) for names, video in videos])
            write_mp4(written[-1], video, frames_per_second=frames_per_second)
    return written


def summary(result: ViewsResult) -> list[str]:
    """What was found, in lines for a terminal."""
    lines = []
    for names, scores in ((SEGMENTS, result.segments), (PICTURES, result.pictures)):
        for method, own in scores.items():
            shown = [f"{names[name][0]} {own[name]:.3f}" for name in names if name in own]
            lines.append(f"{method:>12}: {', '.join(shown)}")
    for name, value in result.separation.items():
        lines.append(f"{value:>12.1%} {_SEPARATION[name]}")
    return lines + result.warnings


def views_movie(example: ViewsExample) -> tuple[list[str], Tensor]:
    """A clip from all cameras: their names, and a video (T,3,H',W') with a column for each.

    Under each other are the frame, the truth if there is one, what was drawn and the slots.
    """
    views, truth = example.views, example.segmentation
    ids, colours = views.segments[0], _colours(example)
    scale = max(1, math.ceil(_SMALLEST_PICTURE / example.video.shape[-2]))
    frames = []
    for t, video in enumerate(example.video):
        rows = [enlarge(to_uint8(video), scale)]
        if truth is not None:
            rows.append(enlarge(_truth(truth, t), scale))
        recon = to_uint8(views.recon[0, t])
        rows.append(enlarge(recon, scale))
        rows.append(overlay(recon, ids[t], colours=colours, scale=scale))
        frames.append(grid(rows))
    num_seen = example.num_seen
    names = [
        f"camera {view + 1}, {'seen' if view < num_seen else 'held out'}"
        for view in range(example.video.shape[1])
    ]
    return names, torch.stack(frames)


def _colours(example: ViewsExample) -> Tensor:
    """Of the slots, of all that draws something, in all cameras and around."""
    drawn = [example.views, *([] if example.orbit is None else [example.orbit])]
    truth = example.segmentation
    return slot_colours(
        example.views.segments[0].flatten(0, 1),
        None if truth is None else truth.flatten(0, 1),
        num_slots=1 + max(int(one.segments.max()) for one in drawn),
    )


def _truth(truth: Tensor, t: int) -> Tensor:
    """Colours (V,3,H,W) of one moment of ids (T,V,H,W); an object has one colour in a clip."""
    return colour_objects(truth.flatten(0, 1)).unflatten(0, truth.shape[:2])[t]


def orbit_movie(example: ViewsExample) -> tuple[list[str], Tensor] | None:
    """One moment from around: names, and a video (O,3,H,W') of everything, then of each slot."""
    if example.orbit is None:
        return None
    recon, shares = example.orbit.recon[0, 0], example.orbit.shares[0, 0].transpose(0, 1)
    scale = max(1, math.ceil(_SMALLEST_PICTURE / recon.shape[-2]))
    columns = [
        enlarge(to_uint8(recon), scale),
        overlay(recon, example.orbit.segments[0, 0], colours=_colours(example), scale=scale),
        *enlarge(slot_pictures(recon, shares), scale),
    ]
    num_slots = example.orbit.masks.shape[2]
    names = ["all", "slots", *(f"slot {index + 1}" for index in range(num_slots))]
    if example.orbit.background is not None:
        names.append("no slot")
    frames = [grid([torch.stack(row)]) for row in zip(*columns, strict=True)]
    return names, torch.stack(frames)


def _table(
    heading: str,
    names: Mapping[str, tuple[str, str]],
    scores: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:
    if not scores:
        return
    shown = [name for name in names if any(name in own for own in scores.values())]
    head = [hint(*names[name]) for name in shown]
    best = {
        name: max((own.get(name, -math.inf) for own in scores.values()), default=-math.inf)
        for name in shown
    }
    rows = []
    for method, own in scores.items():
        values = [own.get(name, math.nan) for name in shown]
        cells = [
            f"<b>{number(value)}</b>" if value == best[name] else number(value)
            for name, value in zip(shown, values, strict=True)
        ]
        rows.append([escape(method), *cells])
    yield f"<h2>{escape(heading)}</h2>"
    yield table(["", *head], rows)


def _separation(result: ViewsResult) -> Iterator[str]:
    if not result.separation:
        return
    yield "<h2>What has no slot</h2><div class='card'>"
    for name, value in result.separation.items():
        share = f"{value:.1%}" if math.isfinite(value) else "&ndash;"
        yield f"<p><b>{share}</b> {_SEPARATION[name]}.</p>"
    yield "</div>"


def _examples(result: ViewsResult, frames_per_second: float) -> Iterator[str]:
    for index, example in enumerate(result.examples):
        yield f"<h2>Clip {index + 1}</h2>"
        under = "frame, truth, what was drawn, its slots"
        if example.segmentation is None:
            under = "frame, what was drawn, its slots"
        yield from _movie(f"From all cameras: {under}", *views_movie(example), frames_per_second)
        around = orbit_movie(example)
        if around is not None:
            heading = "The middle frame from around, and what each slot gives to it"
            yield from _movie(heading, *around, frames_per_second)


def _movie(
    heading: str, names: list[str], video: Tensor, frames_per_second: float
) -> Iterator[str]:
    moving = movie(names, video, alt=heading, frames_per_second=frames_per_second, column_width=150)
    yield f"<div class='card wide'><h3>{escape(heading)}</h3>{moving}</div>"


def _explanation(result: ViewsResult) -> Iterator[str]:
    known = [
        names[key]
        for names, scores in ((SEGMENTS, result.segments), (PICTURES, result.pictures))
        for key in names
        if key in scores.get(MODEL, {})
    ]
    yield (
        "<h2>What the figures mean</h2><div class='card'><p>Each pixel goes to the slot that gives "
        "most to it, or to what has no slot. A segment must stay on its object across whatever is "
        "one picture. <b>attention</b> is what the encoder looks at, in the cameras that it sees, "
        "and not what the decoder makes of it. <b>k-means</b> clusters the colours of all cameras "
        "of a clip, also of those that the encoder did not see. <b>mean colour</b> is that of the "
        "seen views of a frame; <b>nearest view</b> is the seen one whose camera is turned the "
        f"least against the view's, not the view itself.</p>{meanings(known)}</div>"
    )
