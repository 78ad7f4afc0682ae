"""Encoder, dynamics, outcome and decoder: a model of what slots do and what comes of actions.

B batch, T frames, K slots, D slot size, A action size, C frames of the context, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ocrl.interfaces import CodeReader, Decoder, SlotDynamics
from ocrl.matching import align_over_time
from ocrl.model import SlotModel
from ocrl.nn.outcome import OutcomeHead
from ocrl.slot_world import SlotWorld, WorldModelOutput, mean_of_counted
from ocrl.types import Clip, DecoderOutput, SlotOutput, SlotPrediction

Rollout = Literal["mixed", "whole", "none"]
LOSSES = ("slots", "image", "reward", "continue", "model")


class WorldModel(SlotWorld):
    """A slot model whose slots are foretold, with rewards and terminations.

    Trained as SlotFormer (Wu et al. 2023, arXiv 2210.05861, section 3.3) and SOLD (Mosbach et al.
    2025, arXiv 2410.08822): a rollout goes on from its own predictions after a context, the error
    is that of its slots and, through the decoder, that of its frames. Differs from both: every
    other rollout begins later, with what comes before foretold from true slots; of the context,
    too, each frame is foretold, so that short histories are known; frames are decoded at a few
    random steps, as decoding costs most; rewards and terminations are learned with the rest, on
    foretold slots. `ocrl.train.Trainer` trains it.

    What is rare and sharp, such as a push, is learned much sooner from true slots: deep in a
    rollout nobody knows whether there was contact, and between two places the error of frames takes
    the likelier one, as a median does.

    The losses are `slots`, the mean squared error of slots; `image`, that of the decoded frames;
    `event`, `reward` and `continue`, cross-entropies in nats; `model`, the slot model's own; and,
    with the weight 1, what the dynamics itself asks for (`SlotDynamics.costs`). Frames from where
    another episode begins are left out.

    Slots of encoders that see each frame by itself are put into the order of the frame before.

    Args:
        model: encoder and decoder. Frozen and in `eval()` if the weight of `model` is 0.
        dynamics: of the encoder's slots.
        outcome: tells rewards and terminations.
        weights: a factor for each of `slots`, `image`, `reward`, `continue` and `model`; what has
            0 is not computed, and `image` needs a decoder that makes pixels of slots alone.
        num_context: C, frames that a rollout starts from.
        horizon: H, steps of a rollout.
        num_decoded: random ones of the last H frames that are decoded, all if more.
        rollout: `whole`, of H steps; `mixed`, in training as likely of H steps as of 1 to H, the
            same in a batch; or `none`, each frame from true slots (teacher forcing).

    Raises:
        ValueError: if an argument is out of range, or the parts do not fit each other.
    """

    def __init__(
        self,
        model: SlotModel,
        *,
        dynamics: SlotDynamics,
        outcome: OutcomeHead,
        weights: Mapping[str, float],
        num_context: int,
        horizon: int,
        num_decoded: int,
        rollout: Rollout,
    ) -> None:
        super().__init__()
        if set(weights) != set(LOSSES):
            raise ValueError(f"expected weights of {sorted(LOSSES)}, got {sorted(weights)}")
        if min(num_context, horizon, num_decoded) < 1:
            raise ValueError(
                "expected num_context, horizon and num_decoded of at least 1, got "
                f"{num_context}, {horizon} and {num_decoded}"
            )
        if rollout not in get_args(Rollout):
            raise ValueError(
                f"expected rollout to be one of {', '.join(get_args(Rollout))}, got {rollout!r}"
            )
        if dynamics.slot_dim != model.encoder.slot_dim:
            raise ValueError(
                f"expected a dynamics of slot_dim {model.encoder.slot_dim} as the encoder's, got "
                f"{dynamics.slot_dim}"
            )
        if weights["image"] and not draws_imagined(model.decoder):
            raise ValueError(
                "expected a decoder of pixels that draws slots alone for weights.image above 0, "
                f"got {type(model.decoder).__name__}; set weights.image=0, or train slots with "
                "decoder=mixer or broadcast"
            )
        self.weights = {name: float(weights[name]) for name in LOSSES}
        self.is_frozen = not self.weights["model"]
        self.model = model.requires_grad_(False).eval() if self.is_frozen else model
        self.dynamics = dynamics
        self.outcome = outcome
        if not weights["reward"] and not weights["continue"]:
            outcome.requires_grad_(False)
        for name, layer in (("reward", outcome.to_reward), ("continue", outcome.to_goes_on)):
            if not weights[name]:
                layer.requires_grad_(False)
        self.num_context, self.horizon = num_context, horizon
        self.num_decoded, self.rollout = num_decoded, rollout

    @property
    def clip_length(self) -> int:
        """Frames of the clips that it is trained on: C + H."""
        return self.num_context + self.horizon

    def train(self, mode: bool = True) -> WorldModel:
        """Set the mode; a frozen slot model stays in `eval`."""
        super().train(mode)
        if self.is_frozen:
            self.model.eval()
        return self

    def take_codes(self) -> None:
        """Tell a dynamics that speaks of codes what the trained encoder's stand for.

        Raises:
            ValueError: if the encoder's slots are not such codes.
        """
        for part in self.dynamics.modules():
            if isinstance(part, CodeReader):
                part.take_codes(self.model.encoder)

    def encode(self, clip: Clip) -> SlotOutput:
        """Slots of a clip, in an order that stays over its frames."""
        return self._aligned(self.model.encode(clip))

    @torch.no_grad()
    def slots_of(self, clip: Clip) -> Tensor:
        """Slots (B,T,K,D) of what `forward` looks at of a clip, as they may be kept beside it."""
        return self.encode(clip[: self.clip_length].to_float()).slots

    def forward(self, clip: Clip) -> WorldModelOutput:
        """Roll out over a clip of at least `clip_length` frames, and compare with what came.

        A frozen slot model is not asked for slots that the clip has, see `slots_of`.

        Raises:
            ValueError: if the clip is too short, or lacks actions, rewards or terminations; or it
                has slots though the slot model learns.
        """
        clip = self._checked(clip)
        losses: dict[str, Tensor] = {}
        if self.is_frozen:
            slots = self.slots_of(clip) if clip.slots is None else clip.slots
        else:
            output = self.model(clip)
            slots = self._aligned(output.encoded).slots
            losses["model"] = output.total
        num_given = self._num_given()
        prediction = self._foretell(slots, self._action(clip), clip.is_first, num_given)
        is_same = (~clip.is_first[:, 1:]).int().cumprod(1).bool()
        losses |= self._losses(clip, slots, prediction, is_same, num_given)
        return WorldModelOutput(losses, self.weighted(losses), prediction)

    # --- one pass -------------------------------------------------------------------------------

    def _checked(self, clip: Clip) -> Clip:
        if clip.num_frames < self.clip_length:
            raise ValueError(
                f"expected clips of {self.clip_length} frames, num_context={self.num_context} and "
                f"horizon={self.horizon}, got {clip.num_frames}"
            )
        if clip.slots is not None and not self.is_frozen:
            raise ValueError("expected clips without slots for a slot model that learns, got some")
        for name, value in (("reward", clip.reward), ("continue", clip.terminated)):
            if self.weights[name] and value is None:
                lacking = "rewards" if name == "reward" else "terminations"
                raise ValueError(
                    f"expected episodes with {lacking} to learn from, got none; set "
                    f"weights.{name}=0 to leave them out"
                )
        return clip[: self.clip_length].to_float()

    def _action(self, clip: Clip) -> Tensor | None:
        has_actions = self.dynamics.num_actions or self.dynamics.action_dim
        return clip.action if has_actions else None

    def _aligned(self, encoded: SlotOutput) -> SlotOutput:
        if not self.model.sees_single_frames:
            return encoded
        order = align_over_time(encoded.slots)

        def moved(value: Tensor) -> Tensor:
            index = order.view(*order.shape, *[1] * (value.ndim - 3))
            return value.gather(2, index.expand_as(value))

        codes = None if encoded.codes is None else moved(encoded.codes)
        return SlotOutput(moved(encoded.slots), moved(encoded.attn), codes=codes)

    def _num_given(self) -> int:
        """The frames at the start that the dynamics is given as they came."""
        if self.rollout == "none":
            return self.clip_length
        is_whole = self.rollout == "whole" or not self.training or bool(torch.rand(()) < 0.5)
        return self.num_context + (0 if is_whole else int(torch.randint(self.horizon, ())))

    def _foretell(
        self, slots: Tensor, action: Tensor | None, is_first: Tensor, num_given: int
    ) -> SlotPrediction:
        """What is said of every frame after the first: from true slots, then from its own."""
        state = self.dynamics.initial_state(len(slots))
        num_read = num_given - 1
        num_steps = slots.shape[1] - num_given
        parts = []
        if num_read:
            done = None if action is None else action[:, :num_read]
            read, state = self.dynamics.observe(
                slots[:, :num_read], done, state, is_first[:, :num_read]
            )
            parts.append(read)
        if num_steps:
            rest = None if action is None else action[:, num_read:-1]
            imagined = self.dynamics.imagine(slots[:, num_read], state, rest, num_steps)
            parts.append(imagined.prediction)
        return SlotPrediction.joined(parts)

    def _losses(
        self,
        clip: Clip,
        slots: Tensor,
        prediction: SlotPrediction,
        is_same: Tensor,
        num_given: int,
    ) -> dict[str, Tensor]:
        losses = self.compare(
            slots,
            self._action(clip),
            prediction,
            reward=clip.reward,
            terminated=clip.terminated,
            is_counted=is_same,
            is_first=clip.is_first,
            num_given=num_given,
        )
        if self.weights["image"]:
            losses["image"] = self._image_loss(clip.video, prediction.slots, is_same)
        return losses

    def _image_loss(self, video: Tensor, slots: Tensor, is_same: Tensor) -> Tensor:
        order = torch.randperm(self.horizon, device=slots.device)
        steps = order[: self.num_decoded].sort().values + self.num_context - 1
        decoded: DecoderOutput = self.model.decoder(slots[:, steps])
        error = (decoded.recon - video[:, steps + 1]).float().square().mean((-3, -2, -1))
        return mean_of_counted(error, is_same[:, steps])


def draws_imagined(decoder: Decoder) -> bool:
    """Whether a decoder makes pixels of slots alone, so that imagined ones can be seen."""
    return decoder.space == "pixels" and not decoder.needs_target and not decoder.needs_attn
