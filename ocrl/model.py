"""What is trained, saved and loaded: an encoder, a decoder and the objectives over both.

B batch, T frames, K slots, D slot size, M objects in view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocrl.interfaces import Decoder, FrameSlotEncoder, Objective, SlotEncoder, ViewChooser
from ocrl.types import Clip, DecoderOutput, SlotOutput


@dataclass(frozen=True)
class ModelOutput:
    """One pass over a clip.

    Attributes:
        losses: name of the objective to its scalar, before weighting.
        total: weighted sum of `losses`.
        encoded: what the encoder gave.
        decoded: what the decoder gave.
    """

    losses: dict[str, Tensor]
    total: Tensor
    encoded: SlotOutput
    decoded: DecoderOutput


class SlotModel(nn.Module):
    """Encoder, decoder and weighted objectives.

    Args:
        encoder: frames to slots.
        decoder: slots to what the objectives compare with the clip.
        objectives: one training signal per name.
        weights: a factor for each name of `objectives`.
        is_conditioned: start each clip from the boxes of its first frame.

    A decoder of rays is asked for those that one of the objectives, a `ViewChooser`, draws from the
    views of a clip; the encoder then sees the views that it chooses.

    Raises:
        ValueError: if there is no objective, `weights` names others than `objectives`, or the
            decoder reads places that the encoder's slots do not tell.
    """

    def __init__(
        self,
        encoder: SlotEncoder,
        *,
        decoder: Decoder,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        is_conditioned: bool,
    ) -> None:
        super().__init__()
        if not objectives:
            raise ValueError("objectives must name at least one training signal, got none")
        if set(objectives) != set(weights):
            raise ValueError(
                f"weights must have the names of the objectives: expected {sorted(objectives)}, "
                f"got {sorted(weights)}"
            )
        if decoder.num_axes not in (0, encoder.num_axes):
            raise ValueError(
                f"a {type(decoder).__name__} that reads places expected slots that end with one of "
                f"{decoder.num_axes} numbers, got a {type(encoder).__name__} that tells "
                f"{encoder.num_axes or 'none'}; LocatedSlots tells 2 with encoder.has_places=true, "
                "PlacedSlots and a PSB with places 3"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.objectives = nn.ModuleDict(dict(objectives))
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self.is_conditioned = is_conditioned

    @property
    def sees_single_frames(self) -> bool:
        """Whether slots of one frame know nothing of those before, nor of their order."""
        return any(isinstance(part, FrameSlotEncoder) for part in self.encoder.modules())

    def encode(self, clip: Clip) -> SlotOutput:
        """Encode a clip of uint8 or float frames.

        Raises:
            ValueError: if the model is conditioned and the clip has no boxes, or more than slots.
        """
        clip = clip.to_float()
        condition = self._boxes(clip) if self.is_conditioned else None
        encoded: SlotOutput = self.encoder(
            clip.video,
            clip.is_first,
            action=clip.action,
            condition=condition,
            camera=clip.camera,
        )
        return encoded

    def forward(self, clip: Clip) -> ModelOutput:
        """Encode, decode and compare a clip of uint8 or float frames.

        Raises:
            ValueError: if the decoder draws rays and no objective chooses them, or the other way
                round.
        """
        seen, asked, target = self._choose(clip)
        encoded = self.encode(seen)
        decoded: DecoderOutput = self.decoder(encoded.slots, target, attn=encoded.attn)
        losses = {
            name: objective(seen if objective.reads_seen else asked, encoded, decoded)
            for name, objective in self.objectives.items()
        }
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return ModelOutput(losses, total, encoded, decoded)

    def _choose(self, clip: Clip) -> tuple[Clip, Clip, Tensor]:
        """What the encoder sees, what the objectives compare with, and what the decoder reads."""
        choosers = [part for part in self.objectives.values() if isinstance(part, ViewChooser)]
        if len(choosers) != int(self.decoder.space == "rays"):
            raise ValueError(
                f"expected one objective that chooses rays (objective=views) for a decoder of rays "
                f"and none for another, got {len(choosers)} for a decoder of {self.decoder.space}"
            )
        if choosers:
            seen, asked, rays = choosers[0].choose(clip)
            return seen.to_float(), asked.to_float(), rays
        clip = clip.to_float()
        return clip, clip, clip.video

    def _boxes(self, clip: Clip) -> Tensor:
        if clip.boxes is None:
            raise ValueError("a conditioned model expected boxes in the clip, got none")
        boxes = clip.boxes[:, 0]
        num_slots = self.encoder.num_slots
        num_boxes = int((boxes >= 0).all(-1).sum(-1).max())
        if num_boxes > num_slots:
            raise ValueError(
                f"expected at most num_slots={num_slots} boxes in a first frame, got {num_boxes}"
            )
        order = (boxes < 0).any(-1).int().argsort(dim=1, stable=True)
        boxes = boxes.gather(1, order[..., None].expand_as(boxes))[:, :num_slots]
        missing = num_slots - boxes.shape[1]
        return nn.functional.pad(boxes, (0, 0, 0, missing), value=-1.0)
