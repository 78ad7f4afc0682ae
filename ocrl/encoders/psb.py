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
from ocrl.nn.floor_places import NUM_COLUMNS, FloorPlaces, Standing
from ocrl.nn.location import feature_dim, join_placed
from ocrl.nn.mlp import MLP
from ocrl.nn.temporal import (
    PADDING,
    CompetitiveCrossAttention,
    Reading,
    TimeBias,
    normalized_tokens,
    segments_of,
    visible_cache,
    visible_frames,
)
from ocrl.nn.time_mixer import TimeMixer, reset_attention
from ocrl.nn.triangulation import NUM_AXES, NUM_RAY
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
        places: where slots stand, for posed views over a floor. Their Gaussians take part in the
            competition of every block, from the same start in all frames, and each block moves
            them to what they won in the frames it saw; the last four numbers of a slot are its
            place and whether it has one. The bottom-up attention then starts as rounds of soft
            k-means, whatever `residual_gain`. Ours; none if None, as in the papers.
        eps: added to the mass of a slot in the bottom-up attention.

    Raises:
        ValueError: if a count is not positive, an option has no effect, or there are places but
            the tokens have no rays, slots do not compete or are too small to hold one.
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
        places: FloorPlaces | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"expected at least 1 block, got {num_blocks}")
        if places is not None and not (backbone.has_rays and is_inverted):
            raise ValueError(
                "expected slots that compete (is_inverted) for tokens that end with their rays "
                "(encoder.backbone.has_rays) where slots have places, got is_inverted="
                f"{is_inverted} and has_rays={backbone.has_rays}"
            )
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.backbone = backbone
        self.initializer = initializer
        self.bottom_up_window = bottom_up_window
        self.places = places
        self.num_axes = 0 if places is None else NUM_AXES
        self.num_ray = 0 if places is None else NUM_RAY
        self.num_features = slot_dim
        if places is not None:
            self.num_features = feature_dim(slot_dim, num_axes=NUM_AXES)
        self.norm_init = nn.LayerNorm(slot_dim)
        self.blocks = nn.ModuleList(
            _Block(
                slot_dim,
                bottom_up=CompetitiveCrossAttention(
                    slot_dim,
                    token_dim=backbone.out_dim - self.num_ray,
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
        if places is not None:
            self._start_as_clustering()

    def _start_as_clustering(self) -> None:
        """Give blocks weights with which they are rounds of soft k-means, to learn from there.

        In the first block places alone count: queries drawn at random would choose the ground.
        Those that follow look for what looks like what was won before, as one map of tokens gives
        their keys and what slots take from them.
        """
        blocks = [block.bottom_up for block in cast(Iterable[_Block], self.blocks)]
        alike = nn.init.orthogonal_(torch.empty_like(blocks[0].to_k.weight))
        with torch.no_grad():
            for number, block in enumerate(blocks):
                block.to_k.weight.copy_(alike)
                block.to_v.weight.copy_(alike)
                nn.init.eye_(block.to_out.weight)
                if number:
                    nn.init.eye_(block.to_q.weight)
                else:
                    nn.init.zeros_(block.to_q.weight)

    def initial_state(self, batch_size: int) -> State:
        """The state before any frame.

        Returns:
            `age` (B,) frames since the episode began, -1 before any; `queries` (B,K,D) of the
            episode; `tokens` (B,W-1,N,E) of the last frames, for one view until
            the first frame shows how many there are; `blocks`: a state per time mixer.
        """
        weight = self.norm_init.weight
        height, width = self.backbone.grid
        token_dim = self.backbone.out_dim - self.num_ray + PADDING
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
        queries = self._queries(self._looks(tokens), is_first, condition)
        tokens = self._normalized(tokens)
        segments = segments_of(is_first)
        visible = visible_frames(segments, self.bottom_up_window)
        slots, standing = self.norm_init(queries), self._start()
        last = len(self.blocks) - 1
        for number, block in enumerate(cast(Iterable[_Block], self.blocks)):
            read = block.bind(
                slots,
                tokens,
                visible=visible,
                needs_map=number == last,
                are_alike=number == 0,
                riding=self._riding(standing, slots),
            )
            slots = block(slots, read.update, segments=segments)
            standing = self._moved(read.sums)
        assert read.attn is not None
        return SlotOutput(self._placed(slots, standing), read.attn, queries)

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
        fresh = self.initializer(self._looks(tokens), condition=condition)
        queries = torch.where(starts[:, None, None], fresh, state["queries"])
        present, cache = self._normalized(tokens)[:, None], state["tokens"]
        if cache.shape[2] != present.shape[2]:
            cache = self._of_all_views(cache, present, state["age"])
        cache = torch.cat([cache.to(present.dtype), present], dim=1)
        visible = visible_cache(age, self.bottom_up_window)
        slots, standing, memories = self.norm_init(queries)[:, None], self._start(), []
        blocks = cast(Iterable[_Block], self.blocks)
        for block, memory in zip(blocks, state["blocks"], strict=True):
            riding = self._riding(standing, slots)
            read = block.bind(slots, cache, visible=visible, riding=riding)
            slots, memory = block.step(slots, read.update, memory, age=age)
            standing = self._moved(read.sums)
            memories.append(memory)
        assert read.attn is not None
        output = SlotOutput(self._placed(slots, standing), read.attn, queries[:, None])
        following = {"age": age, "queries": queries, "tokens": cache[:, 1:]}
        return output, {**following, "blocks": tuple(memories)}

    def _looks(self, tokens: Tensor) -> Tensor:
        """Tokens (...,N,F) without their rays."""
        return tokens[..., : tokens.shape[-1] - self.num_ray]

    def _normalized(self, tokens: Tensor) -> Tensor:
        """What all blocks read (...,N,E); with places, those of tokens stand after the ones."""
        normal = normalized_tokens(self._looks(tokens))
        if self.places is None:
            return normal
        columns = self.places.columns(tokens[..., -NUM_RAY:])
        after = normal.shape[-1] - PADDING + 1
        rest = PADDING - NUM_COLUMNS
        # In the precision of places, whatever the autocast.
        return torch.cat([normal[..., :after], nn.functional.pad(columns, (0, rest))], dim=-1)

    def _start(self) -> Standing | None:
        return None if self.places is None else self.places.start()

    def _riding(self, standing: Standing | None, slots: Tensor) -> Tensor | None:
        """What places add to the queries of slots (B,T,K,D)."""
        if self.places is None or standing is None:
            return None
        return self.places.query(standing).expand(*slots.shape[:-1], -1)

    def _moved(self, sums: Tensor | None) -> Standing | None:
        if self.places is None or sums is None:
            return None
        return self.places.move(sums[..., :NUM_COLUMNS])

    def _placed(self, slots: Tensor, standing: Standing | None) -> Tensor:
        """Slots (B,T,K,D), of which the last numbers make way for their places."""
        if self.places is None or standing is None:
            return slots
        places, is_placed = self.places.in_world(standing)
        features = slots[..., : self.num_features]
        return join_placed(features, places.to(slots.dtype), is_placed.to(slots.dtype))

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

    def bind(
        self,
        slots: Tensor,
        tokens: Tensor,
        *,
        visible: Tensor,
        needs_map: bool = True,
        are_alike: bool = False,
        riding: Tensor | None = None,
    ) -> Reading:
        """What slots (B,T,K,D) read of tokens, see `CompetitiveCrossAttention`."""
        reading: Reading = self.bottom_up(
            self.norm_slots(slots),
            tokens,
            visible,
            needs_map=needs_map,
            are_alike=are_alike,
            riding=riding,
        )
        return reading

    def forward(self, slots: Tensor, update: Tensor, *, segments: Tensor) -> Tensor:
        """Refine slots (B,T,K,D) by what they read."""
        slots = slots + update
        slots = slots + self.time_mixer(self.norm_time(slots), segments)
        return self._interact(slots)

    def step(
        self, slots: Tensor, update: Tensor, memory: Any, *, age: Tensor
    ) -> tuple[Tensor, Any]:
        """Refine the slots (B,1,K,D) of one frame; returns them and the mixer's state."""
        slots = slots + update
        update, memory = self.time_mixer.step(self.norm_time(slots[:, 0]), memory, age)
        return self._interact(slots + update[:, None]), memory

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
