"""The checks notice each broken promise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocrl.check import ContractError, check_decoder, check_dynamics, check_slot_encoder
from ocrl.interfaces import (
    Backbone,
    Decoder,
    RecurrentSlotEncoder,
    SlotDynamics,
    SlotEncoder,
    State,
)
from ocrl.types import Camera, DecoderOutput, Imagined, SlotOutput, SlotPrediction


class Pixels(Backbone):
    """The pixels of a 2x2 frame as tokens."""

    out_dim = 3
    image_size = (2, 2)
    grid = (2, 2)

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        return frames.flatten(2).mT


class Running(RecurrentSlotEncoder):
    """Slots are running means of what a softmax over slots picks; breaks on demand."""

    num_slots = 2
    slot_dim = 3

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.backbone = Pixels()
        self.start = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]))
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Parameter(torch.zeros(1)) if fault == "unused parameter" else None
        self.hidden = torch.randn(1) if fault == "state outside of state_dict" else None
        self.calls = 0

    def initial_state(self, batch_size: int) -> State:
        return {"slots": self.start.expand(batch_size, -1, -1).clone()}

    def forward(self, video: Tensor, is_first: Tensor, **hints: Any) -> SlotOutput:
        output = super().forward(video, is_first, **hints)
        if self.fault == "forward differs":
            return SlotOutput(output.slots + 1e-2, output.attn)
        if self.fault == "shape":
            return SlotOutput(output.slots[:, :1], output.attn[:, :1])
        return output

    def bind(
        self, tokens: Tensor, state: State, is_first: Tensor | bool, **hints: Any
    ) -> tuple[SlotOutput, State]:
        first = torch.as_tensor(is_first).view(-1, 1, 1)
        if self.fault == "is_first is ignored" and not isinstance(is_first, bool):
            first = torch.zeros_like(first)
        slots = torch.where(first, self.start, state["slots"])
        logits = slots @ tokens.mT
        axis = 2 if self.fault == "softmax over tokens" else 1
        attn = logits.float().softmax(axis)
        slots = (slots + attn.to(tokens.dtype) @ tokens) / 2
        if self.fault == "samples touch":
            slots = slots + 0.1 * tokens.mean((0, 1))
        if self.fault == "place in the batch":
            slots = slots + torch.arange(len(slots)).view(-1, 1, 1)
        if self.fault == "random in eval":
            slots = slots + torch.randn(1)
        if self.fault == "order of slots":
            slots = slots + torch.tensor([[0.0], [0.1]])
        if self.fault == "half under autocast":
            slots = slots @ torch.eye(3)
        if self.fault == "changes its state":
            state["slots"].mul_(0.5)
        if self.fault == "nan":
            slots = slots / 0 * 0
        if self.hidden is not None:
            slots = slots + self.hidden
        kept = (attn.sum(-1) > 8)[:, None]
        output = SlotOutput(slots[:, None], attn[:, None], slot_mask=kept)
        return output, {**state, "slots": slots}


FAULTS = {
    "": "",
    "shape": r"expected slots \(B,T,K,D\)",
    "forward differs": "forward and a scan of step at frame 0",
    "is_first is ignored": "forward and a scan of step|is_first",
    "softmax over tokens": "attn to sum to 1 over slots",
    "samples touch": "another sample's frames changed slots",
    "place in the batch": "place in the batch changed slots",
    "random in eval": "determinism",
    "order of slots": "permuted slots in the state",
    "half under autocast": "float32 slots under autocast",
    "changes its state": "leave its state",
    "state outside of state_dict": "state_dict loaded into another instance",
    "unused parameter": r"got none on \['unused'\]",
    "nan": "attn to sum to 1 over slots, got an error of nan",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_slot_encoder(fault: str) -> None:
    torch.manual_seed(0)
    encoder: SlotEncoder = Running(fault)
    twin = Running(fault)
    if not fault:
        check_slot_encoder(encoder, twin=twin)
        return
    with pytest.raises(ContractError, match=FAULTS[fault]):
        check_slot_encoder(encoder, twin=twin)


def test_the_order_of_slots_may_be_left_out() -> None:
    check_slot_encoder(Running("order of slots"), is_equivariant=False)


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = Running().train()
    before = encoder.start.detach().clone()
    check_slot_encoder(encoder)
    assert encoder.training and encoder.start.grad is None
    assert torch.equal(encoder.start, before)


class PosedPixels(Pixels):
    """Pixels of all views, each with the place of its camera added; or of the first frame's."""

    needs_camera = True

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        assert camera is not None and camera.extrinsics.shape[:3] == (len(frames), 1, 2)
        places = camera.extrinsics[:, 0, :, :3, 3]
        if self.fault == "the first frame's":
            places = places[:1].expand_as(places)
        return (frames.flatten(3) + places[..., None]).mT.flatten(1, 2)


def test_an_encoder_of_posed_views_reads_the_cameras_of_each_frame() -> None:
    camera = Camera(torch.eye(3).expand(3, 5, 2, 3, 3), torch.randn(3, 5, 2, 4, 4))
    encoder = Running()
    encoder.backbone = PosedPixels()
    check_slot_encoder(encoder, num_views=2, camera=camera)
    encoder.backbone = PosedPixels("the first frame's")
    with pytest.raises(ContractError, match="forward and a scan of step at frame 1"):
        check_slot_encoder(encoder, num_views=2, camera=camera)


class Mixture(Decoder):
    """Each slot paints a 2x2 frame; breaks on demand."""

    space = "pixels"

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.paint = nn.Linear(3, 2 * 2 * 4)
        self.unused = nn.Parameter(torch.zeros(1)) if fault == "unused parameter" else None

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        if self.fault == "slots cut off":
            slots = slots.detach()
        painted = self.paint(slots).unflatten(-1, (4, 2, 2))
        logits, parts = painted[..., 0, :, :], painted[..., 1:, :, :]
        if self.fault == "order of slots":
            logits = logits + torch.arange(slots.shape[2]).view(-1, 1, 1)
        masks = logits.softmax(1 if self.fault == "softmax over frames" else 2)
        recon = (masks[..., None, :, :] * parts).sum(2)
        if self.fault == "frames touch":
            recon = recon + recon.mean(1, keepdim=True)
        if self.fault == "random in eval":
            recon = recon + torch.randn(1)
        if self.fault == "nan":
            recon = recon / 0 * 0
        if attn is not None:
            masks = attn.unflatten(-1, (2, 2))
        if self.fault == "shape":
            masks = masks.flatten(3)
        return DecoderOutput(recon, masks, parts)


DECODER_FAULTS = {
    "": "",
    "shape": r"expected masks \(B,T,K,h,w\)",
    "softmax over frames": "masks to sum to 1 over slots",
    "frames touch": "recon of untouched frames",
    "random in eval": "determinism",
    "order of slots": "masks of permuted slots",
    "slots cut off": "expected a gradient on the slots",
    "unused parameter": r"got none on \['unused'\]",
    "nan": "finite recon",
}


@pytest.mark.parametrize("fault", DECODER_FAULTS)
def test_decoder(fault: str) -> None:
    torch.manual_seed(0)
    if not fault:
        check_decoder(Mixture(), num_slots=3, slot_dim=3, twin=Mixture())
        return
    with pytest.raises(ContractError, match=DECODER_FAULTS[fault]):
        check_decoder(Mixture(fault), num_slots=3, slot_dim=3)


def test_the_order_of_decoded_slots_may_be_left_out() -> None:
    check_decoder(Mixture("order of slots"), num_slots=3, slot_dim=3, is_equivariant=False)


def test_attention_is_given_where_asked_for_and_moves_with_the_slots() -> None:
    check_decoder(Mixture(), num_slots=3, slot_dim=3, num_tokens=4)


class Drifting(SlotDynamics):
    """Slots move on by their mean so far; breaks on demand."""

    slot_dim, num_actions, action_dim = 3, 0, 2

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.map = nn.Linear(3, 3)
        self.from_action = nn.Linear(2, 3)
        self.unused = nn.Parameter(torch.zeros(1)) if fault == "unused parameter" else None

    def initial_state(self, batch_size: int) -> State:
        return {"sum": torch.zeros(batch_size, 1, 3), "age": torch.zeros(batch_size, 1, 1)}

    def imagine(self, slots: Tensor, state: State, policy: Any, horizon: int) -> Imagined:
        imagined = super().imagine(slots, state, policy, horizon)
        if self.fault == "imagines something else":
            return replace(
                imagined, prediction=replace(imagined.prediction, slots=imagined.slots + 1)
            )
        return imagined

    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        assert action is not None
        total, age, slots = state["sum"], state["age"], []
        for t in range(carried.shape[1]):
            first = is_first[:, t, None, None]
            if self.fault == "is_first is ignored":
                first = torch.zeros_like(first)
            total = torch.where(first, 0.0, total) + carried[:, t]
            age = torch.where(first, 0.0, age) + 1
            slots.append(self.map(total / age) + self.from_action(action[:, t])[:, None])
        following = torch.stack(slots, dim=1).float()
        if self.fault == "forward differs":
            following = following + 1e-2 * carried.shape[1]
        if self.fault == "sees the future":
            following = following + carried.mean(1, keepdim=True)
        if self.fault == "samples touch":
            following = following + 0.1 * carried.mean((0, 2), keepdim=True)
        if self.fault == "place in the batch":
            following = following + torch.arange(len(slots[0])).view(-1, 1, 1, 1)
        if self.fault == "random in eval":
            following = following + torch.randn(1)
        if self.fault == "order of slots":
            following = following + torch.arange(following.shape[2])[:, None]
        if self.fault == "half under autocast":
            following = self.map(following)
        if self.fault == "changes its state":
            state["age"].add_(1)
        if self.fault == "nan":
            following = following / 0 * 0
        if self.fault == "shape":
            following = following[:, :1]
        if self.fault == "no gradient on the slots":
            learned = self.map(torch.ones(3)) + self.from_action(action)[:, :, None]
            following = following.detach() + learned
        return SlotPrediction(following, following), {"sum": total, "age": age}


def test_a_sound_dynamics_passes() -> None:
    check_dynamics(Drifting(), num_slots=4, twin=Drifting())
    check_dynamics(Drifting(), num_slots=4)
    check_dynamics(Drifting("order of slots"), num_slots=4, is_equivariant=False)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", "B,T,K,D"),
        ("nan", "finite"),
        ("random in eval", "determinism"),
        ("forward differs", "scan of step"),
        ("sees the future", "scan of step"),
        ("changes its state", "leave its state"),
        ("is_first is ignored", "fresh start"),
        ("samples touch", "another sample"),
        ("place in the batch", "place in the batch"),
        ("order of slots", "permuted"),
        ("imagines something else", "first imagined step"),
        ("half under autocast", "float32"),
        ("unused parameter", "unused"),
        ("no gradient on the slots", "gradient on the slots"),
    ],
)
def test_each_broken_promise_of_a_dynamics_is_noticed(fault: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_dynamics(Drifting(fault), num_slots=4, twin=Drifting(fault))
