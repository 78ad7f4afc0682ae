"""How well a world model foretells, step by step, between a floor and a ceiling.

B batch, T frames, K slots, D slot size, C frames of the context, H steps, M clips of all batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocrl import metrics
from ocrl.discovery import segment
from ocrl.interfaces import Backbone
from ocrl.log import TensorBoard
from ocrl.matching import hungarian, matched_scores, slot_distances
from ocrl.slot_world import describe_beyond
from ocrl.types import Clip
from ocrl.world_model import WorldModel

PREDICTION, COPY, ENCODER = "prediction", "copy", "encoder"
METHODS = (PREDICTION, COPY, ENCODER)
_FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class Rollout:
    """One clip to look at, on the CPU.

    Attributes:
        video: (H,C,H',W') the frames that came, in [0,1].
        recon: (H,C,H',W') the frames foretold; None if the decoder makes no pixels.
        ids: (H,H',W') segments foretold.
    """

    video: Tensor
    recon: Tensor | None
    ids: Tensor


@dataclass
class HorizonResult:
    """What an evaluation found.

    Attributes:
        horizons: steps after the context, as the entries of the table's lists.
        num_context: C.
        num_clips: M.
        table: metric to method to its value at each horizon; NaN where there is nothing to score.
            `prediction` is the model; `copy` says that the last frame of the context stays; and
            `encoder` sees the frames, so its slots, decoder and outcome are a ceiling.
        examples: the first clips.
        warnings: what a reader of the table has to know, in words.
    """

    horizons: tuple[int, ...]
    num_context: int
    num_clips: int
    table: dict[str, dict[str, list[float]]]
    examples: list[Rollout] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def scalars(self) -> dict[str, float]:
        """Every finite figure by one name, such as `psnr/prediction/5`."""
        named = {
            f"{metric}/{method}/{horizon}": value
            for metric, methods in self.table.items()
            for method, values in methods.items()
            for horizon, value in zip(self.horizons, values, strict=True)
        }
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def to_json(self) -> dict[str, Any]:
        """All but the examples in plain values; NaN becomes null."""

        def plain(values: Sequence[float]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in values]

        table = {
            metric: {method: plain(values) for method, values in methods.items()}
            for metric, methods in self.table.items()
        }
        return {
            "horizons": list(self.horizons),
            "num_context": self.num_context,
            "num_clips": self.num_clips,
            "table": table,
            "warnings": self.warnings,
        }


@torch.inference_mode()
def evaluate_horizons(
    model: WorldModel,
    clips: Iterable[Clip],
    *,
    horizons: Sequence[int],
    preset: str = "entities",
    ends: Callable[[int], Iterable[Clip]] | None = None,
    judge: Backbone | None = None,
    device: torch.device | str = "cpu",
    num_examples: int = 2,
) -> HorizonResult:
    """Foretell clips with their own actions, and compare with what came.

    At each horizon: `slot_error`, the mean squared error after matching slots; `psnr`, `ssim` and
    `perceptual` of the frame (where the decoder makes pixels); `video_fg_ari`, `video_mbo_i` and
    `video_identity_switches` of the masks foretold from the first step up to it (where the decoder
    draws slots alone), and `motion_from_rest`, how much of the ways of objects that had rested in
    the context these masks go with them, 1 for all and 0 for as much as those that stay, see
    `metrics.motion_from_rest`; `reward_error`, the mean absolute error of the reward there;
    `termination_auc` of that very step; and `hits@1`, `hits@5` and `mrr`, whether the slots
    foretold are nearer to those that came than to those of the other clips at that step. For `copy`
    the frame is the last true one, the reward the mean of all steps of the clips, and the
    termination not known.

    Args:
        model: set to `eval()` meanwhile.
        clips: of at least the context and the longest horizon; longer ones are cut.
        horizons: rising, from 1 on.
        preset: the segmentation that masks are scored against, if the clips have it.
        ends: gives clips of so many frames that end with their episodes, for `termination_auc`:
            few others do, and episodes that terminate early are too short for long horizons.
        judge: whose features `perceptual` compares; the model's own backbone if None.
        device: where the model is.
        num_examples: clips kept for drawing.

    Raises:
        ValueError: if `horizons` do not rise from 1 on, there is no clip, a clip is too short or
            lacks the actions that the dynamics asks for, or slots are not finite.
    """
    check_horizons(horizons)
    tally = _Tally(model, tuple(horizons), preset, judge or model.model.encoder.backbone)
    was_training = model.training
    model.eval()
    try:
        for clip in clips:
            tally.add(clip.to(device), num_examples)
        if ends is not None:
            for horizon in horizons:
                for clip in ends(model.num_context + horizon):
                    tally.add_end(clip.to(device), horizon)
    finally:
        model.train(was_training)
    if not tally.truths:
        raise ValueError("expected at least one clip to evaluate on, got none")
    return tally.result()


def check_horizons(horizons: Sequence[int]) -> None:
    """Refuse horizons that can not be measured, before anything is read for them.

    Raises:
        ValueError: if there is none, or they do not rise from 1 on.
    """
    if not horizons or horizons[0] < 1 or list(horizons) != sorted(set(horizons)):
        raise ValueError(f"expected horizons that rise from 1 on, got {list(horizons)}")


class _Tally:
    """Gathers what is said of clips, and what came."""

    def __init__(
        self, model: WorldModel, horizons: tuple[int, ...], preset: str, judge: Backbone
    ) -> None:
        self.model, self.horizons, self.preset, self.judge = model, horizons, preset, judge
        self.scores: dict[str, dict[str, list[Tensor]]] = {}
        self.slots: dict[str, list[Tensor]] = {method: [] for method in METHODS}
        self.truths: list[Tensor] = []
        # Method to squared errors and ways of each batch, (2,N).
        self.motions: dict[str, list[Tensor]] = {}
        self.outcomes: dict[str, list[tuple[Tensor, Tensor]]] = {PREDICTION: [], ENCODER: []}
        self.came: list[tuple[Tensor, Tensor]] = []
        # Where clips end: horizon to method to the chance to go on, and whether it terminated.
        self.ends: dict[int, dict[str, list[tuple[Tensor, Tensor]]]] = {}
        self.examples: list[Rollout] = []

    def add(self, clip: Clip, num_examples: int) -> None:
        """Take a batch of clips."""
        num_context, horizon = self.model.num_context, self.horizons[-1]
        if clip.num_frames < num_context + horizon:
            raise ValueError(
                f"expected clips of at least {num_context} frames of context and {horizon} steps, "
                f"got {clip.num_frames} frames; ask for shorter horizons or use longer episodes"
            )
        clip = clip[: num_context + horizon].to_float()
        said, last, action = self._say(clip, horizon)
        truth = said[ENCODER]
        self.truths.append(truth[:, self._at].cpu())
        for method, value in said.items():
            self.slots[method].append(value[:, self._at].cpu())
        self._add_pictures(said, clip, num_examples)
        self._add_outcomes(clip, last, action, said)

    def add_end(self, clip: Clip, horizon: int) -> None:
        """Take clips whose last frame, so many steps after the context, is their episodes'."""
        if clip.terminated is None or not self.model.weights["continue"]:
            return
        said, last, action = self._say(clip.to_float(), horizon)
        for method, (_, goes_on) in self._outcomes(last, action, said).items():
            kept = self.ends.setdefault(horizon, {}).setdefault(method, [])
            kept.append((goes_on[:, -1], clip.terminated[:, -1].cpu()))

    def _say(self, clip: Clip, horizon: int) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """The slots (B,H,K,D) of each method, those of the last frame seen, and the actions."""
        num_context = self.model.num_context
        slots = self.model.encode(clip).slots
        if not slots.isfinite().all():
            raise ValueError("expected finite slots from the encoder, got nan or infinite values")
        has_actions = self.model.dynamics.num_actions or self.model.dynamics.action_dim
        action = clip.action if has_actions else None
        state = self.model.read(slots[:, :num_context], action, clip.is_first)
        last, truth = slots[:, num_context - 1], slots[:, num_context:]
        rest = None if action is None else action[:, num_context - 1 : -1]
        imagined = self.model.dynamics.imagine(last, state, rest, horizon)
        said = {PREDICTION: imagined.slots, COPY: last[:, None].expand_as(truth), ENCODER: truth}
        return said, last, rest

    @property
    def _at(self) -> list[int]:
        return [horizon - 1 for horizon in self.horizons]

    def _keep(self, metric: str, method: str, values: Tensor) -> None:
        self.scores.setdefault(metric, {}).setdefault(method, []).append(values.double().cpu())

    def _add_pictures(self, said: Mapping[str, Tensor], clip: Clip, num_examples: int) -> None:
        decoder = self.model.model.decoder
        if decoder.needs_target or decoder.needs_attn:
            return
        num_context = self.model.num_context
        last, video = clip.video[:, num_context - 1 : num_context], clip.video[:, num_context:]
        truth, came = clip.segmentation.get(self.preset), video[:, self._at]
        features = self._features(came) if decoder.space == "pixels" else None
        size = (video.shape[-2], video.shape[-1])
        # The copy is one frame, whatever the step.
        copied = self._decode(said[COPY][:, :1], size)
        for method, slots in said.items():
            recon, ids = copied if method == COPY else self._decode(slots, size)
            if truth is not None:
                ids_of_all = ids.expand(-1, slots.shape[1], -1, -1)
                self._add_masks(method, truth[:, num_context:], ids_of_all)
                self._add_motion(method, truth, torch.cat([copied[1], ids_of_all], dim=1))
            if recon is not None and features is not None:
                frames = last if method == COPY else recon[:, self._at]
                self._add_frames(method, frames, came, features)
            if method == PREDICTION:
                self._add_examples(video, recon, ids, num_examples)

    def _add_examples(
        self, video: Tensor, recon: Tensor | None, ids: Tensor, num_examples: int
    ) -> None:
        for index in range(min(len(video), num_examples - len(self.examples))):
            picture = None if recon is None else recon[index].cpu()
            self.examples.append(Rollout(video[index].cpu(), picture, ids[index].cpu()))

    def _decode(self, slots: Tensor, size: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Pictures (B,H,C,H',W') if there are any, and segments (B,H,H',W'), a few at a time."""
        decoder = self.model.model.decoder
        recons, ids = [], []
        for piece in slots.split(max(1, _FRAMES_AT_ONCE // len(slots)), dim=1):
            decoded = decoder(piece)
            ids.append(segment(decoded.masks, size))
            if decoder.space == "pixels":
                flat = decoded.recon.float().flatten(0, 1)
                if tuple(flat.shape[-2:]) != size:
                    flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
                recons.append(flat.clamp(0, 1).unflatten(0, piece.shape[:2]))
        return torch.cat(recons, dim=1) if recons else None, torch.cat(ids, dim=1)

    def _add_masks(self, method: str, truth: Tensor, ids: Tensor) -> None:
        counts = metrics.overlap_counts(truth, ids)
        for metric, score in (
            ("video_fg_ari", lambda part: metrics.ari_from_counts(part.sum(1)[..., 1:, :])),
            ("video_mbo_i", lambda part: metrics.mbo_from_counts(part.sum(1))),
            ("video_identity_switches", metrics.switches_from_counts),
        ):
            values = [score(counts[:, :horizon]) for horizon in self.horizons]
            self._keep(metric, method, torch.stack(values, dim=1))

    def _add_motion(self, method: str, truth: Tensor, ids: Tensor) -> None:
        """Take masks (B,C+H,H',W') that came, and those said from the last of the context on."""
        sums = metrics.motion_from_rest(
            truth, ids, num_context=self.model.num_context, horizons=self.horizons
        )
        self.motions.setdefault(method, []).append(torch.stack(sums).sum(1).cpu())

    def _add_frames(self, method: str, frames: Tensor, came: Tensor, features: Tensor) -> None:
        """Score frames, one for each horizon or one for all, against those that came."""
        own, frames = self._features(frames).expand_as(features), frames.expand_as(came)
        self._keep("psnr", method, metrics.psnr(frames, came))
        if min(came.shape[-2:]) >= metrics.SSIM_WINDOW:
            self._keep("ssim", method, metrics.ssim(frames, came))
        self._keep("perceptual", method, metrics.feature_distance(own, features))

    def _features(self, video: Tensor) -> Tensor:
        """Of frames (B,T,C,H,W), (B,T,N,F), at the size that the judge takes."""
        flat, size = video.flatten(0, 1), tuple(self.judge.image_size)
        if tuple(flat.shape[-2:]) != size:
            flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
        return self.judge(flat).unflatten(0, video.shape[:2])

    def _add_outcomes(
        self, clip: Clip, last: Tensor, action: Tensor | None, said: Mapping[str, Tensor]
    ) -> None:
        weights, num_context = self.model.weights, self.model.num_context
        if clip.reward is None or clip.terminated is None:
            return
        if not weights["reward"] and not weights["continue"]:
            return
        self.came.append(
            (clip.reward[:, num_context:].cpu(), clip.terminated[:, num_context:].cpu())
        )
        for method, outcome in self._outcomes(last, action, said).items():
            self.outcomes[method].append(outcome)

    def _outcomes(
        self, last: Tensor, action: Tensor | None, said: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Rewards and chances to go on (B,H), on the CPU, that each method's slots lead to."""
        found = {}
        for method in self.outcomes:
            before = torch.cat([last[:, None], said[method][:, :-1]], dim=1)
            reward, goes_on = self.model.outcomes(before, action, said[method])
            found[method] = (reward.cpu(), goes_on.cpu())
        return found

    # --- figures --------------------------------------------------------------------------------

    def result(self) -> HorizonResult:
        table = {
            metric: {method: _means(values) for method, values in methods.items()}
            for metric, methods in self.scores.items()
        }
        truth = torch.cat(self.truths)
        ranks: dict[str, dict[str, list[float]]] = {"hits@1": {}, "hits@5": {}, "mrr": {}}
        errors: dict[str, list[float]] = {}
        for method in METHODS:
            pairs = [
                set_distances(slots, came)
                for slots, came in zip(
                    torch.cat(self.slots[method]).unbind(1), truth.unbind(1), strict=True
                )
            ]
            errors[method] = [float(distance.diagonal().mean()) for distance in pairs]
            found = [metrics.retrieval_ranks(distance).double() for distance in pairs]
            for most in (1, 5):
                shares = [float((rank <= most).double().mean()) for rank in found]
                ranks[f"hits@{most}"][method] = shares
            ranks["mrr"][method] = [float((1 / rank).mean()) for rank in found]
        table |= self._motion_table()
        table = {"slot_error": errors, **table, **self._outcome_table(), **ranks}
        return HorizonResult(
            self.horizons,
            self.model.num_context,
            len(truth),
            table,
            self.examples,
            list(self._warnings()),
        )

    def _warnings(self) -> Iterator[str]:
        decoder, beyond = self.model.model.decoder, describe_beyond(self.model, self.horizons[-1])
        if beyond is not None:
            yield beyond
        if decoder.needs_target or decoder.needs_attn:
            yield (
                f"{type(decoder).__name__} draws no slots that are imagined: there are no pictures "
                "and no masks to score"
            )

    def _motion_table(self) -> dict[str, dict[str, list[float]]]:
        shares = {}
        for method, parts in self.motions.items():
            error, way = torch.stack(parts).sum(0)
            shares[method] = (1 - error / way).where(way > 0, torch.nan).tolist()
        return {"motion_from_rest": shares} if shares else {}

    def _outcome_table(self) -> dict[str, dict[str, list[float]]]:
        if not self.came:
            return {}
        rewards = torch.cat([reward for reward, _ in self.came]).double()
        ends = torch.cat([terminated for _, terminated in self.came])
        errors, areas = {}, {}
        if self.model.weights["reward"]:
            errors[COPY] = _means([(rewards - rewards.mean()).abs()[:, self._at]])
        for method, said in self.outcomes.items():
            if self.model.weights["reward"]:
                error = torch.cat([reward for reward, _ in said]).double() - rewards
                errors[method] = _means([error.abs()[:, self._at]])
            if self.model.weights["continue"]:
                goes_on = torch.cat([value for _, value in said])
                areas[method] = [
                    self._area(method, goes_on[:, horizon - 1], ends[:, horizon - 1], horizon)
                    for horizon in self.horizons
                ]
        named = {"reward_error": errors, "termination_auc": areas}
        return {metric: values for metric, values in named.items() if values}

    def _area(self, method: str, goes_on: Tensor, ends: Tensor, horizon: int) -> float:
        """Of one step, with the clips that end there."""
        pairs = [(goes_on, ends), *self.ends.get(horizon, {}).get(method, [])]
        chances, terminated = (torch.cat(values) for values in zip(*pairs, strict=True))
        return metrics.roc_auc(1 - chances, terminated)


def _means(values: Sequence[Tensor]) -> list[float]:
    means: list[float] = torch.cat(list(values)).nanmean(0).tolist()
    return means


def set_distances(sets: Tensor, others: Tensor) -> Tensor:
    """Mean squared errors (M,M) of sets of slots (M,K,D) with others (M,K,D), matched one to one.

    Raises:
        ValueError: if a slot is not finite.
    """
    rows = []
    for one in sets.double():
        cost = slot_distances(one.expand_as(others), others.double())
        rows.append(matched_scores(cost, hungarian(cost)).mean(-1))
    return torch.stack(rows)


class HorizonMonitor:
    """The horizon table on held-out clips, every so many steps of training."""

    def __init__(
        self,
        clips: Callable[[], Iterable[Clip]],
        *,
        horizons: Sequence[int],
        preset: str,
        device: torch.device,
    ) -> None:
        """Remember what to evaluate on.

        Args:
            clips: gives the same held-out clips at every call.
            horizons: see `evaluate_horizons`.
            preset: see `evaluate_horizons`.
            device: where the model will be.
        """
        self._clips, self._horizons, self._preset = clips, horizons, preset
        self._device = device

    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Evaluate a `WorldModel`; the trainer logs the figures."""
        if not isinstance(model, WorldModel):
            raise TypeError(f"expected a WorldModel, got {type(model).__name__}")
        return evaluate_horizons(
            model,
            self._clips(),
            horizons=self._horizons,
            preset=self._preset,
            device=self._device,
            num_examples=0,
        ).scalars()
