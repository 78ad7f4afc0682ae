"""From an observation of named parts to the vector that a policy's heads read.

B batch, K slots or objects, F features of one, C H W image, W numbers of vectors, M products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.spaces import Box, Space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ocrl import checkpoint
from ocrl.agents import spaces
from ocrl.agents.encoder_state import STATE, EncoderState, find_state
from ocrl.agents.pooling import Pooling
from ocrl.agents.vision import Vision
from ocrl.interfaces import SlotEncoder
from ocrl.nn.location import wins_a_cell
from ocrl.nn.multiplicative import MultiplicativeInteraction

OBJECTS = "objects"
"""The set whose first column says whether a row is there."""
SLOTS = "slots"
"""The set whose last columns may say where a row is."""
_EPS = 1e-3
"""A feature that varies less is constant."""


class Features(BaseFeaturesExtractor):
    """Sets through a pooling, frames through vision, vectors as they are, side by side.

    Vectors stand beside each row of a set as well, and so do products of the row with them
    (`match_dim`): what is asked for, or carried, decides which rows matter. What vision makes of a
    frame meets the vectors in products, too.

    The features of a set are shifted and scaled, each by itself, to what `measure` found once,
    before learning: a small size in the corner of a large slot counts as much as any other. Slots
    may be whitened besides (`whitening`): their looks vary in a few directions much more than in
    the others, and what is asked for is learned slowly in products with those. Slots that win no
    cell of the picture may be passed over (`hides_empty`), as rows that hold no object are.

    With an encoder the frame becomes slots first, through which the policy's gradient reaches the
    encoder, and slots go through a pooling. One with a memory starts from the state that stands
    beside the frame, see `EncoderState`, where the gradient ends.

    Attributes:
        encoder: always in `eval()`; None for none.
        states: between its state and the part of the observation; None without a memory.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        *,
        plain_key: str,
        pooling: Mapping[str, Any],
        vision: Mapping[str, Any],
        match_dim: int,
        whitening: float | None,
        hides_empty: bool,
        num_geometry: int,
        encoder: Mapping[str, Any] | None,
    ) -> None:
        """Build what the parts of an observation need.

        Args:
            observation_space: a `Box` or a flat `Dict` of them; frames are (C,H,W) here.
            plain_key: name of the only part of an observation that is no `Dict`.
            pooling: describes a `Pooling` but for `slot_dim` and `num_slots`.
            vision: describes a `Vision` but for `frame_shape`.
            match_dim: products of a row, or of a frame's features, with the vectors; 0 for none.
            whitening: of the set `slots`, see `Whitening.ridge`; None for none.
            hides_empty: read only rows of it that win a cell, where geometry tells which.
            num_geometry: how many of the last columns of slots tell where they are, see
                `mask_geometry`; they are not whitened.
            encoder: describes a `SlotEncoder` that reads the frame; None for none.

        Raises:
            ValueError: if a part is of a kind that no policy here reads, the encoder expects other
                frames, or its state is not beside the frame or can not be, see `EncoderState`.
        """
        self._parts = spaces.parts(observation_space, plain_key=plain_key)
        self._plain_key = plain_key
        built: dict[str, Pooling | Vision] = {}
        slot_encoder: SlotEncoder | None = None if encoder is None else checkpoint.build(encoder)
        states = _states(slot_encoder, self._parts, plain_key=plain_key)
        vectors = {
            name: part.shape[0]
            for name, part in self._parts.items()
            if spaces.kind(name, part) == spaces.VECTOR
        }
        self._vectors, beside = tuple(vectors), sum(vectors.values())
        num_products = match_dim if beside else 0
        met: dict[str, int] = {}
        for name, part in self._parts.items():
            kind = spaces.kind(name, part)
            if kind == spaces.FRAME and slot_encoder is None:
                built[name] = checkpoint.build({**vision, "frame_shape": list(part.shape)})
                met[name] = built[name].out_dim
            elif kind == spaces.FRAME and slot_encoder is not None:
                _check_frame(slot_encoder, part.shape)
                met[name] = slot_encoder.slot_dim
                size = met[name] + beside + num_products
                built[name] = _pooling(pooling, slot_encoder.num_slots, size)
            elif kind == spaces.SET:
                met[name] = _num_features(name, part.shape)
                size = met[name] + beside + num_products
                built[name] = _pooling(pooling, part.shape[0], size)
        is_vision = [isinstance(reader, Vision) for reader in built.values()]
        sizes = [reader.out_dim for reader in built.values()]
        super().__init__(
            observation_space, features_dim=sum(sizes) + num_products * sum(is_vision) + beside
        )
        self.readers = nn.ModuleDict(built)
        self.scales = nn.ModuleDict(
            {
                name: Scale(met[name])
                for name in built
                if spaces.kind(name, self._parts[name]) == spaces.SET
            }
        )
        self._hides_empty = hides_empty and num_geometry > 0
        self._num_geometry = num_geometry
        self.whitenings = nn.ModuleDict()
        if whitening is not None and SLOTS in self.scales:
            self.whitenings[SLOTS] = Whitening(met[SLOTS] - num_geometry, ridge=whitening)
        self.products = nn.ModuleDict()
        if num_products:
            for name, size in met.items():
                product = MultiplicativeInteraction(size, beside, out_dim=num_products)
                self.products[name] = product
        self.encoder, self.states = slot_encoder, states

    def train(self, mode: bool = True) -> Features:
        """Switch to training; the encoder stays in `eval()`: its slots must not depend on luck."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def forward(self, observation: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Make features (B,features_dim) of an observation; frames are floats in [0,1] here."""
        named = self._named(observation)
        return torch.cat([self._read(name, named) for name in named], dim=-1)

    def attention(self, observation: Tensor | Mapping[str, Tensor]) -> Tensor | None:
        """Share (B,K) of each slot of the first set in its pooling; None where there is no such.

        Rows are those of the observation; an object that is not there has none.
        """
        named = self._named(observation)
        for name in named:
            reader: Any = self.readers[name] if name in self.readers else None  # noqa: SIM401
            if isinstance(reader, Pooling):
                return reader.attention(*self._set(name, named))
        return None

    def _named(self, observation: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parts by name, in the order of the space, which alone is the same everywhere.

        The encoder's slots (B,K,D) are in place of the frame.
        """
        given = {self._plain_key: observation} if isinstance(observation, Tensor) else observation
        named = {name: given[name] for name in self._parts}
        if self.encoder is None:
            return named
        encoder, state = self.encoder, given.get(STATE)
        return {
            name: self._encode(encoder, value, state) if value.ndim == 4 else value
            for name, value in named.items()
        }

    def _encode(self, encoder: SlotEncoder, frame: Tensor, vectors: Tensor | None) -> Tensor:
        """Slots (B,K,D) of frames (B,C,H,W), from what was before them (B,S) or from nothing."""
        if self.states is None or vectors is None:
            state = encoder.initial_state(len(frame))
            is_first = torch.ones(len(frame), dtype=torch.bool, device=frame.device)
        else:
            state, is_first = self.states.unpack(vectors)
        return encoder.step(frame, state, is_first)[0].slots[:, 0]

    def _read(self, name: str, named: Mapping[str, Tensor]) -> Tensor:
        if name not in self.readers:
            return named[name]
        reader = self.readers[name]
        if isinstance(reader, Vision):
            seen = reader(named[name])
            return torch.cat([seen, *self._products(name, seen, named)], dim=-1)
        return reader(*self._set(name, named))

    def _set(self, name: str, named: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Rows (B,K,F+W+M) with all vectors beside them, and which of them are there."""
        rows, is_present = self._present(name, named[name])
        if name in self.scales:
            rows = self.scales[name](rows)
        if name in self.whitenings:
            rows = self._apart(rows, self.whitenings[name])
        if not self._vectors:
            return rows, is_present
        beside = self._beside(named)[:, None]
        products = self._products(name, rows, named)
        repeated = beside.expand(-1, rows.shape[1], -1).to(rows.dtype)
        return torch.cat([rows, repeated, *products], dim=-1), is_present

    def _present(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (...,K,F) of rows, and which of them (...,K) hold something; None for all."""
        if name == OBJECTS:
            return rows[..., 1:], rows[..., 0] > 0.5
        if self._hides_empty and name == SLOTS:
            return rows, wins_a_cell(rows[..., -self._num_geometry :])
        return rows, None

    def _apart(self, rows: Tensor, change: nn.Module) -> Tensor:
        """Change slots (...,D) of rows (...,D+G); where they are stays."""
        dim = rows.shape[-1] - self._num_geometry
        return torch.cat([change(rows[..., :dim]), rows[..., dim:]], dim=-1)

    def _beside(self, named: Mapping[str, Tensor]) -> Tensor:
        """All vectors (B,W) side by side."""
        return torch.cat([named[vector] for vector in self._vectors], dim=-1)

    def _products(self, name: str, seen: Tensor, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Products (...,M) of rows (B,K,F) or features (B,F) with the vectors, if there are any."""
        if name not in self.products:
            return []
        beside = self._beside(named)
        return [self.products[name](seen, beside[:, None] if seen.ndim == 3 else beside)]

    def measure(self, observations: Mapping[str, Tensor]) -> None:
        """Find how the features of sets vary in observations (B,K,F) by name.

        Only rows that are present count.
        """
        scale: Any
        whitening: Any
        for name, scale in self.scales.items():
            values, is_present = self._present(name, observations[name])
            values = values.flatten(0, 1) if is_present is None else values[is_present]
            scale.measure(values)
            if name in self.whitenings:
                whitening = self.whitenings[name]
                whitening.measure(scale(values)[..., : whitening.num_features])


class Scale(nn.Module):
    """Shifts and scales features by fixed amounts, none until they are measured.

    Args:
        num_features: of what is scaled, the last axis.
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(num_features))
        self.register_buffer("factor", torch.ones(num_features))

    def forward(self, values: Tensor) -> Tensor:
        """Scale (...,num_features)."""
        return (values - self.shift) * self.factor

    def measure(self, values: Tensor) -> None:
        """Make values (n,F) like these have mean 0 and deviation 1, constant ones mean 0 only."""
        deviation, mean = torch.std_mean(values, dim=0, correction=0)
        self.shift.copy_(mean)
        self.factor.copy_(torch.where(deviation > _EPS, 1 / deviation.clamp(min=_EPS), 1.0))


class Whitening(nn.Module):
    """Turns features to the directions in which they vary, and divides by how much they do.

    A direction of variance w becomes one of variance w / (w + ridge x the sum of all w): about 1
    for those that vary, little for those that hardly do, which may be noise. Nothing changes until
    they are measured.

    Args:
        num_features: F.
        ridge: what counts as hardly, as a share of the variance of all.
    """

    shift: Tensor
    turn: Tensor

    def __init__(self, num_features: int, *, ridge: float) -> None:
        super().__init__()
        self.num_features, self.ridge = num_features, ridge
        self.register_buffer("shift", torch.zeros(num_features))
        self.register_buffer("turn", torch.eye(num_features))

    def forward(self, values: Tensor) -> Tensor:
        """Whiten (...,F)."""
        return (values - self.shift) @ self.turn

    def measure(self, values: Tensor) -> None:
        """Fit to values (n,F)."""
        mean = values.double().mean(dim=0)
        centred = values.double() - mean
        variances, directions = torch.linalg.eigh(centred.mT @ centred / len(values))
        least = (self.ridge * variances.sum()).clamp(min=_EPS**2)
        self.shift.copy_(mean)
        self.turn.copy_(directions * (variances.clamp(min=0) + least).rsqrt())


def _states(
    encoder: SlotEncoder | None, parts: dict[str, Box], *, plain_key: str
) -> EncoderState | None:
    """Between the encoder's state and the part of the observation, which is taken from `parts`.

    Raises:
        ValueError: if it is not there or can not be, see `EncoderState`.
    """
    states = None if encoder is None else find_state(encoder, plain_key=plain_key)
    expected, given = None if states is None else states.part, parts.pop(STATE, None)
    if given != expected:
        raise ValueError(
            f"expected {expected} as {STATE!r} beside the frame that the encoder reads, got "
            f"{given}: see EncoderState.space"
        )
    return states


def _num_features(name: str, shape: tuple[int, ...]) -> int:
    return shape[1] - 1 if name == OBJECTS else shape[1]


def _pooling(config: Mapping[str, Any], num_slots: int, slot_dim: int) -> Pooling:
    pooling: Pooling = checkpoint.build({**config, "slot_dim": slot_dim, "num_slots": num_slots})
    return pooling


def _check_frame(encoder: SlotEncoder, shape: tuple[int, ...]) -> None:
    expected = (3, *encoder.backbone.image_size)
    if tuple(shape) != expected:
        raise ValueError(
            f"expected frames of shape {expected}, which the encoder was trained on, got "
            f"{tuple(shape)}; make the environment with another size, or take another encoder"
        )
