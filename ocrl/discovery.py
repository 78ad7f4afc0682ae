"""How well a model finds objects in clips, beside segmenters that learn nothing.

B batch, T frames, K slots, D slot size, N tokens, C H W image, h w the size of masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl import metrics
from ocrl.baselines import grid_segmentation, kmeans_segmentation
from ocrl.health import describe_health, slot_health
from ocrl.interfaces import Decoder, SlotEncoder
from ocrl.merging import Likeness, holders_of, merge_masks
from ocrl.types import BACKGROUND_ID, VOID_ID, Clip, DecoderOutput, SlotOutput

MODEL = "model"
BASELINES = ("grid", "k-means")
HEADLINES = ("video_fg_ari", "video_mbo_i")
"""What slots and baselines are judged by."""
MaskSource = Literal["decoder", "attn"]
_FRAMES_AT_ONCE = 64


class DiscoveryModel(Protocol):
    """What is asked of a model: `ocrl.model.SlotModel` is one."""

    @property
    def encoder(self) -> SlotEncoder:
        """Frames to slots."""

    @property
    def decoder(self) -> Decoder:
        """Slots to masks."""

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""

    def train(self, mode: bool = True) -> Any:
        """Set the training mode."""

    def encode(self, clip: Clip) -> SlotOutput:
        """Slots of a clip."""


@dataclass(frozen=True)
class Example:
    """One clip to look at, on the CPU.

    Attributes:
        video: (T,C,H,W) as stored.
        masks: (T,K,h,w).
        predictions: method to (T,H,W) segment ids.
        segmentation: preset to (T,H,W) ground-truth ids.
        recon: (T,C,H',W'), if the decoder makes pixels or can depict slots.
        parts: (T,K,C,H',W'), if it makes pixels.
    """

    video: Tensor
    masks: Tensor
    predictions: Mapping[str, Tensor]
    segmentation: Mapping[str, Tensor]
    recon: Tensor | None = None
    parts: Tensor | None = None


@dataclass
class DiscoveryResult:
    """What an evaluation found.

    Attributes:
        protocol: what was counted.
        mask_source: which masks of the model were scored.
        num_slots: K.
        num_clips: clips seen.
        num_frames: frames seen in all of them.
        table: method to preset to metric to its mean over everything that has a value.
        per_clip: method to preset to metric to the value of each clip (NaN without one).
        curves: method to preset to metric to its mean at each frame of a clip.
        pictures: `psnr`, `ssim`: mean over frames; empty if the decoder makes no pixels.
        health: see `ocrl.health.slot_health`; and `slots_left` after merging, if there was any.
        examples: the first clips, for drawing.
        warnings: what a reader of the table has to know, in words.
    """

    protocol: metrics.Protocol
    mask_source: MaskSource
    num_slots: int
    num_clips: int
    num_frames: int
    table: dict[str, dict[str, dict[str, float]]]
    per_clip: dict[str, dict[str, dict[str, list[float]]]]
    curves: dict[str, dict[str, dict[str, list[float]]]]
    pictures: dict[str, float]
    health: dict[str, float]
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def presets(self) -> list[str]:
        """The kinds of ground truth that were scored; empty without any."""
        return list(self.table.get(MODEL, {}))

    def scalars(self) -> dict[str, float]:
        """All means by one name each, for TensorBoard: `scene/video_fg_ari`, `scene/grid/...`."""
        values = {**self.pictures, **{f"health/{name}": x for name, x in self.health.items()}}
        for method, presets in self.table.items():
            for preset, scores in presets.items():
                prefix = preset if method == MODEL else f"{preset}/{method}"
                values.update({f"{prefix}/{name}": value for name, value in scores.items()})
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def to_json(self) -> dict[str, Any]:
        """Everything but the examples, in plain values; NaN becomes null."""
        return _plain(
            {
                "protocol": vars(self.protocol),
                "mask_source": self.mask_source,
                "num_slots": self.num_slots,
                "num_clips": self.num_clips,
                "num_frames": self.num_frames,
                "table": self.table,
                "pictures": self.pictures,
                "health": self.health,
                "warnings": self.warnings,
                "per_clip": self.per_clip,
                "curves": self.curves,
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate_discovery(
    model: DiscoveryModel,
    clips: Iterable[Clip],
    *,
    protocol: str | metrics.Protocol = "ocrl",
    presets: Sequence[str] = ("entities", "scene"),
    mask_source: MaskSource | None = None,
    merge: float | None = None,
    merge_by: Likeness = "attn",
    baselines: bool = True,
    device: torch.device | str = "cpu",
    num_examples: int = 3,
) -> DiscoveryResult:
    """Score a model's masks on clips, and the baselines with as many segments on the same clips.

    Clips without ground truth still give PSNR, SSIM, slot health and examples.

    Args:
        model: set to `eval()` meanwhile; it stays on the device where it is.
        clips: of one camera; those of unlike length are fine.
        protocol: a preset of `ocrl.metrics.PROTOCOLS`, or one of your own.
        presets: the ground truths to score; those that the clips lack are left out.
        mask_source: the decoder's masks or the encoder's attention; None is the protocol's own.
        merge: score masks of slots that are merged from this likeness on, see
            `ocrl.merging.merge_slots`; the baselines keep as many segments. None for never.
        merge_by: the likeness of the encoder's `attn` or of its `slots`.
        baselines: score a fixed grid and k-means too.
        device: where the model is.
        num_examples: clips kept for drawing.

    Raises:
        ValueError: if an option is unknown, there is no clip, the clips have several cameras, or
            a segmentation has another size than the frames.
    """
    protocol = metrics.get_protocol(protocol)
    source = mask_source or protocol.mask_source
    if source not in ("decoder", "attn"):
        raise ValueError(f"expected mask_source to be 'decoder' or 'attn', got {source!r}")
    tally = _Tally(list(presets))
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for clip in clips:
                _evaluate_clip(
                    model,
                    clip,
                    tally,
                    protocol,
                    source,
                    merge,
                    merge_by,
                    baselines,
                    device,
                    num_examples,
                )
    finally:
        model.train(was_training)
    if not tally.num_clips:
        raise ValueError("expected at least one clip to evaluate, got none")
    return tally.result(protocol, source)


def _evaluate_clip(
    model: DiscoveryModel,
    clip: Clip,
    tally: _Tally,
    protocol: metrics.Protocol,
    source: MaskSource,
    merge: float | None,
    merge_by: Likeness,
    baselines: bool,
    device: torch.device | str,
    num_examples: int,
) -> None:
    _check(clip)
    clip = clip.to(device)
    encoded = model.encode(clip)
    video = clip.to_float().video
    frame_size = (video.shape[-2], video.shape[-1])
    masks, recon, parts = _decode(model.decoder, encoded, video)
    if source == "attn":
        masks = attention_masks(encoded, model.encoder)
    num_slots = masks.shape[2]
    if merge is not None:
        holders = holders_of(encoded, threshold=merge, by=merge_by)
        masks = merge_masks(masks, holders)
        is_left = holders == torch.arange(num_slots, device=holders.device)
        tally.add_health({"slots_left": is_left.sum(-1).double().mean(1)})
    size = protocol.size or frame_size
    predictions = {MODEL: segment(masks, size)}
    truths = {name: clip.segmentation[name] for name in tally.presets if name in clip.segmentation}
    if baselines and truths:
        fixed = grid_segmentation(num_slots, size).to(video.device)
        predictions["grid"] = fixed.expand(*video.shape[:2], *size)
        predictions["k-means"] = _nearest(kmeans_segmentation(video, num_slots), size)
    for preset, truth in truths.items():
        tally.count_objects(preset, truth, num_slots)
        classes = _classes(clip, preset)
        for method, prediction in predictions.items():
            scores = metrics.discovery_metrics(
                _nearest(truth, size),
                prediction,
                protocol=protocol,
                classes=None if classes is None else _nearest(classes, size),
            )
            tally.add(method, preset, scores)
    if recon is not None:
        tally.add_pictures({"psnr": metrics.psnr(recon, video)})
        if min(frame_size) >= metrics.SSIM_WINDOW:
            tally.add_pictures({"ssim": metrics.ssim(recon, video)})
    tally.add_health(slot_health(encoded.slots, masks))
    tally.end_batch(clip, num_slots)
    for index in range(min(clip.batch_size, num_examples - len(tally.examples))):
        shown = {name: _nearest(ids, frame_size)[index] for name, ids in predictions.items()}
        picture = None if recon is None else recon[index]
        if recon is None:
            picture = _depict(model.decoder, encoded, index, frame_size)
        example = Example(
            clip.video[index].cpu(),
            masks[index].float().cpu(),
            {name: ids.cpu() for name, ids in shown.items()},
            {name: truth[index].cpu() for name, truth in truths.items()},
            None if picture is None else picture.cpu(),
            None if parts is None else parts[index].cpu(),
        )
        tally.examples.append(example)


def _check(clip: Clip) -> None:
    if clip.video.ndim != 5:
        raise ValueError(
            f"expected clips of one camera (B,T,C,H,W), got shape {tuple(clip.video.shape)}"
        )
    expected = (*clip.video.shape[:2], *clip.video.shape[-2:])
    for preset, truth in clip.segmentation.items():
        if tuple(truth.shape) != expected:
            raise ValueError(
                f"segmentation {preset!r}: expected (B,T,H,W) = {expected} like the frames, "
                f"got {tuple(truth.shape)}"
            )


def _decode(
    decoder: Decoder, encoded: SlotOutput, video: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Masks, and if the decoder makes pixels pictures of the frames' size and parts.

    It decodes a few frames at a time, and keeps neither features nor logits of tokens: memory does
    not grow with the length of a video.
    """
    step = max(1, _FRAMES_AT_ONCE // len(video))
    cuts = (tensor.split(step, dim=1) for tensor in (encoded.slots, video, encoded.attn))
    masks, recons, parts = [], [], []
    for slots, frames, attn in zip(*cuts, strict=True):
        piece: DecoderOutput = decoder(slots, frames, attn=attn)
        masks.append(piece.masks)
        if decoder.space == "pixels":
            recons.append(_fitted(piece.recon, (video.shape[-2], video.shape[-1])))
            if piece.parts is not None:
                parts.append(piece.parts)
    recon = torch.cat(recons, dim=1) if recons else None
    return torch.cat(masks, dim=1), recon, torch.cat(parts, dim=1) if parts else None


def _depict(
    decoder: Decoder, encoded: SlotOutput, index: int, size: tuple[int, int]
) -> Tensor | None:
    """Pictures (T,C,H,W) that a decoder of something else makes of a sample's slots, if it can."""
    here = slice(index, index + 1)
    pictures = decoder.depict(encoded.slots[here], attn=encoded.attn[here])
    return None if pictures is None else _fitted(pictures, size)[0]


def attention_masks(encoded: SlotOutput, encoder: SlotEncoder) -> Tensor:
    """The encoder's attention (B,T,K,N) as masks (B,T,K,h,w).

    Raises:
        ValueError: if the tokens are not those of one view's grid.
    """
    height, width = encoder.backbone.grid
    if encoded.attn.shape[-1] != height * width:
        raise ValueError(
            f"expected attention over {height} x {width} tokens of one view, "
            f"got {encoded.attn.shape[-1]}"
        )
    return encoded.attn.unflatten(-1, (height, width))


def segment(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Segment ids (B,T,H,W) of masks (B,T,K,h,w): bilinear to `size`, then the largest wins."""
    flat = masks.float().flatten(0, 1)
    if tuple(flat.shape[-2:]) != tuple(size):
        flat = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return flat.argmax(1).unflatten(0, masks.shape[:2])


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(ids.shape[-2:]) == tuple(size):
        return ids
    rows, columns = (
        ((torch.arange(to, device=ids.device) + 0.5) * have / to).long()
        for to, have in zip(size, ids.shape[-2:], strict=True)
    )
    return ids[..., rows[:, None], columns]


def _classes(clip: Clip, preset: str) -> Tensor | None:
    """Ground truth by class, where the clip has the table of the entities."""
    if preset != "entities" or not {"id", "category"} <= set(clip.properties):
        return None
    return metrics.class_segmentation(
        clip.segmentation[preset], clip.properties["id"], clip.properties["category"]
    )


def _fitted(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B,T,C,h,w) in [0,1] and of another size."""
    flat = pictures.float().flatten(0, 1)
    if tuple(flat.shape[-2:]) != size:
        flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.clamp(0.0, 1.0).unflatten(0, pictures.shape[:2])


class _Tally:
    """Gathers scores over batches of clips."""

    def __init__(self, presets: list[str]) -> None:
        self.presets = presets
        self.scores: dict[str, dict[str, dict[str, list[Tensor]]]] = {MODEL: {}}
        self.pictures: dict[str, list[Tensor]] = {}
        self.health: dict[str, list[Tensor]] = {}
        self.objects: dict[str, list[Tensor]] = {}
        self.examples: list[Example] = []
        self.num_clips = self.num_frames = self.num_slots = 0

    def add(self, method: str, preset: str, scores: Mapping[str, Tensor]) -> None:
        kept = self.scores.setdefault(method, {}).setdefault(preset, {})
        for name, values in scores.items():
            kept.setdefault(name, []).extend(values.double().cpu())

    def add_pictures(self, scores: Mapping[str, Tensor]) -> None:
        for name, values in scores.items():
            self.pictures.setdefault(name, []).extend(values.double().cpu())

    def add_health(self, health: Mapping[str, Tensor]) -> None:
        for name, values in health.items():
            self.health.setdefault(name, []).extend(values.double().cpu())

    def count_objects(self, preset: str, truth: Tensor, num_slots: int) -> None:
        for frame in truth.flatten(0, 1).flatten(1).cpu():
            ids = frame.unique()
            number = ((ids != BACKGROUND_ID) & (ids != VOID_ID)).sum()
            self.objects.setdefault(preset, []).append(number)

    def end_batch(self, clip: Clip, num_slots: int) -> None:
        self.num_clips += clip.batch_size
        self.num_frames += clip.batch_size * clip.num_frames
        self.num_slots = num_slots

    def result(self, protocol: metrics.Protocol, source: MaskSource) -> DiscoveryResult:
        table: dict[str, dict[str, dict[str, float]]] = {}
        per_clip: dict[str, dict[str, dict[str, list[float]]]] = {}
        curves: dict[str, dict[str, dict[str, list[float]]]] = {}
        for method, preset, name, values in self._entries():
            at = (method, preset)
            _put(table, at, name, float(torch.cat([v.flatten() for v in values]).nanmean()))
            _put(per_clip, at, name, [float(value.nanmean()) for value in values])
            if values[0].ndim:
                _put(curves, at, name, _curve(values))
        means = {name: float(torch.cat(v).mean()) for name, v in self.pictures.items()}
        health = {name: float(torch.stack(v).mean()) for name, v in self.health.items()}
        result = DiscoveryResult(
            protocol,
            source,
            self.num_slots,
            self.num_clips,
            self.num_frames,
            table,
            per_clip,
            curves,
            means,
            health,
            self.examples,
        )
        result.warnings.extend(self._crowded())
        result.warnings.extend(describe_health(health, num_slots=self.num_slots))
        result.warnings.extend(_beaten(table))
        return result

    def _entries(self) -> Iterator[tuple[str, str, str, list[Tensor]]]:
        for method, presets in self.scores.items():
            for preset, scores in presets.items():
                for name, values in scores.items():
                    yield method, preset, name, values

    def _crowded(self) -> Iterator[str]:
        for preset, counts in self.objects.items():
            number = torch.stack(counts)
            crowded = float((number > self.num_slots).double().mean())
            if crowded:
                yield (
                    f"{preset}: {crowded:.0%} of the frames hold more objects than the model has "
                    f"slots (up to {int(number.max())}, {float(number.double().mean()):.1f} on "
                    f"average, num_slots={self.num_slots}); there no model can give each object "
                    f"a slot of its own. With num_slots={int(number.max()) + 1} it could."
                )


def _beaten(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    for preset, own in table.get(MODEL, {}).items():
        for method in BASELINES:
            other = table.get(method, {}).get(preset)
            if other is not None and all(other[name] > own[name] for name in HEADLINES):
                fg_ari, mbo = (f"{other[name]:.3f} against {own[name]:.3f}" for name in HEADLINES)
                yield (
                    f"{preset}: {method} is better than the slots in both metrics (video FG-ARI "
                    f"{fg_ari}, video mBO {mbo}). Try another trainer.seed, or train for longer."
                )


def _put(tree: dict[str, Any], at: tuple[str, str], name: str, value: Any) -> None:
    tree.setdefault(at[0], {}).setdefault(at[1], {})[name] = value


def _curve(values: Sequence[Tensor]) -> list[float]:
    """The mean over clips of each frame; shorter clips say nothing about later frames."""
    longest = max(len(value) for value in values)
    padded = [F.pad(value, (0, longest - len(value)), value=math.nan) for value in values]
    mean: list[float] = torch.stack(padded).nanmean(0).tolist()
    return mean
