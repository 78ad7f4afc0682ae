"""Measures and draws slots during training, for TensorBoard and for the terminal.

B batch, T frames, K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from ocrl.colours import colour_objects, slot_colours
from ocrl.discovery import (
    MODEL,
    DiscoveryResult,
    Example,
    MaskSource,
    attention_masks,
    evaluate_discovery,
)
from ocrl.health import code_use, describe_code_use
from ocrl.interfaces import SlotCodes
from ocrl.log import SayOnce, TensorBoard
from ocrl.model import SlotModel
from ocrl.types import Clip
from ocrl.visualize import (
    clip_picture,
    enlarge,
    grid,
    overlay,
    to_gif,
    to_png,
)

_GIF_SCALE = 3
_FRAMES_PER_SECOND = 5.0


class DiscoveryMonitor:
    """Object discovery on held-out clips, evaluated every so many steps of training.

    It logs every metric, the use of each group of codes where slots are quantised, a picture of
    each example (frames, truth, reconstruction, masks, a row for each slot), their masks as a
    moving picture, the encoder's attention, and says what it finds wrong in words.
    """

    def __init__(
        self,
        clips: Callable[[], Iterable[Clip]],
        *,
        presets: Sequence[str],
        mask_source: MaskSource,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        """Remember what to evaluate on.

        Args:
            clips: gives the same held-out clips at every call.
            presets: ground truths to score, if the clips have them.
            mask_source: which masks are scored, see `evaluate_discovery`.
            device: where the model will be.
            say: takes a sentence about collapsed slots, once per finding.
        """
        self._clips, self._presets, self._device = clips, presets, device
        self._mask_source, self._say = mask_source, SayOnce(say)
        self._baselines: dict[str, float] = {}

    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Evaluate a model, log what there is to see, and give the metrics by name.

        Baselines do not change from one evaluation to the next: they are measured in the first.
        """
        if not isinstance(model, SlotModel):
            raise TypeError(f"expected a SlotModel, got {type(model).__name__}")
        result = evaluate_discovery(
            model,
            self._clips(),
            presets=self._presets,
            mask_source=self._mask_source,
            device=self._device,
            baselines=not self._baselines,
        )
        figures = result.scalars()
        if not self._baselines:
            model_only = {name: v for name, v in figures.items() if not _is_baseline(name)}
            self._baselines = {k: v for k, v in figures.items() if k not in model_only}
        figures = {**self._baselines, **figures, **self._codes(model, step, board)}
        self._draw(result, step, board)
        self._draw_attention(model, step, board)
        self._warn("health", result.warnings, step, board)
        return figures

    def _draw(self, result: DiscoveryResult, step: int, board: TensorBoard) -> None:
        for index, example in enumerate(result.examples):
            truth = next(iter(example.segmentation.values()), None)
            picture = clip_picture(
                example.video,
                example.masks,
                recon=example.recon,
                parts=example.parts,
                segmentation=truth,
            )
            board.picture(f"slots/{index}", to_png(picture), step=step)
            movie = to_gif(torch.stack(_movie(example)), frames_per_second=_FRAMES_PER_SECOND)
            board.picture(f"masks/{index}", movie, step=step)

    @torch.inference_mode()
    def _draw_attention(self, model: SlotModel, step: int, board: TensorBoard) -> None:
        clip = next(iter(self._clips())).to(self._device)
        attention = attention_masks(model.encode(clip), model.encoder)[0].float().cpu()
        picture = clip_picture(clip.video[0].cpu(), attention)
        board.picture("attention/0", to_png(picture), step=step)

    @torch.inference_mode()
    def _codes(self, model: SlotModel, step: int, board: TensorBoard) -> dict[str, float]:
        """Perplexity of each group of codes, and how many are used; nothing without codes."""
        if not isinstance(model.encoder, SlotCodes) or not model.encoder.code_sizes:
            return {}
        found = [model.encode(clip.to(self._device)).codes for clip in self._clips()]
        codes = torch.cat([own.flatten(0, -2).cpu() for own in found if own is not None])
        self._warn("codes", describe_code_use(codes, model.encoder.code_sizes), step, board)
        figures = {}
        for group, (perplexity, used) in enumerate(zip(*code_use(codes), strict=True)):
            figures[f"codes/{group}/perplexity"] = perplexity.item()
            figures[f"codes/{group}/used"] = used.item()
        return figures

    def _warn(self, name: str, sentences: Sequence[str], step: int, board: TensorBoard) -> None:
        if sentences:
            board.text(name, "\n".join(f"- {sentence}" for sentence in sentences), step=step)
        self._say(sentences)


def _is_baseline(name: str) -> bool:
    return any(f"/{method}/" in name for method in ("grid", "k-means"))


def _movie(example: Example) -> list[torch.Tensor]:
    """Each frame beside its masks and, where there is one, its truth."""
    frames = enlarge(example.video, _GIF_SCALE)
    ids, truth = example.predictions[MODEL], next(iter(example.segmentation.values()), None)
    colours = slot_colours(ids, truth)
    columns = [frames, overlay(example.video, ids, colours=colours, scale=_GIF_SCALE)]
    if truth is not None:
        columns.append(enlarge(colour_objects(truth), _GIF_SCALE))
    return [grid([torch.stack(pictures)]) for pictures in zip(*columns, strict=True)]
