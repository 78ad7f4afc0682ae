"""The contracts of encoders, decoders and dynamics as functions that say which one is broken.

B batch, T frames, V views, K slots, D slot size, N tokens, A action size, C H W image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ocrl.interfaces import Decoder, RecurrentSlotEncoder, SlotDynamics, SlotEncoder
from ocrl.types import Camera, DecoderOutput, SlotOutput

TOLERANCE = 1e-4
"""Absolute and relative, in float32."""
BATCH_SIZE = 3
NUM_FRAMES = 5


class _Hints(TypedDict):
    """What an encoder gets beside the frames."""

    condition: Tensor | None
    camera: Camera | None


class ContractError(AssertionError):
    """A contract of `ocrl.interfaces` does not hold."""


def check_slot_encoder(
    encoder: SlotEncoder,
    *,
    twin: SlotEncoder | None = None,
    num_views: int | None = None,
    condition: Tensor | None = None,
    camera: Camera | None = None,
    is_equivariant: bool = True,
) -> None:
    """Check the contract of `SlotEncoder` on random frames.

    Asserted: shapes; `attn` sums to 1 over slots; the same in `eval()` every time; `forward`
    equals a scan of `step`, which changes no state in place; `is_first` inside a clip equals a
    fresh start there; no sample touches another; permuted slots in the state give permuted
    slots; float32 slots and `attn` under autocast; weights survive a `state_dict`; gradients reach
    every parameter that wants one.

    Args:
        encoder: what to check; its mode and weights are left as they are.
        twin: another instance of the same configuration, to load the weights into; a copy of
            `encoder` if None, which misses state that only a constructor draws.
        num_views: V; no view axis if None.
        condition: (3,M,4) boxes or another hint, for initializers that need one.
        camera: (3,5,V,...) cameras, for backbones that know about poses.
        is_equivariant: whether slots of the state may be permuted; read for recurrent encoders.

    Raises:
        ContractError: if a part of the contract does not hold.
    """
    encoder = copy.deepcopy(encoder).eval()
    device = next(encoder.parameters()).device
    generator = torch.Generator().manual_seed(0)
    views = () if num_views is None else (num_views,)
    shape = (BATCH_SIZE, NUM_FRAMES, *views, 3, *encoder.backbone.image_size)
    video = torch.rand(shape, generator=generator).to(device)
    is_first = torch.zeros(BATCH_SIZE, NUM_FRAMES, dtype=torch.bool, device=device)
    is_first[0, 0] = is_first[1, 2] = is_first[2, 3] = True
    hints: _Hints = {"condition": condition, "camera": camera}
    with torch.no_grad():
        output = encoder(video, is_first, **hints)
        _check_slot_output(encoder, output)
        again = encoder(video, is_first, **hints)
        _compare(output, again, "determinism in eval(): a second call", tolerance=0.0)
        _check_scan(encoder, video, is_first, hints, output)
        _check_fresh_start(encoder, video, is_first, hints)
        _check_samples(encoder, video, is_first, hints, output)
        if is_equivariant and isinstance(encoder, RecurrentSlotEncoder):
            _check_slot_permutation(encoder, video, hints)
        _check_autocast(encoder, video, is_first, hints)
        other = _reload(encoder, twin)(video, is_first, **hints)
        _compare(output, other, "a state_dict loaded into another instance", tolerance=0.0)
    _check_gradients(encoder, lambda model: _tensors(model(video, is_first, **hints)), "the slots")


def check_decoder(
    decoder: Decoder,
    *,
    num_slots: int,
    slot_dim: int,
    twin: Decoder | None = None,
    target: Tensor | None = None,
    num_tokens: int | None = None,
    is_equivariant: bool = True,
) -> None:
    """Check the contract of `Decoder` on random slots.

    Asserted: shapes; `masks` sum to 1 over slots; the same in `eval()` every time; no sample and
    no frame touches another; permuted slots give permuted masks and the same reconstruction (a
    permuted one if it is a set); finite under autocast; weights survive a `state_dict`; gradients
    reach the slots and every parameter that wants one.

    Args:
        decoder: what to check; its mode and weights are left as they are.
        num_slots: K.
        slot_dim: D.
        twin: see `check_slot_encoder`.
        target: (3,5,...) for decoders that read one.
        num_tokens: N, for decoders that draw where the encoder saw a slot; no `attn` if None.
        is_equivariant: whether the order of slots must not matter.

    Raises:
        ContractError: if a part of the contract does not hold.
    """
    decoder = copy.deepcopy(decoder).eval()
    parameter = next(decoder.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH_SIZE, NUM_FRAMES, num_slots)
    slots = torch.randn(*shape, slot_dim, generator=generator).to(parameter.device)
    attn = None
    if num_tokens is not None:
        logits = torch.randn(*shape, num_tokens, generator=generator)
        attn = logits.softmax(2).to(parameter.device)
    with torch.no_grad():
        output: DecoderOutput = decoder(slots, target, attn=attn)
        _check_decoder_output(output, num_slots)
        again = decoder(slots, target, attn=attn)
        _compare(output, again, "determinism in eval(): a second call", tolerance=0.0)
        changed = slots.clone()
        changed[0], changed[:, 0] = 1.0, -1.0
        rest = _named_dict(decoder(changed, target, attn=attn))
        for name, value in _named(output):
            _close(value[1:, 1:], rest[name][1:, 1:], f"{name} of untouched frames")
        if is_equivariant:
            order = torch.arange(num_slots).roll(1)
            permuted: DecoderOutput = decoder(
                slots[:, :, order], target, attn=None if attn is None else attn[:, :, order]
            )
            _close(output.masks[:, :, order], permuted.masks, "masks of permuted slots")
            # A set is told slot by slot; everything else is what the slots make together.
            recon = output.recon[:, :, order] if decoder.space == "set" else output.recon
            _close(recon, permuted.recon, "recon of permuted slots")
        with torch.autocast(slots.device.type, dtype=torch.bfloat16):
            mixed: DecoderOutput = decoder(slots, target, attn=attn)
        _sums_to_one(mixed.masks, "masks under autocast", tolerance=2e-2)
        _finite(mixed.recon, "recon under autocast")
        other = _reload(decoder, twin)(slots, target, attn=attn)
        _compare(output, other, "a state_dict loaded into another instance", tolerance=0.0)
    slots.requires_grad_(True)
    _check_gradients(
        decoder, lambda model: _tensors(model(slots, target, attn=attn)), "what is decoded"
    )
    if slots.grad is None or not slots.grad.abs().sum() > 0:
        raise ContractError("expected a gradient on the slots, got none")


def check_dynamics(
    dynamics: SlotDynamics,
    *,
    num_slots: int,
    twin: SlotDynamics | None = None,
    is_equivariant: bool = True,
) -> None:
    """Check the contract of `SlotDynamics` on random slots.

    Asserted: shapes; the same in `eval()` every time; `forward` equals a scan of `step`, which
    changes no state in place, and a clip read in two parts; `is_first` inside a clip equals a fresh
    start there; nothing is foretold from later frames; no sample touches another; permuted slots
    give permuted predictions; what is imagined with given actions equals what a policy that gives
    them imagines, and its first step is `step`; finite float32 slots under autocast; weights
    survive a `state_dict`; gradients reach the slots and every parameter that wants one, through
    what is imagined too.

    Args:
        dynamics: what to check; its mode and weights are left as they are.
        num_slots: K.
        twin: see `check_slot_encoder`.
        is_equivariant: whether the order of slots must not matter.

    Raises:
        ContractError: if a part of the contract does not hold.
    """
    dynamics = copy.deepcopy(dynamics).eval()
    device = next(dynamics.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH_SIZE, NUM_FRAMES)
    slots = torch.randn(*shape, num_slots, dynamics.slot_dim, generator=generator).to(device)
    action: Tensor | None = None
    if dynamics.num_actions:
        action = torch.randint(dynamics.num_actions, shape, generator=generator).to(device)
    elif dynamics.action_dim:
        action = torch.randn(*shape, dynamics.action_dim, generator=generator).to(device)
    is_first = torch.zeros(shape, dtype=torch.bool, device=device)
    is_first[0, 0] = is_first[1, 2] = is_first[2, 3] = True
    with torch.no_grad():
        output = dynamics(slots, action, is_first)
        if output.shape != slots.shape:
            raise ContractError(
                f"expected slots (B,T,K,D) = {tuple(slots.shape)}, got {tuple(output.shape)}"
            )
        _finite(output, "slots")
        again = dynamics(slots, action, is_first)
        _close(output, again, "determinism in eval(): a second call", tolerance=0.0)
        _check_dynamics_scan(dynamics, slots, action, is_first, output)
        _check_dynamics_starts(dynamics, slots, action)
        _check_dynamics_samples(dynamics, slots, action, is_first, output)
        if is_equivariant:
            order = torch.arange(num_slots, device=device).roll(1)
            permuted = dynamics(slots[:, :, order], action, is_first)
            _close(output[:, :, order], permuted, "permuted slots")
        _check_imagination(dynamics, slots, action)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mixed = dynamics(slots, action, is_first)
        if mixed.dtype != torch.float32:
            raise ContractError(f"expected float32 slots under autocast, got {mixed.dtype}")
        _finite(mixed, "slots under autocast")
        other = _reload(dynamics, twin)(slots, action, is_first)
        _close(output, other, "a state_dict loaded into another instance", tolerance=0.0)
    slots.requires_grad_(True)
    _check_gradients(dynamics, lambda model: _futures(model, slots, action, is_first), "the future")
    if slots.grad is None or not slots.grad.abs().sum() > 0:
        raise ContractError("expected a gradient on the slots, got none")


def _futures(
    dynamics: nn.Module, slots: Tensor, action: Tensor | None, is_first: Tensor
) -> list[Tensor]:
    """Everything that a dynamics may learn from: a prediction, what is imagined, its costs."""
    assert isinstance(dynamics, SlotDynamics)
    state = dynamics.initial_state(len(slots))
    prediction, state = dynamics.observe(slots, action, state, is_first)
    imagined = dynamics.imagine(slots[:, -1], state, action, NUM_FRAMES)
    costs = dynamics.costs(prediction, slots)
    return [prediction.slots, imagined.slots, *costs.values()]


def _check_dynamics_scan(
    dynamics: SlotDynamics,
    slots: Tensor,
    action: Tensor | None,
    is_first: Tensor,
    output: Tensor,
) -> None:
    state = dynamics.initial_state(BATCH_SIZE)
    for t in range(NUM_FRAMES):
        before = copy.deepcopy(state)
        done = None if action is None else action[:, t]
        step, new_state = dynamics.step(slots[:, t], done, state, is_first[:, t])
        if not all(map(torch.equal, _leaves(before), _leaves(state))):
            raise ContractError(f"expected step to leave its state as it was, changed at frame {t}")
        _close(output[:, t], step, f"forward and a scan of step at frame {t}")
        state = new_state
    state = dynamics.initial_state(BATCH_SIZE)
    for part in (slice(0, 3), slice(3, None)):
        done = None if action is None else action[:, part]
        found, state = dynamics.observe(slots[:, part], done, state, is_first[:, part])
        _close(output[:, part], found.slots, "forward and a clip read in two parts")


def _check_dynamics_starts(dynamics: SlotDynamics, slots: Tensor, action: Tensor | None) -> None:
    start = 2
    first = torch.zeros(slots.shape[:2], dtype=torch.bool, device=slots.device)
    first[:, start] = True
    later = None if action is None else action[:, start:]
    whole = dynamics(slots, action, first)
    fresh = dynamics(slots[:, start:], later, torch.zeros_like(first[:, start:]))
    _close(whole[:, start:], fresh, "is_first inside a clip and a fresh start")
    changed = slots.clone()
    changed[:, start:] = -changed[:, start:]
    rest = dynamics(changed, action, torch.zeros_like(first))
    plain = dynamics(slots, action, torch.zeros_like(first))
    _close(plain[:, :start], rest[:, :start], "later frames changed earlier predictions")


def _check_dynamics_samples(
    dynamics: SlotDynamics,
    slots: Tensor,
    action: Tensor | None,
    is_first: Tensor,
    output: Tensor,
) -> None:
    changed = slots.clone()
    changed[0] = 1 - changed[0]
    rest = dynamics(changed, action, is_first)
    _close(output[1:], rest[1:], "another sample's slots changed a prediction")
    order = torch.arange(BATCH_SIZE, device=slots.device).roll(1)
    moved_action = None if action is None else action[order]
    moved = dynamics(slots[order], moved_action, is_first[order])
    _close(output[order], moved, "the place in the batch changed a prediction")


def _check_imagination(dynamics: SlotDynamics, slots: Tensor, action: Tensor | None) -> None:
    first = torch.zeros(slots.shape[:2], dtype=torch.bool, device=slots.device)
    context = None if action is None else action[:, :2]
    state = dynamics.initial_state(BATCH_SIZE)
    _, state = dynamics.observe(slots[:, :2], context, state, first[:, :2])
    done = None if action is None else action[:, 2]
    step, _ = dynamics.step(slots[:, 2], done, state, first[:, 2])
    horizon = NUM_FRAMES - 2
    rest = None if action is None else action[:, 2:]
    given = dynamics.imagine(slots[:, 2], state, rest, horizon)
    if given.slots.shape != slots[:, 2:].shape:
        raise ContractError(
            f"expected imagined slots (B,H,K,D) = {tuple(slots[:, 2:].shape)}, "
            f"got {tuple(given.slots.shape)}"
        )
    _close(step, given.slots[:, 0], "the first imagined step and step")
    if rest is not None:
        actions = iter(rest.unbind(1))
        drawn = dynamics.imagine(slots[:, 2], state, lambda _: next(actions), horizon)
        _close(given.slots, drawn.slots, "given actions and a policy that gives them")


def _check_slot_output(encoder: SlotEncoder, output: SlotOutput) -> None:
    expected = (BATCH_SIZE, NUM_FRAMES, encoder.num_slots, encoder.slot_dim)
    if tuple(output.slots.shape) != expected:
        raise ContractError(
            f"expected slots (B,T,K,D) = {expected}, got {tuple(output.slots.shape)}"
        )
    if output.attn.ndim != 4 or tuple(output.attn.shape[:3]) != expected[:3]:
        raise ContractError(
            f"expected attn (B,T,K,N) = {expected[:3]} + (N,), got {tuple(output.attn.shape)}"
        )
    cells = encoder.backbone.grid[0] * encoder.backbone.grid[1]
    if output.attn.shape[-1] % cells:
        raise ContractError(
            f"expected attn over V * {cells} tokens of the backbone's grid, "
            f"got {output.attn.shape[-1]}"
        )
    _sums_to_one(output.attn, "attn", tolerance=TOLERANCE)
    _finite(output.slots, "slots")


def _check_decoder_output(output: DecoderOutput, num_slots: int) -> None:
    expected = (BATCH_SIZE, NUM_FRAMES, num_slots)
    if output.masks.ndim != 5 or tuple(output.masks.shape[:3]) != expected:
        raise ContractError(
            f"expected masks (B,T,K,h,w) = {expected} + (h, w), got {tuple(output.masks.shape)}"
        )
    if tuple(output.recon.shape[:2]) != expected[:2]:
        raise ContractError(f"expected recon (B,T,...), got {tuple(output.recon.shape)}")
    _sums_to_one(output.masks, "masks", tolerance=TOLERANCE)
    _finite(output.recon, "recon")


def _check_scan(
    encoder: SlotEncoder,
    video: Tensor,
    is_first: Tensor,
    hints: _Hints,
    output: SlotOutput,
) -> None:
    state = encoder.initial_state(BATCH_SIZE)
    for t in range(NUM_FRAMES):
        before = copy.deepcopy(state)
        step, new_state = encoder.step(
            video[:, t], state, is_first[:, t], **_cut(hints, slice(t, t + 1))
        )
        kept, now = _leaves(before), _leaves(state)
        if len(kept) != len(now) or not all(map(torch.equal, kept, now)):
            raise ContractError(f"expected step to leave its state as it was, changed at frame {t}")
        _compare(_frames(output, slice(t, t + 1)), step, f"forward and a scan of step at frame {t}")
        state = new_state


def _check_fresh_start(
    encoder: SlotEncoder, video: Tensor, is_first: Tensor, hints: _Hints
) -> None:
    start = 2
    first = torch.zeros_like(is_first)
    first[:, start] = True
    first[0, start] = False
    whole = _frames(encoder(video, first, **hints), slice(start, None))
    fresh = encoder(video[:, start:], first[:, start:], **_cut(hints, slice(start, None)))
    for name, value in _named(whole):
        other = _named_dict(fresh)[name]
        _close(value[1:], other[1:], f"is_first inside a clip and a fresh start: {name}")
    # All samples at once take another path through an encoder that looks at is_first.
    first[:, start] = True
    whole = _frames(encoder(video, first, **hints), slice(start, None))
    _compare(whole, fresh, "is_first of all samples inside a clip and a fresh start")


def _check_samples(
    encoder: SlotEncoder,
    video: Tensor,
    is_first: Tensor,
    hints: _Hints,
    output: SlotOutput,
) -> None:
    changed = video.clone()
    changed[0] = 1 - changed[0]
    rest = _named_dict(encoder(changed, is_first, **hints))
    order = torch.arange(BATCH_SIZE, device=video.device).roll(1)
    moved_hints: _Hints = {
        "condition": None if hints["condition"] is None else hints["condition"][order],
        "camera": None if hints["camera"] is None else hints["camera"].map(lambda x: x[order]),
    }
    moved = _named_dict(encoder(video[order], is_first[order], **moved_hints))
    for name, value in _named(output):
        _close(value[1:], rest[name][1:], f"another sample's frames changed {name}")
        _close(value[order], moved[name], f"the place in the batch changed {name}")


def _check_slot_permutation(encoder: SlotEncoder, video: Tensor, hints: _Hints) -> None:
    num_slots = encoder.num_slots
    order = torch.arange(num_slots, device=video.device).roll(1)
    first = torch.ones(BATCH_SIZE, dtype=torch.bool, device=video.device)
    start = encoder.initial_state(BATCH_SIZE)
    _, state = encoder.step(video[:, 0], start, first, **_cut(hints, slice(0, 1)))

    def permuted(leaf: Tensor) -> Tensor:
        is_per_slot = leaf.ndim >= 3 and leaf.shape[1] == num_slots
        return leaf[:, order] if is_per_slot else leaf

    following = _cut(hints, slice(1, 2))
    plain, _ = encoder.step(video[:, 1], state, ~first, **following)
    state = torch.utils._pytree.tree_map(permuted, state)
    moved, _ = encoder.step(video[:, 1], state, ~first, **following)
    _close(plain.slots[:, :, order], moved.slots, "permuted slots in the state: slots")
    _close(plain.attn[:, :, order], moved.attn, "permuted slots in the state: attn")


def _check_autocast(encoder: SlotEncoder, video: Tensor, is_first: Tensor, hints: _Hints) -> None:
    with torch.autocast(video.device.type, dtype=torch.bfloat16):
        output = encoder(video, is_first, **hints)
    for name in ("slots", "attn"):
        value = getattr(output, name)
        if value.dtype != torch.float32:
            raise ContractError(f"expected float32 {name} under autocast, got {value.dtype}")
    _finite(output.slots, "slots under autocast")
    _sums_to_one(output.attn, "attn under autocast", tolerance=TOLERANCE)


def _cut(hints: _Hints, time: slice) -> _Hints:
    camera = hints["camera"]
    return {"condition": hints["condition"], "camera": None if camera is None else camera[time]}


def _reload(module: nn.Module, twin: nn.Module | None) -> nn.Module:
    if twin is None:
        twin = copy.deepcopy(module)
        for value in twin.state_dict().values():
            value.zero_()
    else:
        twin = copy.deepcopy(twin).eval()
    twin.load_state_dict(module.state_dict())
    return twin


def _check_gradients(
    module: nn.Module, outputs: Callable[[nn.Module], Iterable[Tensor]], source: str
) -> None:
    module = copy.deepcopy(module).train()
    generator = torch.Generator().manual_seed(1)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value)

    with torch.no_grad():
        for parameter in module.parameters():
            # Layers that start at zero hold back the gradient of those before them.
            if parameter.requires_grad:
                parameter.add_(0.02 * noise(parameter))
    values = [value for value in outputs(module) if value.requires_grad]
    torch.stack([(value * noise(value)).sum() for value in values]).sum().backward()
    without = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    if without:
        raise ContractError(
            f"expected gradients from {source} on every parameter, got none on {without}"
        )


def _named(output: SlotOutput | DecoderOutput) -> list[tuple[str, Tensor]]:
    """The tensors of an output by name; all have B and T in front."""
    fields = (
        ("slots", "attn", "queries", "codes", "slot_mask")
        if isinstance(output, SlotOutput)
        else ("recon", "masks", "parts")
    )
    named = [(name, getattr(output, name)) for name in fields]
    named += [(f"aux[{name!r}]", value) for name, value in output.aux.items()]
    return [(name, value) for name, value in named if value is not None]


def _named_dict(output: SlotOutput | DecoderOutput) -> dict[str, Tensor]:
    return dict(_named(output))


def _tensors(output: SlotOutput | DecoderOutput) -> list[Tensor]:
    return [value for _, value in _named(output)]


def _frames(output: SlotOutput, time: slice) -> SlotOutput:
    cut = {name: value[:, time] for name, value in _named(output)}
    return SlotOutput(
        slots=cut["slots"],
        attn=cut["attn"],
        queries=cut.get("queries"),
        codes=cut.get("codes"),
        aux={name: value[:, time] for name, value in output.aux.items()},
        slot_mask=cut.get("slot_mask"),
    )


def _leaves(state: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def _compare(
    expected: SlotOutput | DecoderOutput,
    got: SlotOutput | DecoderOutput,
    what: str,
    tolerance: float = TOLERANCE,
) -> None:
    names, others = _named_dict(expected), _named_dict(got)
    if set(names) != set(others):
        raise ContractError(f"{what}: expected {sorted(names)}, got {sorted(others)}")
    for name, value in names.items():
        _close(value, others[name], f"{what}: {name}", tolerance)


def _close(expected: Tensor, got: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    if expected.shape != got.shape:
        raise ContractError(f"{what}: expected {tuple(expected.shape)}, got {tuple(got.shape)}")
    if not torch.allclose(expected.float(), got.float(), rtol=tolerance, atol=tolerance):
        difference = (expected.float() - got.float()).abs().max().item()
        raise ContractError(f"{what}: expected the same, got a difference of {difference:.3g}")


def _sums_to_one(shares: Tensor, what: str, *, tolerance: float) -> None:
    error = (shares.float().sum(2) - 1).abs().max().item()
    if not error <= tolerance:
        raise ContractError(f"expected {what} to sum to 1 over slots, got an error of {error:.3g}")
    if shares.min() < 0:
        raise ContractError(f"expected {what} of at least 0, got {shares.min().item():.3g}")


def _finite(value: Tensor, what: str) -> None:
    if not torch.isfinite(value).all():
        raise ContractError(f"expected finite {what}, got nan or infinite values")
