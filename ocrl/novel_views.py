"""How well posed slots find objects across cameras and time, and draw views that were not seen.

B batch, T frames, V views, K slots, C H W image, O cameras of an orbit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ocrl import metrics
from ocrl.baselines import kmeans_segmentation
from ocrl.discovery import MODEL
from ocrl.health import describe_health, slot_health
from ocrl.matching import align_over_time
from ocrl.model import SlotModel
from ocrl.nn.orbit import orbit
from ocrl.posed import (
    PosedViews,
    attended,
    check_posed,
    chooser_of,
    nearest_views,
    render_views,
    seen_views,
)
from ocrl.types import BACKGROUND_ID, VOID_ID, Camera, Clip, SlotOutput

Scores = dict[str, dict[str, list[Tensor]]]

ATTENTION = "attention"
"""What the encoder attends to, in the views that it sees: another cut of a model's."""
BASELINES = ("k-means", "mean colour", "nearest view")
"""Methods that learn nothing."""


@dataclass(frozen=True)
class ViewsExample:
    """One clip to look at, on the CPU.

    Attributes:
        video: (T,V,C,H,W) as stored.
        num_seen: how many of the views, the first ones, were seen.
        views: what the slots look like from the same cameras, (1,T,V,...).
        segmentation: (T,V,H,W) ground-truth ids, if there are any.
        orbit: what the slots of the middle frame look like from around, (1,1,O,...), if the cameras
            look at one point.
    """

    video: Tensor
    num_seen: int
    views: PosedViews
    segmentation: Tensor | None
    orbit: PosedViews | None


@dataclass
class ViewsResult:
    """What an evaluation found; every figure is a mean over clips.

    Attributes:
        num_slots: K.
        num_seen: how many views the encoder saw.
        num_views: V.
        num_clips: clips seen.
        num_frames: frames seen in all of them, each of V views.
        segments: method to metric: `fg_ari` of each picture by itself, `fg_ari_time` of each camera
            over time, `fg_ari_cameras` of each moment over cameras, `fg_ari_both` of the whole
            clip; `ari_both` with the background and `mbo_both`; and `fg_ari_held_out` of pictures
            of the cameras that were not seen. Those of `ATTENTION` are of the seen cameras only.
        pictures: method to `psnr` and `ssim` of the cameras that were seen, and with the prefix
            `held_out_` of the others.
        separation: of decoders that know a background: `static_explained`, the share of the
            pixels of no object that it explains, and `objects_lost`, that of the objects' pixels.
        health: see `ocrl.health.slot_health`, of all views as one picture.
        per_clip: the values that `segments` and `pictures` are the means of.
        examples: the first clips, for drawing.
        warnings: what a reader has to know, in words.
    """

    num_slots: int
    num_seen: int
    num_views: int
    num_clips: int
    num_frames: int
    segments: dict[str, dict[str, float]]
    pictures: dict[str, dict[str, float]]
    separation: dict[str, float]
    health: dict[str, float]
    per_clip: dict[str, dict[str, list[float]]]
    examples: list[ViewsExample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def scalars(self) -> dict[str, float]:
        """All means by one name each, for TensorBoard: `fg_ari_both`, `k-means/fg_ari_both`."""
        values = dict(self.separation)
        values.update({f"health/{name}": value for name, value in self.health.items()})
        for scores in (self.segments, self.pictures):
            for method, own in scores.items():
                prefix = "" if method == MODEL else f"{method}/"
                values.update({f"{prefix}{name}": value for name, value in own.items()})
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def to_json(self) -> dict[str, Any]:
        """Everything but the examples, in plain values; NaN becomes null."""
        plain = {name: value for name, value in vars(self).items() if name != "examples"}
        return {name: _plain(value) for name, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate_views(
    model: SlotModel,
    clips: Iterable[Clip],
    *,
    num_seen: int | None = None,
    preset: str = "entities",
    is_aligned: bool | None = None,
    baselines: bool = True,
    device: torch.device | str = "cpu",
    num_examples: int = 2,
    num_orbit: int = 24,
) -> ViewsResult:
    """Show the first cameras of clips to a model, and compare what it draws from all of them.

    The segments of a model are those that its decoder draws; beside them are those that its encoder
    attends to. Beside both stand segments by colour (k-means on the pixels of all cameras of a
    clip, which see everything), and two pictures that learn nothing: the mean colour of the seen
    views of a frame, and of the seen views the one whose camera looks most alike, not counting a
    view itself.

    Args:
        model: with a decoder of rays; set to `eval()` meanwhile.
        clips: posed views with cameras.
        num_seen: views that the encoder sees; as in training if None.
        preset: the ground truth to score, if the clips have it.
        is_aligned: give the slots of each frame the order of those before that they are most like;
            None is to do so where the encoder sees every frame by itself.
        baselines: score them too.
        device: where the model is.
        num_examples: clips kept for drawing.
        num_orbit: O.

    Raises:
        ValueError: if there is no clip, or clips are no posed views or have too few of them.
    """
    num_seen = chooser_of(model).num_seen if num_seen is None else num_seen
    is_aligned = model.sees_single_frames if is_aligned is None else is_aligned
    tally = _Tally(num_seen)
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for clip in clips:
                check_posed(clip, model.decoder, num_seen=num_seen)
                clip = clip.to(device)
                encoded = model.encode(seen_views(clip, num_seen))
                if is_aligned:
                    encoded = _reordered(encoded, align_over_time(encoded.slots))
                tally.add_clip(model, clip, encoded, preset, baselines, num_examples, num_orbit)
    finally:
        model.train(was_training)
    if not tally.num_clips:
        raise ValueError("expected at least one clip to evaluate, got none")
    return tally.result()


def segment_scores(truth: Tensor, segments: Tensor, *, num_seen: int) -> dict[str, Tensor]:
    """The scores (B,) of segments (B,T,V,H,W), see `ViewsResult.segments`; NaN without objects."""
    counts = metrics.overlap_counts(truth.flatten(1, 2), segments.flatten(1, 2))
    counts = counts.unflatten(1, truth.shape[1:3])
    objects = counts[..., 1:, :]
    both = counts.sum((1, 2))
    scores = {
        "fg_ari": _mean(metrics.ari_from_counts(objects)),
        "fg_ari_time": _mean(metrics.ari_from_counts(objects.sum(1))),
        "fg_ari_cameras": _mean(metrics.ari_from_counts(objects.sum(2))),
        "fg_ari_both": metrics.ari_from_counts(objects.sum((1, 2))),
        "ari_both": metrics.ari_from_counts(both),
        "mbo_both": metrics.mbo_from_counts(both),
    }
    if num_seen < truth.shape[2]:
        scores["fg_ari_held_out"] = _mean(metrics.ari_from_counts(objects[:, :, num_seen:]))
    return scores


def picture_scores(recon: Tensor, video: Tensor, *, num_seen: int) -> dict[str, Tensor]:
    """The scores (B,) of pictures (B,T,V,C,H,W), see `ViewsResult.pictures`."""
    measures = {"psnr": metrics.psnr}
    if min(video.shape[-2:]) >= metrics.SSIM_WINDOW:
        measures["ssim"] = metrics.ssim
    scores = {}
    for name, measure in measures.items():
        values = measure(recon, video)
        scores[name] = _mean(values[:, :, :num_seen])
        if num_seen < video.shape[2]:
            scores[f"held_out_{name}"] = _mean(values[:, :, num_seen:])
    return scores


def separation_scores(truth: Tensor, background: Tensor) -> dict[str, Tensor]:
    """How well a background leaves objects to slots: (B,) each, see `ViewsResult.separation`.

    Args:
        truth: (B,T,V,H,W) ids.
        background: (B,T,V,H,W) bool, where it explains more than any slot.
    """
    is_counted = truth != VOID_ID
    is_still = (truth == BACKGROUND_ID) & is_counted
    found = {}
    for name, where in (
        ("static_explained", is_still),
        ("objects_lost", is_counted & ~is_still),
    ):
        number = where.flatten(1).sum(1)
        share = (where & background).flatten(1).sum(1).double() / number.clamp(min=1)
        found[name] = share.where(number > 0, torch.nan)
    return found


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).nanmean(1)


def _reordered(encoded: SlotOutput, order: Tensor) -> SlotOutput:
    """Slots and attention in another order (B,T,K)."""

    def take(values: Tensor) -> Tensor:
        return values.gather(2, order[..., None].expand(-1, -1, -1, values.shape[-1]))

    return SlotOutput(take(encoded.slots), take(encoded.attn))


class _Tally:
    """Gathers scores over batches of clips."""

    def __init__(self, num_seen: int) -> None:
        self.num_seen = num_seen
        self.scores: dict[str, Scores] = {name: {} for name in _GROUPS}
        self.examples: list[ViewsExample] = []
        self.num_clips = self.num_frames = self.num_slots = self.num_views = 0

    def add(self, group: str, method: str, scores: Mapping[str, Tensor]) -> None:
        kept = self.scores[group].setdefault(method, {})
        for name, values in scores.items():
            kept.setdefault(name, []).append(values.double().cpu())

    def add_clip(
        self,
        model: SlotModel,
        clip: Clip,
        encoded: SlotOutput,
        preset: str,
        baselines: bool,
        num_examples: int,
        num_orbit: int,
    ) -> None:
        assert clip.camera is not None
        video = clip.to_float().video
        size, slots = (video.shape[-2], video.shape[-1]), encoded.slots
        views = render_views(model.decoder, slots, clip.camera, size=size)
        truth = clip.segmentation.get(preset)
        if truth is not None:
            seen = attended(model, encoded, size)
            self._add_segments(clip, views, truth, seen, baselines)
        pictures = {MODEL: views.recon}
        if baselines:
            pictures |= _pictures(video, clip.camera, self.num_seen)
        for method, recon in pictures.items():
            scores = picture_scores(recon, video, num_seen=self.num_seen)
            self.add("pictures", method, scores)
        self.add("health", MODEL, slot_health(slots, views.masks.flatten(3, 4)))
        self.num_clips += clip.batch_size
        self.num_frames += clip.batch_size * clip.num_frames
        self.num_slots, self.num_views = slots.shape[2], clip.num_views
        for index in range(min(clip.batch_size, num_examples - len(self.examples))):
            self.examples.append(
                ViewsExample(
                    clip.video[index].cpu(),
                    self.num_seen,
                    _part(views, slice(index, index + 1)),
                    None if truth is None else truth[index].cpu(),
                    _orbit(model, slots, clip.camera, index, size, num_orbit),
                )
            )

    def _add_segments(
        self, clip: Clip, views: PosedViews, truth: Tensor, seen: Tensor, baselines: bool
    ) -> None:
        segments = {MODEL: views.segments, ATTENTION: seen}
        if baselines:
            colours = clip.video.flatten(1, 2)
            ids = kmeans_segmentation(colours, views.masks.shape[2], position_weight=0.0)
            segments[BASELINES[0]] = ids.unflatten(1, clip.video.shape[1:3])
        for method, own in segments.items():
            known = truth[:, :, : own.shape[2]]
            self.add("segments", method, segment_scores(known, own, num_seen=self.num_seen))
        if views.background is not None:
            is_background = views.segments == views.masks.shape[2]
            self.add("separation", MODEL, separation_scores(truth, is_background))

    def result(self) -> ViewsResult:
        found = {
            group: {
                method: {name: torch.cat(values) for name, values in own.items()}
                for method, own in methods.items()
            }
            for group, methods in self.scores.items()
        }
        means = {
            group: {
                method: {name: float(values.nanmean()) for name, values in own.items()}
                for method, own in methods.items()
            }
            for group, methods in found.items()
        }
        per_clip: dict[str, dict[str, list[float]]] = {}
        for group in ("segments", "pictures"):
            for method, own in found[group].items():
                lists = {name: values.tolist() for name, values in own.items()}
                per_clip.setdefault(method, {}).update(lists)
        health = means["health"][MODEL]
        return ViewsResult(
            self.num_slots,
            self.num_seen,
            self.num_views,
            self.num_clips,
            self.num_frames,
            means["segments"],
            means["pictures"],
            means["separation"].get(MODEL, {}),
            health,
            per_clip,
            self.examples,
            describe_health(health, num_slots=self.num_slots),
        )


_GROUPS = ("segments", "pictures", "separation", "health")


def _pictures(video: Tensor, camera: Camera, num_seen: int) -> dict[str, Tensor]:
    """Pictures (B,T,V,C,H,W) that learn nothing."""
    colour = video[:, :, :num_seen].mean((2, 4, 5), keepdim=True)
    nearest = nearest_views(camera, num_seen)
    place = nearest[..., None, None, None].expand(-1, -1, -1, *video.shape[3:])
    pictures = (colour.expand_as(video), video.gather(2, place))
    return dict(zip(BASELINES[1:], pictures, strict=True))


def _orbit(
    model: SlotModel,
    slots: Tensor,
    camera: Camera,
    index: int,
    size: tuple[int, int],
    num_orbit: int,
) -> PosedViews | None:
    """The middle frame of one of the clips from around."""
    here, middle = slice(index, index + 1), slots.shape[1] // 2
    frame = camera.map(lambda value: value[here, middle : middle + 1])
    poses = orbit(frame.extrinsics, num_cameras=num_orbit)
    if poses is None:
        return None
    intrinsics = frame.intrinsics[:, :, :1].expand(-1, -1, num_orbit, -1, -1)
    around = Camera(intrinsics, poses[None, None])
    slots = slots[here, middle : middle + 1]
    return _part(render_views(model.decoder, slots, around, size=size), slice(None))


def _part(views: PosedViews, rows: slice) -> PosedViews:
    background = None if views.background is None else views.background[rows].cpu()
    return replace(
        views, recon=views.recon[rows].cpu(), masks=views.masks[rows].cpu(), background=background
    )
