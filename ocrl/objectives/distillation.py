"""Learn where slots are from the decoder of a trained model.

B batch, T frames, K slots, N = h * w tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.interfaces import Backbone, Decoder, Objective, SlotEncoder, TaughtModule
from ocrl.matching import hungarian
from ocrl.types import Clip, DecoderOutput, SlotOutput


@torch.no_grad()
def matched_labels(masks: Tensor, attn: Tensor) -> Tensor:
    """Which slot of the student should hold each token.

    Each token belongs to one slot of the teacher and to one of the student; the slots of both are
    matched one to one for the largest sum of IoUs. A slot of the teacher that holds no token
    overlaps with every slot alike, and takes what the others leave.

    Args:
        masks: (...,K,N), the teacher's.
        attn: (...,K,N), the student's.

    Returns:
        (...,N) int64 in [0,K), for each token the partner of the teacher's slot that holds it.
    """
    num_slots, holder = masks.shape[-2], masks.argmax(-2)
    theirs, ours = (
        functional.one_hot(index, num_slots).float() for index in (holder, attn.argmax(-2))
    )
    overlap = theirs.mT @ ours
    union = theirs.sum(-2).unsqueeze(-1) + ours.sum(-2).unsqueeze(-2) - overlap
    partner = hungarian(overlap / union.clamp_min(1), maximize=True)
    return partner.gather(-1, holder)


class _Aside:
    """Holds a module that is no part of the module that has it: not in its state nor its copies."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Aside:
        return self

    def on(self, device: torch.device) -> Any:
        """The module, moved to the device if it is not there."""
        if next(self.module.parameters()).device != device:
            self.module.to(device)
        return self.module


class Distillation(Objective, TaughtModule):
    """The self-training of SPOT's second stage (Kakogeorgiou et al. 2024, arXiv 2312.00648).

    The decoder of a trained, frozen model, the teacher, says which tokens belong together. Its
    slots are matched to those of the student by the IoU of what they hold (`matched_labels`), and
    the student's attention learns by cross-entropy to give each token to the partner of the
    teacher's slot. Put a reconstruction of the teacher's features beside it.

    The cross-entropy is that of the logits of the last round of competition: their softmax over
    slots is `attn`, so that its logarithm is all that is needed, and any encoder can learn.
    `take_teacher` gives it the teacher, see `ocrl.checkpoint.load_teachers`.

    Differs from the published code in that the teacher's queries are those of `eval()`, without
    noise, and that logits more than 87 below the largest have no gradient.

    Args:
        teacher: where the trained model is, see `ocrl.interfaces.TaughtModule`.
        draws_order: let the teacher's decoder draw what it draws in training, for `decoder=spot`
            one of its orders, as in the paper; else it is in `eval()`. It never drops values.
    """

    def __init__(self, teacher: str | None, *, draws_order: bool) -> None:
        super().__init__()
        self.teacher_path = teacher
        self.draws_order = draws_order
        self._teacher: _Aside | None = None

    def take_teacher(self, teacher: nn.Module, *, student: nn.Module) -> None:
        """Learn from a model, see `TaughtModule.take_teacher`; it is changed in place.

        Frozen targets outside of the encoder that both have, such as `decoder.target`, get the
        teacher's weights in the student: a pretrained network has them already, one that was drawn
        at random would be another.

        Raises:
            ValueError: if the teacher has another number of slots, another image size or masks on
                another grid than the student's attention.
        """
        _check_fit(teacher, student=student, path=self.teacher_path)
        _share_targets(teacher, student)
        teacher.requires_grad_(False).eval()
        if self.draws_order:
            teacher.get_submodule("decoder").train()
            for module in teacher.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        self._teacher = _Aside(teacher)

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over (B,T,N), nats.

        Raises:
            ValueError: if there is no teacher.
        """
        attn = encoded.attn.float()
        labels = self._labels(clip, attn.detach())
        chosen = attn.gather(2, labels.unsqueeze(2))
        return -chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log().mean()

    @torch.compiler.disable
    @torch.no_grad()
    def _labels(self, clip: Clip, attn: Tensor) -> Tensor:
        """The student's slot (B,T,N) that should hold each token."""
        if self._teacher is None:
            raise ValueError("expected a teacher to learn from (take_teacher), got none")
        teacher = self._teacher.on(attn.device)
        theirs: SlotOutput = teacher.encode(clip)
        masks: Tensor = teacher.decoder(theirs.slots, clip.video, attn=theirs.attn).masks
        return matched_labels(masks.flatten(-2), attn)


def _check_fit(teacher: nn.Module, *, student: nn.Module, path: str | None) -> None:
    parts = dict(teacher.named_children())
    encoder, decoder = parts.get("encoder"), parts.get("decoder")
    own = student.get_submodule("encoder")
    if not isinstance(encoder, SlotEncoder) or not isinstance(decoder, Decoder):
        raise ValueError(
            f"expected a teacher with an encoder and a decoder at {path}, got {sorted(parts)}"
        )
    assert isinstance(own, SlotEncoder)
    facts = {
        "num_slots": (own.num_slots, encoder.num_slots),
        "image_size": (own.backbone.image_size, encoder.backbone.image_size),
        "grid": (own.backbone.grid, _mask_size(encoder, decoder)),
    }
    for name, (expected, got) in facts.items():
        if expected != got:
            raise ValueError(
                f"expected a teacher of the student's {name} {expected}, got {got} at {path}"
            )


@torch.no_grad()
def _mask_size(encoder: SlotEncoder, decoder: Decoder) -> tuple[int, int]:
    """(h, w) of the masks of a decoder, from a black frame."""
    num_tokens = encoder.backbone.grid[0] * encoder.backbone.grid[1]
    slots = torch.zeros(1, 1, encoder.num_slots, encoder.slot_dim)
    attn = torch.full((1, 1, encoder.num_slots, num_tokens), 1 / encoder.num_slots)
    decoded: DecoderOutput = decoder(
        slots, torch.zeros(1, 1, 3, *encoder.backbone.image_size), attn=attn
    )
    height, width = decoded.masks.shape[-2:]
    return height, width


def _share_targets(teacher: nn.Module, student: nn.Module) -> None:
    theirs = dict(teacher.named_modules())
    for name, module in student.named_modules():
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, Backbone) and is_frozen and not name.startswith("encoder."):
            weights = theirs[name].state_dict() if name in theirs else {}
            if _shapes(weights) == _shapes(module.state_dict()):
                module.load_state_dict(weights)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
