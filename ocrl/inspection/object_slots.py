"""Slots beside the objects they hold: what probes and codes are measured on.

B batch, T frames, V views, K slots, D slot size, G code groups, M objects of a clip, C columns of a
factor, P objects in frames, H W image, h w the size of masks. The views of a posed model are one
picture (V*H,W), and an object is where it is in the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl.data.clips import Split, evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.discovery import DiscoveryModel, MaskSource, attention_masks, segment
from ocrl.matching import hungarian
from ocrl.model import SlotModel
from ocrl.posed import attended, chooser_of, is_posed, render_views, seen_views
from ocrl.types import Clip, SlotOutput

OBJECTS = "entities"
"""The segmentation whose ids the object tables use."""
_FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class LabelledClip:
    """One clip's slots and objects, on the CPU.

    Attributes:
        slots: (T,K,D).
        overlap: (T,M,K) IoU of each object with each slot's segment; 0 for an object out of view.
        is_seen: (T,M) bool, whether the object has a pixel.
        factors: name to (T,M,C); what stands where an object is out of view means nothing.
        codes: (T,K,G), if slots have codes.
    """

    slots: Tensor
    overlap: Tensor
    is_seen: Tensor
    factors: Mapping[str, Tensor]
    codes: Tensor | None = None


@dataclass(frozen=True)
class ObjectSlots:
    """One row for each object in each frame, with the slot matched to it.

    Attributes:
        slots: (P,D), zero for an object without a slot.
        is_matched: (P,) bool, whether the object has a slot.
        overlap: (P,) IoU with its slot's segment.
        factors: name to (P,C).
        codes: (P,G), if slots have codes; zero for an object without a slot.
    """

    slots: Tensor
    is_matched: Tensor
    overlap: Tensor
    factors: Mapping[str, Tensor]
    codes: Tensor | None

    def matched(self) -> ObjectSlots:
        """The rows of objects with a slot."""
        keep = self.is_matched
        return ObjectSlots(
            self.slots[keep],
            keep[keep],
            self.overlap[keep],
            {name: values[keep] for name, values in self.factors.items()},
            None if self.codes is None else self.codes[keep],
        )


def split_reader(
    store: EpisodeStore,
    *,
    holdout: float,
    clip_length: int,
    num_train_clips: int,
    num_test_clips: int,
    batch_size: int,
    image_size: Sequence[int],
) -> Callable[[Split], Iterator[Clip]]:
    """What gives the clips of a split, "train" or "holdout", with object tables and masks.

    The arguments are those of `ocrl.data.clips.evaluation_clips`.
    """
    has_masks = f"segmentation/{OBJECTS}" in store.arrays

    def read(split: Split) -> Iterator[Clip]:
        return evaluation_clips(
            store,
            clip_length=clip_length,
            num_clips=num_train_clips if split == "train" else num_test_clips,
            split=split,
            holdout=holdout,
            batch_size=batch_size,
            image_size=image_size,
            segmentation=[OBJECTS] if has_masks else [],
            objects=True,
        )

    return read


def label_clips(
    model: DiscoveryModel,
    clips: Iterable[Clip],
    *,
    attribute_names: Sequence[str],
    mask_source: MaskSource = "decoder",
    device: torch.device | str = "cpu",
) -> list[LabelledClip]:
    """Encode clips and put the slots beside the objects.

    Args:
        model: in `eval()`; one of posed views is shown the first cameras, as many as in training.
        clips: with object tables and the segmentation `entities`.
        attribute_names: names of the columns of `attributes` in the object tables.
        mask_source: masks of the decoder or the encoder's attention.
        device: where the model is.

    Raises:
        ValueError: if the clips have no objects, or another number of attributes.
    """
    labelled: list[LabelledClip] = []
    with torch.inference_mode():
        for clip in clips:
            clip = clip.to(device)
            labelled.extend(
                label_encoded(
                    model,
                    clip,
                    model.encode(_shown(model, clip)),
                    attribute_names=attribute_names,
                    mask_source=mask_source,
                )
            )
    if not any(bool(clip.is_seen.any()) for clip in labelled):
        raise ValueError("expected clips with at least one object in view, got none")
    return labelled


def _shown(model: DiscoveryModel, clip: Clip) -> Clip:
    """What of a clip the encoder sees."""
    if isinstance(model, SlotModel) and is_posed(model):
        return seen_views(clip, chooser_of(model).num_seen)
    return clip


def _segments(model: DiscoveryModel, clip: Clip, encoded: SlotOutput, source: MaskSource) -> Tensor:
    """The slot (B,T,[V,]H,W) that each pixel shows, K where a posed model shows none.

    Of attention V are the views that the encoder saw, the first ones.
    """
    _check_source(source)
    size = (clip.video.shape[-2], clip.video.shape[-1])
    if isinstance(model, SlotModel) and is_posed(model):
        if clip.camera is None:
            raise ValueError("expected cameras in the clips of a model of posed views, got none")
        if source == "attn":
            return attended(model, encoded, size)
        return render_views(model.decoder, encoded.slots, clip.camera, size=size).segments
    return segment(slot_masks(model, clip, encoded, source=source), size)


def _check_source(source: str) -> None:
    if source not in get_args(MaskSource):
        raise ValueError(f"expected mask_source to be 'decoder' or 'attn', got {source!r}")


def slot_masks(
    model: DiscoveryModel, clip: Clip, encoded: SlotOutput, *, source: MaskSource
) -> Tensor:
    """Masks (B,T,K,h,w) of encoded frames, a few frames at a time.

    Raises:
        ValueError: if `source` is unknown.
    """
    _check_source(source)
    if source == "attn":
        return attention_masks(encoded, model.encoder)
    step = max(1, _FRAMES_AT_ONCE // clip.batch_size)
    video = clip.to_float().video
    cuts = (tensor.split(step, dim=1) for tensor in (encoded.slots, video, encoded.attn))
    masks = [
        model.decoder(slots, frames, attn=attn).masks
        for slots, frames, attn in zip(*cuts, strict=True)
    ]
    return torch.cat(masks, dim=1)


def object_factors(clip: Clip, attribute_names: Sequence[str]) -> dict[str, Tensor]:
    """Name to (B,T,M,C) of the factors in a clip's object tables: M rows, padding with id 0.

    Raises:
        ValueError: if the clip has no object tables, or another number of attributes.
    """
    missing = {"id", "category", "position"} - set(clip.properties)
    if missing or OBJECTS not in clip.segmentation:
        lacking = sorted(missing) or [f"segmentation {OBJECTS!r}"]
        raise ValueError(
            f"expected episodes with object tables and the segmentation {OBJECTS!r}, got none of "
            f"{', '.join(lacking)}: collect them with scripts/collect_rollouts.py"
        )
    position = clip.properties["position"].float()
    if position.ndim == 5:
        # Of several views: a place in each picture.
        position = position.transpose(2, 3).flatten(3)
    factors = {
        "position": position,
        "category": clip.properties["category"].float()[..., None],
    }
    attributes = clip.properties.get("attributes")
    if attributes is None:
        return factors
    if attributes.shape[-1] != len(attribute_names):
        raise ValueError(
            f"expected {attributes.shape[-1]} attribute_names, one per column of the object "
            f"tables, got {list(attribute_names)}"
        )
    columns = zip(attribute_names, attributes.float().split(1, dim=-1), strict=True)
    factors |= dict(columns)
    if clip.video.ndim == 6 and {"x", "y", "z"} <= set(factors):
        factors["position"] = torch.cat([factors[axis] for axis in ("x", "y", "z")], dim=-1)
    return factors


def label_encoded(
    model: DiscoveryModel,
    clip: Clip,
    encoded: SlotOutput,
    *,
    attribute_names: Sequence[str],
    mask_source: MaskSource,
) -> Iterator[LabelledClip]:
    """The samples of a batch with what the model made of them, see `label_clips`."""
    tables = object_factors(clip, attribute_names)
    truth, segments = clip.segmentation[OBJECTS], _segments(model, clip, encoded, mask_source)
    if segments.ndim == 5:
        truth = truth[:, :, : segments.shape[2]]
        truth, segments = truth.flatten(2, 3), segments.flatten(2, 3)
    num_slots = encoded.slots.shape[2]
    for index in range(clip.batch_size):
        table_ids = clip.properties["id"][index].long()
        ids = object_ids(table_ids)
        area, overlap = overlaps(truth[index], segments[index], ids=ids, num_slots=num_slots)
        # (T,M,M'): which row of the table is which object.
        is_row = table_ids[:, None, :] == ids[:, None]
        is_seen = (area > 0) & is_row.any(-1)
        row = is_row.long().argmax(-1)
        factors = {
            name: values[index].gather(1, row[..., None].expand(-1, -1, values.shape[-1])).cpu()
            for name, values in tables.items()
        }
        yield LabelledClip(
            encoded.slots[index].float().cpu(),
            (overlap * is_seen[..., None]).cpu(),
            is_seen.cpu(),
            factors,
            None if encoded.codes is None else encoded.codes[index].cpu(),
        )


def object_ids(table_ids: Tensor) -> Tensor:
    """The objects (M,) of a clip, in the order of `LabelledClip`, from its tables' ids (T,M')."""
    ids = table_ids.unique()
    return ids[ids > 0]


def overlaps(
    segmentation: Tensor, segments: Tensor, *, ids: Tensor, num_slots: int
) -> tuple[Tensor, Tensor]:
    """Areas (T,M) in pixels of objects, and their IoU (T,M,K) with segments.

    Args:
        segmentation: (T,H,W) ground-truth ids.
        segments: (T,H,W) slot numbers, K for none.
        ids: (M,) the objects.
        num_slots: K.
    """
    objects = (segmentation[:, None] == ids[:, None, None]).flatten(2).float()
    # One column more, for the pixels that show no slot.
    slots = F.one_hot(segments.flatten(1), num_slots + 1)[..., :num_slots].float()
    shared = objects @ slots
    area = objects.sum(-1)
    union = area[..., None] + slots.sum(1)[:, None] - shared
    return area, shared / union.clamp(min=1.0)


def match_by_masks(clip: LabelledClip) -> Tensor:
    """The slot (T,M) of each object in each frame: the matching with the largest sum of IoU.

    -1 for an object that is out of view, that overlaps with no slot that is left, or that is one
    of more objects than there are slots.
    """
    matched = hungarian(clip.overlap, maximize=True)
    iou = clip.overlap.gather(-1, matched.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(clip.is_seen & (iou > 0), matched, -1)


def gather(clips: Sequence[LabelledClip], matches: Sequence[Tensor]) -> ObjectSlots:
    """Rows of all objects in view.

    Args:
        clips: as from `label_clips`.
        matches: (T,M) for each of them, as from `match_by_masks`.

    Raises:
        ValueError: if no object has a slot.
    """
    pieces = [_pick(clip, match) for clip, match in zip(clips, matches, strict=True)]
    rows = ObjectSlots(
        torch.cat([piece.slots for piece in pieces]),
        torch.cat([piece.is_matched for piece in pieces]),
        torch.cat([piece.overlap for piece in pieces]),
        {name: torch.cat([piece.factors[name] for piece in pieces]) for name in pieces[0].factors},
        None
        if pieces[0].codes is None
        else torch.cat([piece.codes for piece in pieces if piece.codes is not None]),
    )
    if not rows.is_matched.any():
        raise ValueError(
            f"expected slots that hold objects, got none for {len(rows.slots)} objects"
        )
    return rows


def _pick(clip: LabelledClip, match: Tensor) -> ObjectSlots:
    frame, row = torch.nonzero(clip.is_seen, as_tuple=True)
    slot = match[frame, row]
    is_matched = slot >= 0
    slot = slot.clamp(min=0)
    return ObjectSlots(
        clip.slots[frame, slot] * is_matched[:, None],
        is_matched,
        clip.overlap[frame, row, slot] * is_matched,
        {name: values[frame, row] for name, values in clip.factors.items()},
        None if clip.codes is None else clip.codes[frame, slot] * is_matched[:, None],
    )
