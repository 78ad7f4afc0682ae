"""How well masks find objects, and how well a picture is rebuilt: pure functions on tensors.

B batch, T frames, H W image, P pixels of a sample, R ground-truth objects (row 0 is the
background), S predicted segments, C channels.

Ids are arbitrary integers. Every score of masks comes from one table of pixel counts per sample,
in int64 and float64 whatever the autocast. A sample with nothing to score gives NaN, and
`summarize` leaves NaN out of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ocrl.matching import hungarian, matched_scores
from ocrl.types import BACKGROUND_ID, VOID_ID

Empty = Literal["skip", "one"]
"""What FG-ARI says of a sample without any object: NaN, or a perfect 1.0."""

_LARGEST_TABLE = 1 << 20
_BEST_PSNR = 100.0
_REST = 0.5
SSIM_WINDOW = 11
"""Pixels along the side of the window of `ssim`, which smaller pictures have no room for."""


@dataclass(frozen=True)
class Protocol:
    """What a line of work counts when it reports masks.

    Attributes:
        name: how reports call it.
        background: whether the background counts as one more object in mBO and mIoU.
        empty: the FG-ARI of a sample without objects.
        size: the (H, W) at which masks and ground truth meet; None is the ground truth's own.
        mask_source: which of a model's masks it scores.
    """

    name: str
    background: bool
    empty: Empty
    size: tuple[int, int] | None
    mask_source: Literal["decoder", "attn"]


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("ocrl", False, "skip", None, "decoder"),
        Protocol("slotcontrast", False, "one", None, "decoder"),
        Protocol("objectcentricbench", True, "skip", (256, 256), "decoder"),
        Protocol("dinosaur", False, "one", (320, 320), "decoder"),
    )
}
"""Presets. Void pixels are dropped from ground truth and prediction in all of them, and `ari`
counts the background in all of them.

`ocrl`, our own tables: objects only, at the ground truth's size; a frame without objects says
nothing and is left out. `slotcontrast` (Manasyan et al. 2025; VideoSAUR before it): the same, but
a frame without objects has an FG-ARI of 1. `objectcentricbench` (the SmoothSA and RandSF.Q line):
the background is one more object of mBO and mIoU, at 256 x 256; a frame without objects is left
out of FG-ARI. `dinosaur` (Seitzer et al. 2023, the OCLF code): objects only, at 320 x 320, FG-ARI
1 without objects. In all of them a video is scored as one image of T*H*W pixels.
"""


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Look a preset up by name.

    Raises:
        ValueError: if there is no preset of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol among {sorted(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]


def _dense(ids: Tensor, *, first: int | None = None) -> tuple[Tensor, int]:
    """Number the ids (B,P) of each sample 0, 1, ...; `first` is always number 0, seen or not."""
    ids = ids.to(torch.int64)
    low, high = (int(value) for value in torch.aminmax(ids))
    if high - low >= _LARGEST_TABLE:
        values, ids = torch.unique(ids, return_inverse=True)
        if first is not None:
            at = torch.nonzero(values == first).flatten()
            first = int(at[0]) if len(at) else None
            ids = ids if first is not None else ids + 1
            first = 0 if first is None else first
        low, high = 0, int(ids.max())
    if first is not None:
        low, high = min(low, first), max(high, first)
        first -= low
    ids = ids - low
    # Two tables of what occurs: over the batch, then per sample among what is left. No sorting.
    seen = torch.zeros(high - low + 1, dtype=torch.bool, device=ids.device)
    seen[ids.flatten()] = True
    if first is not None:
        seen[first] = True
    number = seen.cumsum(0) - 1
    ids = number[ids]
    present = torch.zeros(len(ids), int(number[-1]) + 1, dtype=torch.bool, device=ids.device)
    present.scatter_(1, ids, True)
    if first is None:
        rank = present.cumsum(1) - 1
    else:
        kept = int(number[first])
        present[:, kept] = False
        rank = present.cumsum(1)
        rank[:, kept] = 0
    return rank.gather(1, ids), int(rank.max()) + 1


def overlap_counts(
    segmentation: Tensor,
    prediction: Tensor,
    *,
    ignore: int | None = VOID_ID,
    background: int = BACKGROUND_ID,
) -> Tensor:
    """Count the pixels that each object shares with each segment, in each frame of each clip.

    Objects and segments are numbered per clip, so that the sum over T is the whole clip's table.

    Args:
        segmentation: (B,T,...) ground-truth ids.
        prediction: (B,T,...) segment ids, the same shape.
        ignore: the ground-truth id of pixels that count nowhere.
        background: the ground-truth id that gets row 0.

    Returns:
        (B,T,R,S) int64; row 0 is the background, rows without pixels are padding.

    Raises:
        ValueError: if the shapes differ, or there is no pixel at all.
    """
    if segmentation.shape != prediction.shape:
        raise ValueError(
            f"expected a prediction of the segmentation's shape {tuple(segmentation.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    if segmentation.ndim < 3 or segmentation.numel() == 0:
        raise ValueError(f"expected ids (B,T,...) with pixels, got {tuple(segmentation.shape)}")
    batch_size, num_frames = segmentation.shape[:2]
    objects = segmentation.reshape(batch_size, -1).to(torch.int64)
    counted = torch.ones_like(objects, dtype=torch.bool) if ignore is None else objects != ignore
    rows, num_rows = _dense(objects.where(counted, background), first=background)
    columns, num_columns = _dense(prediction.reshape(batch_size, -1))
    table = num_rows * num_columns
    total = batch_size * num_frames * table
    cell = (rows * num_columns + columns).view(batch_size * num_frames, -1)
    cell += table * torch.arange(len(cell), device=cell.device)[:, None]
    cell = cell.flatten().where(counted.flatten(), total)
    counts = torch.bincount(cell, minlength=total + 1)[:total]
    return counts.view(batch_size, num_frames, num_rows, num_columns)


def ari_from_counts(counts: Tensor) -> Tensor:
    """Adjusted Rand index of tables (...,R,S): (...) float64, NaN for an empty table.

    Hubert and Arabie 1985, equation 5; 1 where both partitions are trivial and equal.
    """
    table = counts.double()
    total = table.sum((-2, -1))

    def pairs(values: Tensor) -> Tensor:
        return values * (values - 1.0) / 2.0

    both = pairs(table).sum((-2, -1))
    truth, found = pairs(table.sum(-1)).sum(-1), pairs(table.sum(-2)).sum(-1)
    expected = truth * found / pairs(total).clamp(min=1.0)
    spread = (truth + found) / 2.0 - expected
    index = torch.where(spread > 0, (both - expected) / spread.where(spread > 0, 1.0), 1.0)
    return index.where(total > 0, torch.nan)


def iou_from_counts(counts: Tensor) -> Tensor:
    """Intersection over union (...,R,S) in float64 of every object with every segment."""
    table = counts.double()
    union = table.sum(-1, keepdim=True) + table.sum(-2, keepdim=True) - table
    return table / union.clamp(min=1.0)


def _mean_over_objects(values: Tensor, counts: Tensor, *, background: bool) -> Tensor:
    present = counts.sum(-1) > 0
    if not background:
        present = present[..., 1:]
        values = values[..., 1:]
    number = present.sum(-1)
    mean = values.where(present, 0.0).sum(-1) / number.clamp(min=1)
    return mean.where(number > 0, torch.nan)


def mbo_from_counts(counts: Tensor, *, background: bool = False) -> Tensor:
    """Mean over objects of the best IoU with any segment: (...) from tables (...,R,S)."""
    best = iou_from_counts(counts).amax(-1)
    return _mean_over_objects(best, counts, background=background)


def miou_from_counts(counts: Tensor, *, background: bool = False) -> Tensor:
    """Mean over objects of the IoU with the segment matched to it, 0 if none is left."""
    iou = iou_from_counts(counts)
    if not background:
        # The background takes no segment away from an object.
        iou = torch.cat([torch.zeros_like(iou[..., :1, :]), iou[..., 1:, :]], dim=-2)
    matched = matched_scores(iou, hungarian(iou, maximize=True))
    return _mean_over_objects(matched, counts, background=background)


def switches_from_counts(counts: Tensor) -> Tensor:
    """Identity switches per object, (B,) from tables (B,T,R,S), see `identity_switches`."""
    visible = counts.sum(-1)[..., 1:] > 0
    iou = iou_from_counts(counts)[..., 1:, :]
    best = iou == iou.amax(-1, keepdim=True)
    frame = torch.arange(best.shape[1], device=best.device)[None, :, None]
    seen_at = torch.where(visible, frame, -1).cummax(1).values
    last_seen = F.pad(seen_at, (0, 0, 1, 0), value=-1)[:, :-1]
    before = best.gather(1, last_seen.clamp(min=0)[..., None].expand_as(best))
    switched = visible & (last_seen >= 0) & ~(best & before).any(-1)
    number = visible.any(1).sum(-1)
    mean = switched.sum((1, 2)).double() / number.clamp(min=1)
    return mean.where(number > 0, torch.nan)


def ari(
    segmentation: Tensor,
    prediction: Tensor,
    *,
    foreground: bool,
    empty: Empty = "skip",
    ignore: int | None = VOID_ID,
    background: int = BACKGROUND_ID,
) -> Tensor:
    """Adjusted Rand index of each sample; with `foreground`, over the pixels of objects only.

    Args:
        segmentation: (B,...) ground-truth ids; all of a sample's pixels are one segmentation.
        prediction: (B,...) segment ids.
        foreground: leave the pixels of the background out (FG-ARI).
        empty: the score of a sample without a pixel to count.
        ignore: the ground-truth id of pixels that never count.
        background: the ground-truth id of the background.

    Returns:
        (B,) float64. A sample with one object gives 1 if it is in one piece, else 0.
    """
    counts = overlap_counts(
        segmentation[:, None], prediction[:, None], ignore=ignore, background=background
    ).squeeze(1)
    return _fill(ari_from_counts(counts[:, 1:] if foreground else counts), empty)


def mbo(
    segmentation: Tensor,
    prediction: Tensor,
    *,
    foreground: bool = True,
    ignore: int | None = VOID_ID,
    background: int = BACKGROUND_ID,
) -> Tensor:
    """Mean best overlap of each sample (B,...): the best IoU of each object, averaged.

    Instance masks give mBO-i, masks of classes mBO-c (see `class_segmentation`). Several objects
    may have the same best segment. Pont-Tuset et al. 2017 (arXiv 1503.00848).
    """
    counts = overlap_counts(
        segmentation[:, None], prediction[:, None], ignore=ignore, background=background
    )
    return mbo_from_counts(counts.squeeze(1), background=not foreground)


def miou(
    segmentation: Tensor,
    prediction: Tensor,
    *,
    foreground: bool = True,
    ignore: int | None = VOID_ID,
    background: int = BACKGROUND_ID,
) -> Tensor:
    """Mean IoU of each sample (B,...) under the best one-to-one matching of objects to segments."""
    counts = overlap_counts(
        segmentation[:, None], prediction[:, None], ignore=ignore, background=background
    )
    return miou_from_counts(counts.squeeze(1), background=not foreground)


def identity_switches(
    segmentation: Tensor, prediction: Tensor, *, ignore: int | None = VOID_ID
) -> Tensor:
    """How often an object changes hands: (B,) switches per object, from ids (B,T,H,W).

    In each frame an object belongs to the segment of the best IoU; a switch is counted where
    that segment is another than in the last frame in which the object was seen (where several
    are equally good, none of them).
    """
    return switches_from_counts(overlap_counts(segmentation, prediction, ignore=ignore))


def centres(ids: Tensor, *, background: int | None = None) -> Tensor:
    """Where the pixels of each id are on average, in each frame of each clip.

    Args:
        ids: (B,T,H,W).
        background: the id that gets row 0, seen or not; None where all are alike.

    Returns:
        (B,T,R,2) float64, row and column in pixels; NaN where an id has none. Ids are in the order
        of `overlap_counts`: of its rows with that background, of its columns without.
    """
    batch_size, num_frames, height, width = ids.shape
    rows, num_rows = _dense(ids.reshape(batch_size, -1), first=background)
    cell = rows.view(batch_size * num_frames, -1)
    cell = cell + num_rows * torch.arange(len(cell), device=cell.device)[:, None]
    axes = (torch.arange(size, device=ids.device).double() for size in (height, width))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    total = len(cell) * num_rows
    sums = [cell.flatten().bincount(axis.repeat(len(cell)), total) for axis in grid]
    number = cell.flatten().bincount(minlength=total)
    return (torch.stack(sums, -1) / number[:, None]).view(batch_size, num_frames, num_rows, 2)


def motion_from_rest(
    segmentation: Tensor, prediction: Tensor, *, num_context: int, horizons: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """How objects that rested moved, and how far the segments that they were in went elsewhere.

    An object rests if its centre stays within half a pixel from frame to frame of the context. Its
    segment is the one that most of it is in on the last of these frames. So an object that is
    pushed counts, and one that moves by itself does not.

    Args:
        segmentation: (B,C+H,H',W') ground-truth ids.
        prediction: (B,1+H,H',W') segments of the last frame of the context, and after it.
        num_context: C.
        horizons: so many steps after the context.

    Returns:
        Squared errors of how far segments went, and squared ways of objects, sums over the objects
        of a clip (B,N) in pixels, one for each horizon. Objects that are hidden there do not count;
        a segment that is hidden went nowhere.
    """
    counted = segmentation.where(segmentation != VOID_ID, BACKGROUND_ID)
    places = centres(counted, background=BACKGROUND_ID)[:, :, 1:]
    steps = places[:, 1:num_context] - places[:, : num_context - 1]
    rests = (steps.norm(dim=-1) <= _REST).all(1)
    overlap = overlap_counts(segmentation[:, num_context - 1 :], prediction)[:, 0, 1:]
    own = overlap.argmax(-1)[:, None, :, None]
    at = list(horizons)
    ahead = places[:, num_context - 1 :]
    ways = ahead[:, at] - ahead[:, :1]
    segments = centres(prediction)
    went = (segments[:, at] - segments[:, :1]).nan_to_num()
    went = went.gather(2, own.expand(-1, len(at), -1, 2))
    is_counted = rests[:, None] & ways.isfinite().all(-1)
    errors, ways = (
        part.square().sum(-1).where(is_counted, 0.0).sum(-1) for part in (went - ways, ways)
    )
    return errors, ways


def _fill(values: Tensor, empty: Empty) -> Tensor:
    return values.nan_to_num(nan=1.0) if empty == "one" else values


def class_segmentation(segmentation: Tensor, ids: Tensor, categories: Tensor) -> Tensor:
    """Replace instance ids by classes, for mBO-c.

    Args:
        segmentation: (B,T,H,W) instance ids.
        ids: (B,T,M) the ids of the objects of each frame, 0 in padding rows.
        categories: (B,T,M) the class of each of them.

    Returns:
        (B,T,H,W) int64: 0 background, class + 1, and void where an id has no class.
    """
    segmentation, ids = segmentation.to(torch.int64), ids.to(torch.int64)
    batch_size = len(segmentation)
    size = max(int(segmentation.max()), int(ids.max()), VOID_ID) + 1
    class_of = torch.full((batch_size, size), VOID_ID, device=segmentation.device)
    # An object keeps its id and its class for a whole episode, so one table serves a whole clip.
    class_of.scatter_(1, ids.flatten(1), categories.to(torch.int64).flatten(1) + 1)
    class_of[:, BACKGROUND_ID] = BACKGROUND_ID
    class_of[:, VOID_ID] = VOID_ID
    return class_of.gather(1, segmentation.flatten(1)).view_as(segmentation)


def discovery_metrics(
    segmentation: Tensor,
    prediction: Tensor,
    *,
    protocol: str | Protocol = "ocrl",
    classes: Tensor | None = None,
) -> dict[str, Tensor]:
    """All scores of masks: per frame, and with the prefix `video_` for whole clips.

    The masks are compared at the size they come in; `Protocol.size` is for whoever makes them.

    Args:
        segmentation: (B,T,H,W) ground-truth ids.
        prediction: (B,T,H,W) segment ids, which mean the same segment in all frames of a clip.
        protocol: a preset's name, or one of your own.
        classes: (B,T,H,W) from `class_segmentation`, for `mbo_c`.

    Returns:
        `ari`, `fg_ari`, `mbo_i`, `miou` (and `mbo_c`) as (B,T), the same with `video_` as (B,), and
        `video_identity_switches` (B,). NaN where there is nothing to score.
    """
    protocol = get_protocol(protocol)
    per_frame = overlap_counts(segmentation, prediction)
    metrics: dict[str, Tensor] = {}
    for prefix, counts in (("", per_frame), ("video_", per_frame.sum(1))):
        scores = {
            "ari": ari_from_counts(counts),
            "fg_ari": _fill(ari_from_counts(counts[..., 1:, :]), protocol.empty),
            "mbo_i": mbo_from_counts(counts, background=protocol.background),
            "miou": miou_from_counts(counts, background=protocol.background),
        }
        metrics.update({prefix + name: value for name, value in scores.items()})
    if classes is not None:
        of_classes = overlap_counts(classes, prediction)
        metrics["mbo_c"] = mbo_from_counts(of_classes, background=protocol.background)
        metrics["video_mbo_c"] = mbo_from_counts(of_classes.sum(1), background=protocol.background)
    metrics["video_identity_switches"] = switches_from_counts(per_frame)
    return metrics


def summarize(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Average each metric over all its samples that have a value; NaN if none has."""
    return {name: float(values.double().nanmean()) for name, values in metrics.items()}


def psnr(recon: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (...,C,H,W) in [0,1]: (...) float64.

    Capped at 100 dB, so that a perfect picture keeps means finite.
    """
    error = (recon.double() - target.double()).square().mean((-3, -2, -1))
    return -10.0 * error.clamp(min=10.0 ** (-_BEST_PSNR / 10.0)).log10()


def ssim(recon: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of pictures (...,C,H,W) in [0,1]: (...) float64.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861), equation 13: 11 x 11 Gaussian window of
    deviation 1.5, only where it fits, averaged over channels.

    Raises:
        ValueError: if the pictures are smaller than the window.
    """
    if min(recon.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"expected pictures of {SSIM_WINDOW} x {SSIM_WINDOW} or more, got "
            f"{tuple(recon.shape[-2:])}"
        )
    down, across = (_gaussian_bands(side, recon.device) for side in recon.shape[-2:])

    def blur(values: Tensor) -> Tensor:
        return down @ values @ across.T

    x, y = recon.double(), target.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((-3, -2, -1))


def feature_distance(features: Tensor, others: Tensor) -> Tensor:
    """Perceptual distance of pictures by the features that a network has of them: (...) float64.

    That of LPIPS (Zhang et al. 2018, arXiv 1801.03924, equation 1) without its learned weights:
    features of each place are scaled to length 1, squared differences are summed over them and
    averaged over places. It is in [0,4], and comparable for one network only.

    Args:
        features: (...,N,F).
        others: (...,N,F).
    """
    unit, other = (F.normalize(part.double(), dim=-1) for part in (features, others))
    return (unit - other).square().sum(-1).mean(-1)


def roc_auc(scores: Tensor, is_positive: Tensor) -> float:
    """The chance that a positive scores above a negative, ties half; NaN without one of them.

    The area under the receiver operating characteristic, by the ranks of Mann and Whitney (1947).

    Args:
        scores: (M,).
        is_positive: (M,) bool.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, place, counts = scores.double().unique(return_inverse=True, return_counts=True)
    # The mean rank, from 1 on, of those that share a score.
    rank = counts.cumsum(0) - (counts - 1) / 2
    total = rank[place][is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(total / (num_positive * num_negative))


def retrieval_ranks(distances: Tensor) -> Tensor:
    """The rank (M,) of each query's own item by distance, from 1 on; ties count half.

    C-SWM's ranking (Kipf et al. 2020, arXiv 1911.12247, section 4.2): hits@1 is the share of ranks
    of 1, and the mean reciprocal rank the mean of their inverses.

    Args:
        distances: (M,M) of each query to each item; a query's own is on the diagonal.
    """
    own = distances.diagonal()[:, None]
    closer, equal = (distances < own).sum(1), (distances == own).sum(1) - 1
    return 1 + closer + equal / 2


def _gaussian_bands(side: int, device: torch.device) -> Tensor:
    """A matrix (side-10,side) that blurs a line of pixels; much faster than convolving doubles."""
    reach = SSIM_WINDOW // 2
    at = torch.arange(side, dtype=torch.float64, device=device)
    distance = at[None] - (at[: side - 2 * reach, None] + reach)
    window = torch.exp(-distance.square() / (2 * 1.5**2)).where(distance.abs() <= reach, 0.0)
    return window / window.sum(1, keepdim=True)
