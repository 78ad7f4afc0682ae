"""Bottom-up attention over time: slots of each frame compete for the tokens of past frames.

B batch, T query frames, S key frames, K slots, D slot size, H heads, N tokens, F token features,
E padded token features.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.attention import competition, competitive_read, standardize
from ocrl.nn.competition import competition_over_time

TimeBias = Literal["recency", "logits", "none"]

PADDING = 8
"""Columns behind the features of a token: a one, and zeros that keep rows aligned."""

INVISIBLE = -3e4
"""Logit of what may not be seen: finite in every dtype, so that no softmax group is empty."""
_MAX_RECENCY = 20.0
"""Largest log-weight of a past frame over the present one; its exponential is far from inf."""
_NUM_OCTAVES = 8


def segments_of(is_first: Tensor) -> Tensor:
    """Number the episodes of each clip (B,T): equal for two frames of one episode."""
    return is_first.long().cumsum(1)


def frame_distances(num_queries: int, num_keys: int, *, device: torch.device) -> Tensor:
    """Frames (T,S) from key to query where both end on one frame; negative in the future."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)
    return queries[:, None] - torch.arange(num_keys, device=device)


def visible_frames(segments: Tensor, window: int) -> Tensor:
    """The frames (B,T,T) that each frame may see: of its episode, past or present, in the window.

    Args:
        segments: (B,T) episode numbers.
        window: frames seen, the present one included. Every frame sees itself.
    """
    num_frames = segments.shape[1]
    distance = frame_distances(num_frames, num_frames, device=segments.device)
    in_band = (distance >= 0) & (distance < window)
    return in_band & (segments[:, :, None] == segments[:, None, :])


def visible_cache(age: Tensor, window: int) -> Tensor:
    """The cached frames (B,1,window), the present one last, that the present one may see.

    Args:
        age: (B,) frames since the episode began, 0 on its first.
        window: frames in the cache.
    """
    distance = frame_distances(1, window, device=age.device)
    return distance <= age[:, None, None]


def normalized_tokens(tokens: Tensor) -> Tensor:
    """Layer-normalise tokens without gain and bias, and append a one and zeros.

    One such tensor serves every block: the gain and bias of a block's own norm go into its
    queries and its pooled values, like the key and value maps. The column of ones carries the
    constant of a query and the mass of an attention map through the same matrix products.

    Args:
        tokens: (...,N,F).

    Returns:
        (...,N,E) with E = F + `PADDING`, in the autocast dtype where autocast is on.
    """
    return standardize(tokens, padding=PADDING)


class RelativeTimeBias(nn.Module):
    """One number per head and distance in time: a network on octaves of sines and cosines.

    As in the published code of PSB (Singh et al. 2024, arXiv 2402.17077); its paper cites the
    table of T5 instead. Differs from the code: longer distances are clipped to `max_distance`,
    and the attention over time and the bottom-up attention each have a network of their own.

    Args:
        num_heads: H.
        max_distance: number of distances that are told apart, 0 included.
        hidden_dim: width of the network.

    Raises:
        ValueError: if `max_distance` is not positive.
    """

    frequencies: Tensor

    def __init__(self, num_heads: int, *, max_distance: int, hidden_dim: int = 128) -> None:
        super().__init__()
        if max_distance < 1:
            raise ValueError(f"expected max_distance >= 1, got {max_distance}")
        self.max_distance = max_distance
        octaves = 2.0 ** torch.arange(_NUM_OCTAVES)
        frequencies = octaves * (2 * math.pi / (2 * max_distance - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.network = nn.Sequential(
            nn.Linear(2 * _NUM_OCTAVES, hidden_dim),
            nn.GELU(),
            # A constant would cancel in the softmax over keys, so there is none.
            nn.Linear(hidden_dim, num_heads, bias=False),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, num_distances: int) -> Tensor:
        """The numbers (num_distances,H) for 0, 1, ... frames back, at least in float32."""
        distance = torch.arange(num_distances, device=self.frequencies.device)
        phase = distance.clamp(max=self.max_distance - 1)[:, None] * self.frequencies
        features = math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], dim=-1)
        with torch.autocast(distance.device.type, enabled=False):
            table: Tensor = self.network(features)
        return table


class Reading(NamedTuple):
    """What slots read of tokens.

    Attributes:
        update: (B,T,K,D).
        attn: the competition's map (B,T,K,N) over the tokens of the present frame, summed over
            heads: it sums to 1 over K. None where it was not asked for. Where slots do not compete
            it is what the competition would have been.
        sums: of the padded columns (B,T,K,`PADDING`) of all visible tokens, weighted by what slots
            won of them with all heads; None if nothing is riding on them.
    """

    update: Tensor
    attn: Tensor | None
    sums: Tensor | None


class CompetitiveCrossAttention(nn.Module):
    """Slots of each frame compete for the tokens of the frames in a window up to it.

    The bottom-up attention of PSB (Singh et al. 2024, arXiv 2402.17077, appendix D.1.2): softmax
    over the slots and heads of one query frame, separately for each token, then a weighted mean
    over the tokens of all visible frames.

    Differs from the paper: no map over pairs of frames is kept and invisible pairs are not
    computed; the norm and the key and value maps are applied to queries and pooled values
    wherever that is less work (the result is the same). With one head the paper's time bias, the
    same for all slots, cancels in the softmax over slots (`logits`, kept to be faithful). The
    default of the configurations is `recency`: the bias weighs frames after the competition,
    before the mean, as exp(bias), starting from a factor e less per frame back.

    Args:
        slot_dim: D.
        token_dim: F.
        num_heads: H; heads compete with each other, too.
        window: frames read, the present one included; 1 reads the present frame only.
        time_bias: `recency`, `logits` or `none`, see above.
        max_distance: see `RelativeTimeBias`.
        is_inverted: softmax over slots; otherwise the plain softmax over tokens of the paper's
            ablation (which keeps the map over pairs of frames, and has no `eps`).
        eps: added to the mass of a slot in the mean.

    Raises:
        ValueError: if an argument is out of range, or has no effect (`recency` in a window of 1).
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        token_dim: int,
        num_heads: int,
        window: int,
        time_bias: TimeBias,
        max_distance: int,
        is_inverted: bool,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if slot_dim % num_heads:
            raise ValueError(f"expected heads that divide {slot_dim}, got {num_heads}")
        if window < 1:
            raise ValueError(f"expected a bottom-up window >= 1, got {window}")
        if time_bias not in get_args(TimeBias):
            raise ValueError(f"expected time_bias in {get_args(TimeBias)}, got {time_bias!r}")
        if time_bias == "recency" and window == 1:
            raise ValueError(
                "expected time_bias 'none' with a bottom-up window of 1 frame, "
                "where recency has no effect, got 'recency'"
            )
        self.num_heads = num_heads
        self.window = window
        self.is_inverted = is_inverted
        self.eps = eps
        self.norm_inputs = nn.LayerNorm(token_dim)
        self.to_q = nn.Linear(slot_dim, slot_dim, bias=False)
        self.to_k = nn.Linear(token_dim, slot_dim, bias=False)
        self.to_v = nn.Linear(token_dim, slot_dim, bias=False)
        self.to_out = nn.Linear(slot_dim, slot_dim, bias=False)
        self.time_bias = (
            None if time_bias == "none" else RelativeTimeBias(num_heads, max_distance=max_distance)
        )
        self.slope = nn.Parameter(-torch.ones(num_heads)) if time_bias == "recency" else None

    def reset_parameters(self, gain: float) -> None:
        """Draw new weights, those of the residual branch's output scaled by `gain`."""
        for layer in (self.to_q, self.to_k, self.to_v):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.xavier_uniform_(self.to_out.weight, gain=gain)

    def forward(
        self,
        slots: Tensor,
        tokens: Tensor,
        visible: Tensor,
        *,
        needs_map: bool = True,
        are_alike: bool = False,
        riding: Tensor | None = None,
    ) -> Reading:
        """Read tokens with normalised slots.

        Args:
            slots: (B,T,K,D).
            tokens: (B,S,N,E) from `normalized_tokens`; their last frame is the slots' last.
            visible: (B,T,S) bool; pairs of frames beyond `window` are not read anyway.
            needs_map: whether the map is asked for where it is not made anyway.
            are_alike: whether frames that see each other have equal slots, as before the first
                block: then a frame's tokens are bound once and not for each frame that sees them.
            riding: (B,T,K,R) to add to the queries of all heads where tokens are padded, R up to
                `PADDING`: what is linear in those columns then takes part in the competition.

        Raises:
            ValueError: if something is riding where slots do not compete.
        """
        query = rearrange(self.to_q(slots), "b t k (h d) -> b t h k d", h=self.num_heads)
        query = query * query.shape[-1] ** -0.5
        bias, recency = self._time_terms(slots.shape[1], tokens.shape[1])
        token_query = self._token_query(query, tokens.dtype, riding)
        pooled = attn = None
        if not self.is_inverted:
            if riding is not None:
                raise ValueError("expected slots that compete, where something rides on tokens")
            log_weights = bias if recency is None else recency
            read = self._read_plain(query, tokens, log_weights, visible)
        elif self.window == 1:
            pooled, attn = self._read_present(token_query, tokens, bias)
        elif slots.shape[1] == 1:
            pooled, attn = self._read_cache(token_query, tokens, bias, recency, visible)
        elif are_alike and (bias is None or self.num_heads == 1):
            pooled = self._read_once(token_query, tokens, bias, recency, visible)
        elif riding is not None or self._is_absorbed(slots, tokens):
            pooled = self._read_absorbed(token_query, tokens, bias, recency, visible)
        else:
            read = self._read_projected(query, tokens, bias, recency, visible)
        if pooled is not None:
            read = self._project_mean(pooled)
        if needs_map and attn is None:
            attn = self._present_map(token_query, tokens[:, -slots.shape[1] :], bias)
        sums = None if riding is None or pooled is None else pooled[..., -PADDING:].sum(2)
        return Reading(self.to_out(read), attn, sums)

    def _time_terms(self, num_queries: int, num_keys: int) -> tuple[Tensor | None, Tensor | None]:
        """Logit bias and log-weight after the competition, (T,S,H) or none."""
        if self.time_bias is None:
            return None, None
        table = self.time_bias(num_keys)
        distance = frame_distances(num_queries, num_keys, device=table.device).clamp(min=0)
        if self.slope is None:
            return table[distance], None
        steps = torch.arange(num_keys, device=table.device)[:, None]
        table = (table - table[0] + steps * self.slope).clamp(max=_MAX_RECENCY)
        return None, table[distance]

    def _token_query(
        self, query: Tensor, dtype: torch.dtype, riding: Tensor | None = None
    ) -> Tensor:
        """Take the key map and the norm's gain and bias into the query: (B,T,H,K,E)."""
        weight = rearrange(self.to_k.weight, "(h d) f -> h d f", h=self.num_heads)
        mapped = einsum(query, weight, "b t h k d, h d f -> b t h k f")
        constant = einsum(mapped, self.norm_inputs.bias, "b t h k f, f -> b t h k")
        scaled = mapped * self.norm_inputs.weight
        query = torch.cat([scaled, constant[..., None].to(scaled.dtype)], dim=-1)
        query = functional.pad(query, (0, PADDING - 1)).to(dtype)
        if riding is None:
            return query
        last = PADDING - riding.shape[-1]
        return query + functional.pad(riding, (query.shape[-1] - PADDING, last))[:, :, None]

    def _project_read(self, mean: Tensor, share: Tensor) -> Tensor:
        """Apply the norm's gain and bias and the value map to means (B,T,H,K,F) of tokens."""
        inputs = mean * self.norm_inputs.weight + share * self.norm_inputs.bias
        weight = rearrange(self.to_v.weight, "(h d) f -> h d f", h=self.num_heads)
        values = einsum(inputs, weight, "b t h k f, h d f -> b t k h d")
        return values.flatten(-2)

    def _with_present_bias(self, query: Tensor, bias: Tensor | None) -> Tensor:
        """Add the bias of the present frame: one number per head can ride on the ones."""
        if bias is None:
            return query
        ones = bias[-1, -1, :, None, None].to(query.dtype)
        return query + functional.pad(ones, (query.shape[-1] - PADDING, PADDING - 1))

    def _present_map(self, query: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
        query = self._with_present_bias(query, bias)
        with torch.autocast(query.device.type, enabled=False):
            attn = competition(query.flatten(2, 3) @ tokens.mT)
        return attn.unflatten(2, (self.num_heads, -1)).sum(2)

    def _read_present(
        self, query: Tensor, tokens: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = rearrange(self._with_present_bias(query, bias), "b t h k e -> (b t) (h k) e")
        mean, attn = competitive_read(rows, tokens.flatten(0, 1), eps_placement="sum", eps=self.eps)
        attn = attn.view(*query.shape[:-1], -1)
        pooled = mean.view(query.shape) * (attn.sum(-1, keepdim=True) + self.eps)
        return pooled, attn.sum(2)

    def _read_cache(
        self,
        query: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        recency: Tensor | None,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sums (B,T,H,K,E) for the slots of one frame, and its map: all frames in one product."""
        num_slots, keys = query.shape[3], tokens.flatten(1, 2)
        with torch.autocast(query.device.type, enabled=False):
            logits = (query.flatten(1, 3) @ keys.mT).unflatten(2, tokens.shape[1:3])
            if bias is not None:
                logits = logits + _over_rows(bias, num_slots)
            attn = competition(logits.flatten(2)).view(logits.shape)
            weights = visible[:, 0, None, :, None].to(attn.dtype)
            if recency is not None:
                weights = weights * _over_rows(recency.exp(), num_slots)
            pooled = (attn * weights).flatten(2).to(keys.dtype) @ keys
        present = attn[:, None, :, -1].unflatten(2, (self.num_heads, -1)).sum(2)
        return pooled.to(attn.dtype).view(query.shape), present

    def _project_mean(self, pooled: Tensor) -> Tensor:
        """Divide sums (B,T,H,K,E) by their mass and apply the value map."""
        size = pooled.shape[-1] - PADDING
        mass = pooled[..., size : size + 1]
        scale = 1 / (mass + self.eps)
        return self._project_read(pooled[..., :size] * scale, mass * scale)

    def _is_absorbed(self, slots: Tensor, tokens: Tensor) -> bool:
        """Whether wide queries cost less than keys and values: always with one head."""
        num_frames, num_slots, slot_dim = slots.shape[1:]
        token_dim = tokens.shape[-1] - PADDING
        pairs = min(self.window, (num_frames + 1) / 2)
        absorbed = self.num_heads * num_slots * token_dim * pairs
        return absorbed <= (num_slots * pairs + token_dim) * slot_dim or self.num_heads == 1

    def _read_absorbed(
        self,
        query: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        recency: Tensor | None,
        visible: Tensor,
    ) -> Tensor:
        pooled = competition_over_time(
            rearrange(query, "b t h k e -> b 1 t (h k) e").contiguous(),
            tokens[:, None],
            visible=visible,
            window=self.window,
            bias=bias,
            recency=recency,
        )
        return rearrange(pooled[:, 0], "b t (h k) e -> b t h k e", h=self.num_heads)

    def _read_once(
        self,
        query: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        recency: Tensor | None,
        visible: Tensor,
    ) -> Tensor:
        """Bind each frame with its own slots, which are those of all frames that see it."""
        query = self._with_present_bias(query, bias)
        pooled = competition_over_time(
            rearrange(query, "b t h k e -> (b t) 1 1 (h k) e"),
            rearrange(tokens, "b t n e -> (b t) 1 1 n e"),
            visible=visible.new_ones(len(tokens) * tokens.shape[1], 1, 1),
            window=1,
        ).view(query.shape)
        weights = visible.tril().triu(1 - self.window)[..., None].to(pooled.dtype)
        if recency is not None:
            weights = weights * recency.exp()
        weights = weights.expand(-1, -1, -1, self.num_heads)
        with torch.autocast(query.device.type, enabled=False):
            return einsum(weights, pooled, "b t s h, b s h k e -> b t h k e")

    def _keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B,H,S,N,d)."""
        inputs = tokens[..., :-PADDING] * self.norm_inputs.weight + self.norm_inputs.bias
        keys, values = (
            rearrange(layer(inputs), "b s n (h d) -> b h s n d", h=self.num_heads)
            for layer in (self.to_k, self.to_v)
        )
        return keys, values

    def _read_projected(
        self,
        query: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        recency: Tensor | None,
        visible: Tensor,
    ) -> Tensor:
        keys, values = self._keys_and_values(tokens)
        pooled = competition_over_time(
            rearrange(query, "b t h k d -> b h t k d").to(keys.dtype).contiguous(),
            keys.contiguous(),
            _append_one(values),
            visible=visible,
            window=self.window,
            bias=bias,
            recency=recency,
        )
        size = query.shape[-1]
        mean = pooled[..., :size] / (pooled[..., size : size + 1] + self.eps)
        return rearrange(mean, "b h t k d -> b t k (h d)")

    def _read_plain(
        self, query: Tensor, tokens: Tensor, log_weights: Tensor | None, visible: Tensor
    ) -> Tensor:
        keys, values = self._keys_and_values(tokens)
        logits = einsum(query, keys, "b t h k d, b h s n d -> b h t k s n")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if log_weights is not None:
            logits = logits + rearrange(log_weights, "t s h -> h t 1 s 1")
        logits = logits.masked_fill(~visible[:, None, :, None, :, None], INVISIBLE)
        attn = logits.flatten(-2).softmax(-1).view(logits.shape).to(values.dtype)
        return einsum(attn, values, "b h t k s n, b h s n d -> b t k h d").flatten(-2)


def _over_rows(heads: Tensor, num_slots: int) -> Tensor:
    """Spread numbers per head of one frame (1,S,H) over the rows of the heads: (H*K,S,1)."""
    return heads[0].mT.repeat_interleave(num_slots, dim=0)[..., None]


def _append_one(features: Tensor) -> Tensor:
    padded = functional.pad(features, (0, PADDING))
    padded[..., features.shape[-1]] = 1
    return padded
