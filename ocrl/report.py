"""One HTML file that shows an evaluation: no link leads out of it.

T frames, K slots, C H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ocrl.charts import dot_chart, line_chart
from ocrl.colours import colour_objects, slot_colours
from ocrl.discovery import HEADLINES, MODEL, DiscoveryResult, Example
from ocrl.lettering import Table, captioned, labelled
from ocrl.page import image, movie, number, page, write_bytes, write_record, write_text
from ocrl.types import VOID_ID
from ocrl.visualize import (
    enlarge,
    overlay,
    slot_pictures,
    spread,
    strip,
    to_png,
    to_uint8,
    write_mp4,
)

_METRICS = {
    "video_fg_ari": (
        "video FG-ARI",
        "Pixels of objects, whole clip: are those of one object together and those of two apart?",
    ),
    "video_mbo_i": (
        "video mBO",
        "Best overlap (IoU) of each object with a segment, whole clip, averaged over objects.",
    ),
    "video_miou": ("video mIoU", "As mBO, but no segment may serve two objects."),
    "video_ari": ("video ARI", "As FG-ARI, with the background's pixels counted."),
    "video_mbo_c": ("video mBO-c", "As mBO, with all objects of a class as one."),
    "video_identity_switches": (
        "switches",
        "How often an object's best segment changes in a clip, per object. Lower is better.",
    ),
    "fg_ari": ("FG-ARI", "As video FG-ARI, each frame on its own."),
    "mbo_i": ("mBO", "As video mBO, each frame on its own."),
    "miou": ("mIoU", "As video mIoU, each frame on its own."),
    "ari": ("ARI", "As video ARI, each frame on its own."),
    "mbo_c": ("mBO-c", "As video mBO-c, each frame on its own."),
}
_LOWER_IS_BETTER = {"video_identity_switches"}
_CURVES = ("fg_ari", "mbo_i")
_HEALTH = {
    "slots_in_use": "slots that win at least 1 % of a frame",
    "largest_share": "share of a frame won by its largest slot",
    "dead_slots": "slots that win no pixel in a whole clip",
    "slot_similarity": "mean cosine of two slots of a frame",
    "slots_left": "slots of a frame that are left after merging",
    "temporal_drift": "mean change of a slot from frame to frame (1 - cosine)",
}
_NUM_SHOWN = 8
_LEAST_TILE = 128
_SLOTS_NOTE = (
    "slots: a colour for each slot; the slot that owns most of the clip is left without colour."
)
_TRUTH_NOTE = (
    "slots: a slot has the colour of the true object that it covers best, a colour of its own "
    "if it covers none; the slot of the background is left without colour."
)
_VOID_NOTE = " truth: grey is not scored."


def write_results(
    directory: Path | str,
    result: DiscoveryResult,
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float = 8.0,
) -> list[Path]:
    """Write `metrics.json`, `report.html`, and if there are examples `overlay.mp4`, `examples.png`.

    Args:
        directory: where to; it is made if it is not there.
        result: what `evaluate_discovery` found.
        title: the heading of the report.
        details: what was evaluated, see `write_report`.
        frames_per_second: of the moving pictures.

    Returns:
        The paths written.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    record = {"details": dict(details), **result.to_json()}
    text = render_report(result, title=title, details=details, frames_per_second=frames_per_second)
    written = write_record(directory, record, text)
    if result.examples:
        written.append(Path(directory) / "overlay.mp4")
        write_mp4(written[-1], overlay_video(result), frames_per_second=frames_per_second)
        written.append(Path(directory) / "examples.png")
        write_bytes(written[-1], to_png(example_picture(result)))
    return written


def summary(result: DiscoveryResult) -> list[str]:
    """What was found, in lines for a terminal."""
    lines = []
    for preset in result.presets:
        for method, presets in result.table.items():
            scores = ", ".join(
                f"{_METRICS[name][0]} {presets[preset][name]:.3f}"
                for name in (*HEADLINES, *_CURVES)
            )
            lines.append(f"{preset:>9} {method:>8}: {scores}")
    lines.extend(f"{name.upper():>18}: {value:.3f}" for name, value in result.pictures.items())
    return lines + result.warnings


def overlay_video(result: DiscoveryResult) -> Tensor:
    """All examples one after the other, with captions: (T,3,H,W) uint8."""
    return torch.cat(
        [captioned(video, names) for names, video in map(example_movie, result.examples)]
    )


def example_picture(result: DiscoveryResult, *, num_columns: int = 6) -> Tensor:
    """Frames, truth and slots of the first two examples, spread over time: (3,H',W') uint8."""
    tables = []
    for index, example in enumerate(result.examples[:2]):
        shown = spread(len(example.video), num_columns)
        scale = max(1, round(_LEAST_TILE / example.video.shape[-2]))
        rows = {"frame": enlarge(to_uint8(example.video), scale)[shown]}
        if example.segmentation:
            truth = list(example.segmentation.values())[-1]
            rows["truth"] = enlarge(colour_objects(truth), scale)[shown]
        ids, colours = example.predictions[MODEL], _colours(example, MODEL)
        rows["slots"] = overlay(example.video, ids, colours=colours, scale=scale)[shown]
        columns = [f"frame {t}" for t in shown]
        tables.append(Table(f"clip {index + 1}", columns, rows))
    return labelled(tables, note=_note(result.examples[:2]))


def _note(examples: Sequence[Example]) -> str:
    """What the colours of examples mean."""
    truths = [
        list(example.segmentation.values())[-1] for example in examples if example.segmentation
    ]
    has_void = any((truth == VOID_ID).any() for truth in truths)
    return (_TRUTH_NOTE if truths else _SLOTS_NOTE) + (_VOID_NOTE if has_void else "")


def write_report(
    path: Path | str,
    result: DiscoveryResult,
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float = 8.0,
) -> None:
    """Write the report; the file appears when it is whole.

    Args:
        path: of the HTML file.
        result: what `evaluate_discovery` found.
        title: the heading.
        details: what was evaluated: lines of name and value under the heading.
        frames_per_second: of the moving pictures.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
    """
    write_text(
        path,
        render_report(result, title=title, details=details, frames_per_second=frames_per_second),
    )


def render_report(
    result: DiscoveryResult,
    *,
    title: str,
    details: Mapping[str, str],
    frames_per_second: float = 8.0,
) -> str:
    """The report as text, see `write_report`."""
    body = [
        *_verdict(result),
        *_headlines(result),
        *_table(result),
        *_examples(result, frames_per_second),
        *_plots(result),
        *_health(result),
        *_explanation(result),
    ]
    details = {**details, **_measured(result)}
    return page(title, details=details, warnings=result.warnings, body=body)


def _measured(result: DiscoveryResult) -> dict[str, str]:
    source = {"decoder": "the decoder's masks", "attn": "the encoder's attention"}
    return {
        "measured on": f"{result.num_clips} clips, {result.num_frames} frames",
        "masks": f"{source[result.mask_source]}, {result.num_slots} slots",
        "protocol": result.protocol.name,
    }


def _key(method: str) -> str:
    return f"<span class='key' style='background:var(--{method})'></span>{escape(method)}"


def _verdict(result: DiscoveryResult) -> Iterator[str]:
    """Whether objects were found, in one sentence for each ground truth."""
    for preset in result.presets:
        others = [presets[preset] for method, presets in result.table.items() if method != MODEL]
        own = result.table[MODEL][preset]
        won = [_METRICS[m][0] for m in HEADLINES if all(own[m] > other[m] for other in others)]
        if not others or not all(math.isfinite(own[name]) for name in HEADLINES):
            continue
        if len(won) == len(HEADLINES):
            words, colour = f"beats both baselines in {' and '.join(won)}", "good"
        elif won:
            words, colour = f"beats both baselines in {won[0]} only", "bad"
        else:
            words, colour = "beats the baselines in neither video FG-ARI nor video mBO", "bad"
        yield f"<p><b>{escape(preset)}</b>: the model <b class='{colour}'>{words}</b>.</p>"


def _headlines(result: DiscoveryResult) -> Iterator[str]:
    cards = []
    for preset in result.presets:
        for name in HEADLINES:
            own = result.table[MODEL][preset][name]
            others = {m: p[preset][name] for m, p in result.table.items() if m != MODEL}
            against = "no baseline beside it"
            if others:
                best = max(others, key=lambda method: others[method])
                won = own > others[best]
                against = (
                    f"<span class='{'good' if won else 'bad'}'>{own - others[best]:+.3f}</span> "
                    f"against the better baseline, {escape(best)} ({number(others[best])})"
                )
            cards.append(
                f"<div class='card'><h3>{escape(preset)}: {_METRICS[name][0]}</h3>"
                f"<div class='number'>{number(own)}</div><p class='soft'>{against}</p></div>"
            )
    for name, value in result.pictures.items():
        unit = " dB" if name == "psnr" else ""
        cards.append(
            f"<div class='card'><h3>{name.upper()}</h3><div class='number'>"
            f"{number(value, 1 if unit else 3)}{unit}</div>"
            "<p class='soft'>reconstruction against the frame</p></div>"
        )
    if cards:
        yield f"<div class='cards'>{''.join(cards)}</div>"


def _table(result: DiscoveryResult) -> Iterator[str]:
    if not result.presets:
        return
    known = {name for preset in result.table[MODEL].values() for name in preset}
    columns = [name for name in _METRICS if name in known]
    head = "".join(
        f"<th title='{escape(_METRICS[name][1], quote=True)}'>{_METRICS[name][0]}</th>"
        for name in columns
    )
    rows = []
    for preset in result.presets:
        rows.append(
            f"<tr class='group'><td colspan='{len(columns) + 1}'>{escape(preset)}</td></tr>"
        )
        scores = {method: presets[preset] for method, presets in result.table.items()}
        for method, own in scores.items():
            cells = []
            for name in columns:
                pick = min if name in _LOWER_IS_BETTER else max
                values = [s[name] for s in scores.values() if math.isfinite(s.get(name, math.nan))]
                best = bool(values) and own.get(name) == pick(values)
                text = number(own.get(name, math.nan))
                cells.append(f"<td class='best'>{text}</td>" if best else f"<td>{text}</td>")
            rows.append(f"<tr><td>{_key(method)}</td>{''.join(cells)}</tr>")
    yield "<h2>Scores</h2>"
    yield (
        f"<div class='card wide'><table><thead><tr><th>method</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    yield (
        "<p class='soft'>The best of each column is bold. A model has found objects when it beats "
        "the grid and k-means in both FG-ARI and mBO: FG-ARI alone can be won by position.</p>"
    )


def _examples(result: DiscoveryResult, frames_per_second: float) -> Iterator[str]:
    if result.examples:
        yield f"<h2>Clips</h2><p class='soft'>{escape(_note(result.examples))}</p>"
    for index, example in enumerate(result.examples):
        names, video = example_movie(example)
        moving = movie(names, video, alt="the clip in motion", frames_per_second=frames_per_second)
        rows, slots = _strips(example)
        yield (
            f"<div class='card wide'><h3>Clip {index + 1}</h3>"
            f"{moving}<div class='strips'>{''.join(rows)}</div>"
            f"<details{' open' if index == 0 else ''}><summary>What each slot holds</summary>"
            f"<div class='strips'>{''.join(slots)}</div></details></div>"
        )


def example_movie(example: Example) -> tuple[list[str], Tensor]:
    """A clip beside all its segmentations: their names, and a video (T,3,H,W) of the columns."""
    scale = max(1, 192 // example.video.shape[-2])
    columns = {"frame": enlarge(to_uint8(example.video), scale)}
    for preset, truth in example.segmentation.items():
        columns[f"truth: {preset}"] = enlarge(colour_objects(truth), scale)
    for method, ids in example.predictions.items():
        colours = _colours(example, method)
        columns[method] = overlay(example.video, ids, colours=colours, scale=scale)
    frames = zip(*columns.values(), strict=True)
    return list(columns), torch.stack([strip(torch.stack(frame), gap=4) for frame in frames])


def _colours(example: Example, method: str) -> Tensor:
    """Colours of the segments of a method, those of the most detailed truth, if there is one."""
    truth = list(example.segmentation.values())
    return slot_colours(
        example.predictions[method],
        truth[-1] if truth else None,
        num_slots=example.masks.shape[1] if method == MODEL else None,
    )


def _strips(example: Example) -> tuple[list[str], list[str]]:
    """Rows of frames: what all methods made of the clip, and what each slot holds."""
    shown = spread(len(example.video), _NUM_SHOWN)
    video = to_uint8(example.video)[shown]
    scale = max(1, 128 // video.shape[-2])
    rows = {"frame": video}
    if example.recon is not None:
        rows["reconstruction"] = to_uint8(example.recon)[shown]
    for preset, truth in example.segmentation.items():
        rows[f"truth: {preset}"] = colour_objects(truth)[shown]
    for method, ids in example.predictions.items():
        rows[method] = overlay(video, ids[shown], colours=_colours(example, method), scale=scale)
    masks = example.masks[shown]
    parts = None if example.parts is None else example.parts[shown]
    colours = _colours(example, MODEL).tolist()
    slots = []
    for slot, pictures in enumerate(slot_pictures(video, masks, parts)):
        share = float((masks.argmax(1) == slot).float().mean())
        key = f"<span class='key' style='background:rgb{tuple(colours[slot])}'></span>"
        slots.append(_row(f"{key}slot {slot}<br>{share:.0%}", f"slot {slot}", pictures))
    return [_row(escape(name), name, pictures) for name, pictures in rows.items()], slots


def _row(label: str, name: str, pictures: Tensor) -> str:
    images = "".join(image(to_png(picture), "png", name) for picture in pictures)
    return (
        f"<div class='name'>{label}</div>"
        f"<div class='frames' style='--n:{len(pictures)}'>{images}</div>"
    )


def _plots(result: DiscoveryResult) -> Iterator[str]:
    plots = []
    for preset in result.presets:
        for name in _CURVES:
            curves = {method: presets[preset][name] for method, presets in result.curves.items()}
            heading = f"{preset}: {_METRICS[name][0]} of each frame"
            plots.append(f"<div class='card'><h3>{escape(heading)}</h3>{line_chart(curves)}</div>")
        for name in HEADLINES:
            values = {method: presets[preset][name] for method, presets in result.per_clip.items()}
            heading = f"{preset}: {_METRICS[name][0]} of each clip"
            plots.append(f"<div class='card'><h3>{escape(heading)}</h3>{dot_chart(values)}</div>")
    if plots:
        legend = "".join(f"<span>{_key(method)}</span>" for method in result.table)
        yield "<h2>Over time, and clip by clip</h2>"
        yield f"<p class='legend'>{legend}</p><div class='plots'>{''.join(plots)}</div>"


def _health(result: DiscoveryResult) -> Iterator[str]:
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        f"<td>{number(result.health[name])}</td>"
        f"<td style='text-align:left;white-space:normal' class='soft'>{escape(meaning)}</td></tr>"
        for name, meaning in _HEALTH.items()
        if name in result.health
    )
    yield "<h2>Slot health</h2>"
    yield f"<div class='card wide'><table><tbody>{rows}</tbody></table></div>"


def _explanation(result: DiscoveryResult) -> Iterator[str]:
    if not result.presets:
        yield (
            "<p class='soft'>These clips came without ground truth: nothing is scored against "
            "objects, only the reconstruction and the slots themselves.</p>"
        )
        return
    protocol = result.protocol
    background = "counts as one more object" if protocol.background else "is not an object"
    empty = {
        "skip": "is left out of FG-ARI",
        "one": "counts as an FG-ARI of 1",
    }[protocol.empty]
    size = "the ground truth's own size"
    if protocol.size is not None:
        size = f"{protocol.size[0]} x {protocol.size[1]} pixels"
    yield "<h2>How it was measured</h2>"
    yield (
        f"<p>Protocol <code>{escape(protocol.name)}</code>: masks are brought to {size} "
        "bilinearly and each pixel goes to the slot with the largest mask. Void pixels count "
        f"nowhere. In mBO and mIoU the background {background}; a frame without objects {empty}. "
        "Scores of a whole clip treat it as one picture, so a segment must stay on its object. "
        f"The grid has {result.num_slots} cells; k-means puts the colour and place of each "
        f"clip's pixels into {result.num_slots} clusters. Counted in integers, averaged in "
        "64-bit floats.</p>"
    )
