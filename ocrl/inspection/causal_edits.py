"""Change one code of a slot, draw it, and ask what changed in the picture.

T frames, K slots, G code groups, M objects of a clip, F factors, P objects in frames, S side of a
window, H W image, h w the size of masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocrl.discovery import DiscoveryModel, MaskSource
from ocrl.inspection.disentanglement import Discrete
from ocrl.inspection.edit import coded, draw_slots
from ocrl.inspection.object_slots import (
    OBJECTS,
    LabelledClip,
    label_encoded,
    match_by_masks,
    object_ids,
)
from ocrl.inspection.probes import ProbeSettings, fit_network
from ocrl.types import Clip

POSITION = "position"
_MARGIN = 2
"""Pixels around an object's mask that count as the object: decoders blur."""
_VISIBLE = 0.1
"""A pixel has changed if one of its colours moved by more than this."""
_SEES = 0.5
"""A judge sees a factor if it errs at most this often, in errors of the most frequent value."""


@dataclass(frozen=True)
class DrawnClip:
    """A clip as its slots are drawn, with its objects.

    Attributes:
        labelled: slots and objects.
        match: (T,M) the slot of each object, -1 without one.
        attn: (T,K,N).
        coordinates: (T,K,P) beside the codes, if there are some.
        video: (T,3,H,W) in [0,1].
        pictures: (T,3,H,W) in [0,1].
        masks: (T,K,h,w) as they are drawn.
        objects: (T,M,H,W) bool.
    """

    labelled: LabelledClip
    match: Tensor
    attn: Tensor
    coordinates: Tensor | None
    video: Tensor
    pictures: Tensor
    masks: Tensor
    objects: Tensor


def draw_clips(
    model: DiscoveryModel,
    clips: Iterable[Clip],
    *,
    attribute_names: Sequence[str],
    mask_source: MaskSource,
    device: torch.device | str,
) -> list[DrawnClip]:
    """Encode clips, match slots to objects by masks, and draw the slots; all on the CPU.

    Raises:
        ValueError: if the model has no codes or draws no pictures, or the clips have no objects.
    """
    coded(model.encoder)
    drawn = []
    with torch.inference_mode():
        for clip in clips:
            clip = clip.to(device)
            encoded = model.encode(clip)
            labelled = label_encoded(
                model, clip, encoded, attribute_names=attribute_names, mask_source=mask_source
            )
            frames = clip.to_float().video
            pictures, masks = draw_slots(
                model.decoder, encoded.slots, attn=encoded.attn, frames=frames
            )
            for index, one in enumerate(labelled):
                ids = object_ids(clip.properties["id"][index].long())
                truth = clip.segmentation[OBJECTS][index]
                places = encoded.aux.get("coordinates")
                drawn.append(
                    DrawnClip(
                        one,
                        match_by_masks(one),
                        encoded.attn[index].cpu(),
                        None if places is None else places[index].cpu(),
                        frames[index].cpu(),
                        pictures[index].cpu(),
                        masks[index].cpu(),
                        (truth[:, None] == ids[:, None, None]).cpu(),
                    )
                )
    if not any(bool((clip.match >= 0).any()) for clip in drawn):
        raise ValueError("expected slots that overlap with objects, got none")
    return drawn


def windows(pictures: Tensor, masks: Tensor, *, side: int) -> Tensor:
    """Square cuts (P,3,S,S) of pictures (P,3,H,W), around the centres of masks (P,H,W).

    What lies outside of the picture is black.
    """
    half = side // 2
    mass = masks.flatten(1).sum(1).clamp(min=1)
    rows = (masks.sum(2).double() @ torch.arange(masks.shape[1]).double()) / mass
    columns = (masks.sum(1).double() @ torch.arange(masks.shape[2]).double()) / mass
    padded = F.pad(pictures, (half, side - half, half, side - half))
    step = torch.arange(side)
    y, x = (centre.round().long()[:, None] + step for centre in (rows, columns))
    index = torch.arange(len(pictures))[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


class Judge:
    """Says which value a factor has, by a look at a window of a picture around the object.

    A perceptron per factor, trained on drawn slots and their objects' true values; it never sees a
    slot or a code. Position is judged by the mean place of the slot's drawn mask instead.

    Attributes:
        accuracy: factor to its accuracy on held-out drawings.
        common: factor to the accuracy of always saying the most frequent value.
    """

    def __init__(
        self,
        train: Sequence[DrawnClip],
        test: Sequence[DrawnClip],
        *,
        factors: Mapping[str, Discrete],
        side: int,
        settings: ProbeSettings,
    ) -> None:
        """Learn.

        Args:
            train: clips to learn from.
            test: clips to measure the accuracy on.
            factors: values of all matched objects of `train`, then of `test`, in their order.
            side: S, pixels.
            settings: of the perceptrons.
        """
        self.side = side
        learned = torch.cat([self._cut(clip) for clip in train])
        held = torch.cat([self._cut(clip) for clip in test])
        self.networks: dict[str, nn.Module] = {}
        self.accuracy: dict[str, float] = {}
        self.common: dict[str, float] = {}
        for name, factor in factors.items():
            if name == POSITION:
                continue
            own, other = factor.values.split([len(learned), len(held)])
            network = fit_network(learned, own, out_dim=len(factor.names), settings=settings)
            self.networks[name] = network
            found = network(held).argmax(1)
            self.accuracy[name] = float((found == other).double().mean())
            self.common[name] = float(other.bincount().max() / len(other))

    def sees(self, name: str) -> bool:
        """Whether what edits do to a factor can be told: it errs half as often as a guess."""
        if name == POSITION:
            return True
        return 1 - self.accuracy[name] <= _SEES * (1 - self.common[name])

    def _cut(self, clip: DrawnClip) -> Tensor:
        frame, row = torch.nonzero(clip.match >= 0, as_tuple=True)
        return self.look(clip.pictures[frame], clip.objects[frame, row])

    def look(self, pictures: Tensor, masks: Tensor) -> Tensor:
        """What a perceptron sees (P,3*S*S) of pictures (P,3,H,W) with objects (P,H,W)."""
        return windows(pictures, masks, side=self.side).flatten(1) - 0.5

    def values(self, pictures: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The value (P,) of each factor."""
        seen = self.look(pictures, masks)
        return {name: network(seen).argmax(1) for name, network in self.networks.items()}


def mask_bins(masks: Tensor, *, num_bins: int) -> Tensor:
    """In which of num_bins x num_bins parts of the picture masks (P,h,w) are; -1 for none.

    A mask of less than half a cell of its grid is none.
    """
    height, width = masks.shape[-2:]
    mass = masks.flatten(1).sum(1)
    y = (masks.sum(2) @ (torch.arange(height) + 0.5)) / mass.clamp_min(1e-9) / height
    x = (masks.sum(1) @ (torch.arange(width) + 0.5)) / mass.clamp_min(1e-9) / width
    places = [(axis * num_bins).long().clamp(0, num_bins - 1) for axis in (x, y)]
    return torch.where(mass >= 0.5, places[1] * num_bins + places[0], -1)


@dataclass(frozen=True)
class EditScores:
    """What edits of single codes did.

    Attributes:
        names: of the F factors.
        changed: (G,F) share of a group's edits after which a factor is judged to differ.
        is_seen: (F,) bool; the other factors are not judged, and count for nothing below.
        intended: (G,) factor that the group tells most about, of those that are seen.
        only_intended: (G,) share of edits that changed it and no other.
        one_factor: (G,) share that changed one factor, of the edits that changed any; NaN if none.
        inside: (G,) share of changed pixels within the object's mask.
        outside: (G,) share of changed pixels outside of it.
        num_edits: (G,); a group of which one code is in use can not be edited, and scores NaN.
    """

    names: tuple[str, ...]
    changed: Tensor
    is_seen: Tensor
    intended: Tensor
    only_intended: Tensor
    one_factor: Tensor
    inside: Tensor
    outside: Tensor
    num_edits: Tensor


def edit_codes(
    model: DiscoveryModel,
    clips: Sequence[DrawnClip],
    *,
    judge: Judge,
    names: Sequence[str],
    information: Tensor,
    in_use: Sequence[Tensor],
    num_bins: int,
    seed: int,
    device: torch.device | str,
) -> EditScores:
    """Edit one object of each frame, every group in turn, and compare the drawings.

    Args:
        model: with codes.
        clips: held-out ones.
        judge: of the factors but position.
        names: F factors.
        information: (G,F) what each group tells about each factor.
        in_use: for each group the codes that objects have; the new one is drawn from the others.
        num_bins: of position, per axis.
        seed: of objects and codes.
        device: where the model is.
    """
    generator = torch.Generator().manual_seed(seed)
    changes: list[list[Tensor]] = [[] for _ in in_use]
    pixels: list[list[Tensor]] = [[] for _ in in_use]
    for clip in clips:
        frame, row = _draw_objects(clip.match, generator)
        slot = clip.match[frame, row]
        masks = clip.objects[frame, row]
        shown = clip.pictures[frame]
        before = _judged(judge, names, shown, masks, clip.masks[frame, slot], num_bins)
        for group, used in enumerate(in_use):
            if len(used) < 2 or not len(frame):
                continue
            pictures, drawn = _redraw(model, clip, frame, slot, group, used, generator, device)
            after = _judged(judge, names, pictures, masks, drawn, num_bins)
            changes[group].append(after != before)
            pixels[group].append(changed_pixels(shown, pictures, masks))
    is_seen = torch.tensor([judge.sees(name) for name in names])
    intended = information.masked_fill(~is_seen, -1.0).argmax(1)
    return _scores(names, is_seen, intended, changes, pixels)


def _draw_objects(match: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One matched object in each frame that has some: frames (P,) and rows (P,)."""
    chance = torch.rand(match.shape, generator=generator).masked_fill(match < 0, -1.0)
    if not match.shape[1]:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    frame = torch.nonzero((match >= 0).any(1)).flatten()
    return frame, chance.argmax(1)[frame]


def _redraw(
    model: DiscoveryModel,
    clip: DrawnClip,
    frame: Tensor,
    slot: Tensor,
    group: int,
    used: Tensor,
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Pictures (P,3,H,W) and masks (P,h,w) of the slots with another code."""
    assert clip.labelled.codes is not None
    codes = clip.labelled.codes[frame].clone()
    at = torch.arange(len(frame))
    codes[at, slot, group] = _another(codes[at, slot, group], used, generator)
    places = None if clip.coordinates is None else clip.coordinates[frame].to(device)
    with torch.inference_mode():
        made = coded(model.encoder).slots_of(codes.to(device), places).float()
        slots = clip.labelled.slots[frame].to(device)
        slots[at, slot] = made[at, slot]
        frames = clip.video[frame].to(device)
        attn = clip.attn[frame].to(device)
        pictures, masks = draw_slots(
            model.decoder, slots[None], attn=attn[None], frames=frames[None]
        )
    return pictures[0].cpu(), masks[0].cpu()[at, slot]


def _another(codes: Tensor, used: Tensor, generator: torch.Generator) -> Tensor:
    """For each code (P,) one of the codes in use that is another."""
    chance = torch.rand(len(codes), len(used), generator=generator)
    chance = chance.masked_fill(used == codes[:, None], -1.0)
    return used[chance.argmax(1)]


def _judged(
    judge: Judge,
    names: Sequence[str],
    pictures: Tensor,
    objects: Tensor,
    masks: Tensor,
    num_bins: int,
) -> Tensor:
    """The value (P,F) of each factor."""
    values = judge.values(pictures, objects)
    values[POSITION] = mask_bins(masks, num_bins=num_bins)
    return torch.stack([values[name] for name in names], dim=1)


def changed_pixels(before: Tensor, after: Tensor, objects: Tensor) -> Tensor:
    """Shares (P,2) of the pixels of objects (P,H,W), and of the others, that visibly changed.

    Args:
        before: (P,3,H,W).
        after: (P,3,H,W).
        objects: (P,H,W) bool; two pixels around an object count as its own.
    """
    grown = F.max_pool2d(objects.float()[:, None], 2 * _MARGIN + 1, stride=1, padding=_MARGIN)
    own = grown.squeeze(1).flatten(1)
    moved = ((after - before).abs().amax(1) > _VISIBLE).float().flatten(1)
    regions = torch.stack([own, 1 - own], dim=1)
    return (regions * moved[:, None]).sum(-1) / regions.sum(-1).clamp(min=1)


def _scores(
    names: Sequence[str],
    is_seen: Tensor,
    intended: Tensor,
    changes: Sequence[Sequence[Tensor]],
    pixels: Sequence[Sequence[Tensor]],
) -> EditScores:
    shares, alone, single, regions = [], [], [], []
    for group, found in enumerate(changes):
        rows = torch.cat([torch.zeros(0, len(names), dtype=torch.bool), *found])
        seen = rows & is_seen
        number = seen.sum(1)
        wanted = F.one_hot(intended[group], len(names)).bool()
        shares.append(rows.double().mean(0))
        alone.append((seen == wanted).all(1).double().mean())
        single.append((number[number > 0] == 1).double().mean())
        regions.append(torch.cat([torch.zeros(0, 2), *pixels[group]]).double().mean(0))
    inside, outside = torch.stack(regions).unbind(1)
    return EditScores(
        tuple(names),
        changed=torch.stack(shares),
        is_seen=is_seen,
        intended=intended,
        only_intended=torch.stack(alone),
        one_factor=torch.stack(single),
        inside=inside,
        outside=outside,
        num_edits=torch.tensor([sum(map(len, found)) for found in changes]),
    )
