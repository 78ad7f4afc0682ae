"""PSB: slots of all frames are bound at once, by blocks that are parallel over time.

B batch, T frames, V views, K slots, D slot size, N tokens, F token features, C H W image,
M blocks, W frames of the bottom-up window, E padded token features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone, Initializer, SlotEncoder, State
from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.mlp import MLP
from ocrl.nn.temporal import (
    PADDING,
    CompetitiveCrossAttention,
    TimeBias,
    normalized_tokens,
    segments_of,
    visible_cache,
    visible_frames,
)
from ocrl.nn.time_mixer import TimeMixer, reset_attention
from ocrl.types import Camera, SlotOutput


class PSB(SlotEncoder):
    """Parallelizable Spatiotemporal Binder, and with a gated scan as time mixer, SlotSSM.

    Singh et al. 2024 (arXiv 2402.17077, section 2 and appendix D.1): each block reads tokens by
    attention that slots compete for, mixes each slot over time, mixes the slots of a frame and
    applies an MLP; all are residual and normalise their input. Every block reads the same tokens.
    SlotSSM (Jiang et al. 2024, arXiv 2406.12272) is the same block with
    `ocrl.nn.scan.GatedScan` for the mixer and a bottom-up window of 1.

    Differs from the papers:
    - always causal, and within a window of frames rather than the whole past (a window as long as
      the clip is the whole past): so the streamed form, which keeps a window of normalised tokens
      and of slot keys and values, is exact. With windows wider than a frame a slot depends on
      more frames than one window, since each block looks back from what the block before made.
    - the time bias of the bottom-up attention acts after the competition (see
      `ocrl.nn.temporal.CompetitiveCrossAttention`): the paper's, with one head, does nothing.
    - as in the published code and not in the text, the queries are normalised before the first
      block; there is no dropout.

    Args:
        backbone: frames to tokens.
        initializer: queries of the first frame of an episode, which all its frames start from;
            the paper's choices are one learned vector per slot (better) and Gaussian draws.
        time_mixer: a pattern that each block copies: attention over time, also across slots (the
            paper's joint interaction), or a gated scan.
        num_slots: K.
        slot_dim: D.
        num_blocks: M.
        bottom_up_heads: heads of the attention over tokens.
        bottom_up_window: W, frames whose tokens a frame's slots read: 1 for the present frame
            only, the clip length or more for the paper's whole past. Streaming keeps W - 1 of
            them.
        bottom_up_bias: `recency`, `logits` (the paper's) or `none`.
        max_distance: distances in time that the bottom-up bias tells apart; read unless `none`.
        is_inverted: slots compete for tokens; off for the paper's ablation.
        object_heads: heads of the attention among the slots of a frame; unused if the time mixer
            mixes slots itself.
        mlp_dim: hidden size of the MLP.
        residual_gain: Xavier gain of the output maps of the residual branches; (4 M)^-1/2, the
            published code's, if None.
        eps: added to the mass of a slot in the bottom-up attention.

    Raises:
        ValueError: if a count is not positive or an option has no effect.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        time_mixer: TimeMixer,
        num_slots: int,
        slot_dim: int,
        num_blocks: int,
        bottom_up_heads: int,
        bottom_up_window: int,
        bottom_up_bias: TimeBias,
        max_distance: int,
        is_inverted: bool,
        object_heads: int,
        mlp_dim: int,
        residual_gain: float | None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"expected at least 1 block, got {num_blocks}")
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.backbone = backbone
        self.initializer = initializer
        self.bottom_up_window = bottom_up_window
        self.norm_init = nn.LayerNorm(slot_dim)
        self.blocks = nn.ModuleList(
            _Block(
                slot_dim,
                bottom_up=CompetitiveCrossAttention(
                    slot_dim,
                    token_dim=backbone.out_dim,
                    num_heads=bottom_up_heads,
                    window=bottom_up_window,
                    time_bias=bottom_up_bias,
                    max_distance=max_distance,
                    is_inverted=is_inverted,
                    eps=eps,
                ),
                time_mixer=copy.deepcopy(time_mixer),
                object_heads=object_heads,
                mlp_dim=mlp_dim,
                gain=(4 * num_blocks) ** -0.5 if residual_gain is None else residual_gain,
            )
            for _ in range(num_blocks)
        )

    def initial_state(self, batch_size: int) -> State:
        """The state before any frame.

        Returns:
            `age` (B,) frames since the episode began, -1 before any; `queries` (B,K,D) of the
            episode; `tokens` (B,W-1,N,E) of the last frames, for one view until
            the first frame shows how many there are; `blocks`: a state per time mixer.
        """
        weight = self.norm_init.weight
        height, width = self.backbone.grid
        token_dim = self.backbone.out_dim + PADDING
        return {
            "age": torch.full((batch_size,), -1, dtype=torch.int64, device=weight.device),
            "queries": weight.new_zeros(batch_size, self.num_slots, self.slot_dim),
            "tokens": weight.new_zeros(
                batch_size, self.bottom_up_window - 1, height * width, token_dim
            ),
            "blocks": tuple(
                block.time_mixer.initial_state(batch_size, num_slots=self.num_slots)
                for block in cast(Iterable[_Block], self.blocks)
            ),
        }

    def forward(
        self,
        video: Tensor,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> SlotOutput:
        """Encode a clip, all frames at once, see `SlotEncoder.forward`."""
        cameras = None if camera is None else camera.frames()
        tokens = self.backbone(video.flatten(0, 1), camera=cameras)
        tokens = tokens.unflatten(0, video.shape[:2])
        queries = self._queries(tokens, is_first, condition)
        tokens = normalized_tokens(tokens)
        segments = segments_of(is_first)
        visible = visible_frames(segments, self.bottom_up_window)
        slots = self.norm_init(queries)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            slots, attn = block(
                slots,
                tokens,
                visible=visible,
                segments=segments,
                needs_map=number == last,
                are_alike=number == 0,
            )
        return SlotOutput(slots, attn, queries)

    def step(
        self,
        frame: Tensor,
        state: State,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> tuple[SlotOutput, State]:
        """Encode one frame from cached frames, see `SlotEncoder.step`.

        Raises:
            ValueError: if the frame has another number of views than those before it.
        """
        tokens = self.backbone(frame, camera=camera)
        starts = is_first | (state["age"] < 0)
        age = torch.where(starts, 0, state["age"] + 1)
        fresh = self.initializer(tokens, condition=condition)
        queries = torch.where(starts[:, None, None], fresh, state["queries"])
        present, cache = normalized_tokens(tokens)[:, None], state["tokens"]
        if cache.shape[2] != present.shape[2]:
            cache = self._of_all_views(cache, present, state["age"])
        cache = torch.cat([cache.to(present.dtype), present], dim=1)
        visible = visible_cache(age, self.bottom_up_window)
        slots, memories = self.norm_init(queries), []
        blocks = cast(Iterable[_Block], self.blocks)
        for block, memory in zip(blocks, state["blocks"], strict=True):
            slots, attn, memory = block.step(slots, cache, memory, visible=visible, age=age)
            memories.append(memory)
        output = SlotOutput(slots[:, None], attn, queries[:, None])
        following = {"age": age, "queries": queries, "tokens": cache[:, 1:]}
        return output, {**following, "blocks": tuple(memories)}

    def _of_all_views(self, cache: Tensor, present: Tensor, age: Tensor) -> Tensor:
        """The cache (B,W-1,N,E) of no frame at all, for the tokens of several views."""
        if not bool((age < 0).all()):
            raise ValueError(
                f"expected {cache.shape[2]} tokens as in the frames before, got {present.shape[2]}"
            )
        return cache.new_zeros(*cache.shape[:2], *present.shape[2:])

    def _queries(self, tokens: Tensor, is_first: Tensor, condition: Tensor | None) -> Tensor:
        """Start every frame (B,T,K,D) from the queries of its episode's first frame."""
        later = is_first[:, 1:]
        # One synchronisation per clip; most frames start nothing.
        starts = [True] * later.shape[1]
        if not torch.compiler.is_compiling():
            starts = later.any(0).tolist()
        queries = [self.initializer(tokens[:, 0], condition=condition)]
        for t, is_start in enumerate(starts, start=1):
            current = queries[-1]
            if is_start:
                fresh = self.initializer(tokens[:, t], condition=condition)
                current = torch.where(is_first[:, t, None, None], fresh, current)
            queries.append(current)
        return torch.stack(queries, dim=1)


class _Block(nn.Module):
    """Four residual branches: tokens, time, slots of a frame, MLP."""

    def __init__(
        self,
        slot_dim: int,
        *,
        bottom_up: CompetitiveCrossAttention,
        time_mixer: TimeMixer,
        object_heads: int,
        mlp_dim: int,
        gain: float,
    ) -> None:
        super().__init__()
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.bottom_up = bottom_up
        self.norm_time = nn.LayerNorm(slot_dim)
        self.time_mixer = time_mixer
        self.norm_objects: nn.LayerNorm | None = None
        self.object_attention: MultiHeadAttention | None = None
        if not time_mixer.mixes_slots:
            self.norm_objects = nn.LayerNorm(slot_dim)
            self.object_attention = MultiHeadAttention(slot_dim, num_heads=object_heads, bias=False)
            reset_attention(self.object_attention, gain)
        self.mlp = MLP(
            slot_dim, hidden_dims=[mlp_dim], out_dim=slot_dim, activation="gelu", norm_first=True
        )
        self.bottom_up.reset_parameters(gain)
        self.time_mixer.reset_parameters(gain)
        _reset_mlp(self.mlp, gain)

    def forward(
        self,
        slots: Tensor,
        tokens: Tensor,
        *,
        visible: Tensor,
        segments: Tensor,
        needs_map: bool,
        are_alike: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Refine slots (B,T,K,D); returns them and the map (B,T,K,N) of the present frames."""
        update, attn = self.bottom_up(
            self.norm_slots(slots), tokens, visible, needs_map=needs_map, are_alike=are_alike
        )
        slots = slots + update
        slots = slots + self.time_mixer(self.norm_time(slots), segments)
        return self._interact(slots), attn

    def step(
        self, slots: Tensor, cache: Tensor, memory: Any, *, visible: Tensor, age: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """Refine the slots (B,K,D) of one frame; returns them, the map and the mixer's state."""
        update, attn = self.bottom_up(self.norm_slots(slots)[:, None], cache, visible)
        slots = slots + update[:, 0]
        update, memory = self.time_mixer.step(self.norm_time(slots), memory, age)
        return self._interact((slots + update)[:, None])[:, 0], attn, memory

    def _interact(self, slots: Tensor) -> Tensor:
        if self.object_attention is not None and self.norm_objects is not None:
            frames = self.norm_objects(slots).flatten(0, 1)
            slots = slots + self.object_attention(frames).view(slots.shape)
        return slots + self.mlp(slots)


def _reset_mlp(mlp: MLP, gain: float) -> None:
    """Kaiming-uniform for the hidden layer, Xavier with `gain` for the output, zero biases."""
    hidden, output = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu")
    nn.init.xavier_uniform_(output.weight, gain=gain)
    nn.init.zeros_(hidden.bias)
    nn.init.zeros_(output.bias)
