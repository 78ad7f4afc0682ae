"""The queries that the first binding starts from.

B batch, K slots, D slot size, N tokens, F token features, M boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.interfaces import Initializer, ScheduledModule
from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.mlp import MLP


class _SlotNoise(nn.Module):
    """Standard normal noise (B,K,D): drawn in training, one fixed (K,D) for all in `eval()`."""

    fixed: Tensor

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.register_buffer("fixed", torch.randn(num_slots, slot_dim))

    def forward(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        if not self.training:
            return self.fixed.expand(batch_size, -1, -1)
        return torch.randn(
            batch_size,
            *self.fixed.shape,
            generator=generator,
            device=self.fixed.device,
            dtype=self.fixed.dtype,
        )


class GaussianInitializer(Initializer):
    """Independent draws from one Gaussian that all slots share.

    Locatello et al. (2020, arXiv 2006.15055, section 2.1). Differs from the paper in `eval()`:
    each slot has its own fixed noise, the same for every sample, so that the same frame has the
    same slots. The fixed noise is stored with the weights.

    Args:
        num_slots: K.
        slot_dim: D.
        is_learned: learn mean and standard deviation; else they stay 0 and 1, as SAVi's
            unconditional Gaussian.
    """

    def __init__(self, num_slots: int, *, slot_dim: int, is_learned: bool) -> None:
        super().__init__()
        mean, log_std = torch.zeros(1, 1, slot_dim), torch.zeros(1, 1, slot_dim)
        if is_learned:
            self.mean, self.log_std = nn.Parameter(mean), nn.Parameter(log_std)
            nn.init.xavier_uniform_(self.mean)
            nn.init.xavier_uniform_(self.log_std)
        else:
            self.register_buffer("mean", mean, persistent=False)
            self.register_buffer("log_std", log_std, persistent=False)
        self.noise = _SlotNoise(num_slots, slot_dim)

    def forward(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Make queries of noise.

        Args:
            tokens: (B,N,F), read for its batch size only.
            condition: noise (B,K,D) to use instead of its own, in training and in `eval()`; what
                has another shape is a hint for other initializers.
            generator: of the noise.

        Returns:
            (B,K,D).
        """
        noise = condition
        if noise is None or noise.shape[1:] != self.noise.fixed.shape:
            noise = self.noise(len(tokens), generator)
        return self.mean + noise * self.log_std.exp()


class LearnedInitializer(Initializer, ScheduledModule):
    """One learned vector per slot, the same for every sample.

    SAVi's unconditional learned start (Kipf et al. 2022, arXiv 2111.12594), at unit variance.
    Slots that lose everywhere in the first steps are not learned any more and may stay lost, so
    noise of unit variance can be added that fades while training is young: it lets each of them win
    something now and then. Ours; `noise_until` is 0 in SAVi, and should be where a run starts
    from trained weights.

    Args:
        num_slots: K.
        slot_dim: D.
        noise_until: share of training at which the noise has faded; there is none in `eval()`.

    Raises:
        ValueError: if `noise_until` is not in [0,1].
    """

    def __init__(self, num_slots: int, *, slot_dim: int, noise_until: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= noise_until <= 1.0:
            raise ValueError(f"expected noise_until in [0,1], got {noise_until}")
        self.slots = nn.Parameter(torch.randn(num_slots, slot_dim))
        self.noise_until = noise_until
        self.progress: Tensor
        # Without a trainer that says how far training is, as where an agent tunes a trained
        # encoder, there is no noise.
        self.register_buffer("progress", torch.ones(()), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Initializer.forward`; noise is drawn by `generator`."""
        queries = self.slots.expand(len(tokens), -1, -1)
        if not self.training or not self.noise_until:
            return queries
        left = (1.0 - self.progress / self.noise_until).clamp_min(0.0)
        noise = torch.randn(
            queries.shape, generator=generator, device=queries.device, dtype=queries.dtype
        )
        return queries + left * noise


class BoxInitializer(Initializer):
    """Queries from the boxes of the objects in the first frame.

    SAVi's conditioning (Kipf et al. 2022, arXiv 2111.12594): an MLP per box. Slots beyond the
    boxes get padding boxes. Differs from the paper in that the MLP is followed by a LayerNorm,
    which SmoothSA's variant has.

    Args:
        num_slots: K.
        slot_dim: D.
        hidden_dim: hidden size of the MLP.
        has_background: put an all-zero box for the background in front.
        is_noisy: add unit noise per slot, as SmoothSA's variant; fixed in `eval()`.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        slot_dim: int,
        hidden_dim: int,
        has_background: bool,
        is_noisy: bool,
    ) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.has_background = has_background
        self.mlp = MLP(4, hidden_dims=[hidden_dim], out_dim=slot_dim)
        self.norm = nn.LayerNorm(slot_dim)
        self.noise = _SlotNoise(num_slots, slot_dim) if is_noisy else None

    def forward(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Make queries from boxes.

        Args:
            tokens: (B,N,F), read for its batch size only.
            condition: (B,M,4) left, top, right, bottom in [0,1]; rows of -1 are padding.
            generator: of the noise.

        Returns:
            (B,K,D).

        Raises:
            ValueError: if there are no boxes, or more than slots.
        """
        if condition is None or condition.ndim != 3 or condition.shape[-1] != 4:
            got = "none" if condition is None else f"shape {tuple(condition.shape)}"
            raise ValueError(f"expected boxes (B,M,4) as the condition of each call, got {got}")
        boxes = condition.to(torch.promote_types(tokens.dtype, torch.float32))
        if self.has_background:
            boxes = functional.pad(boxes, (0, 0, 1, 0))
        missing = self.num_slots - boxes.shape[1]
        if missing < 0:
            raise ValueError(
                f"expected at most {self.num_slots} boxes"
                f"{' with the background' if self.has_background else ''}, got {boxes.shape[1]}: "
                "give the encoder more slots or the clip fewer boxes"
            )
        boxes = functional.pad(boxes, (0, 0, 0, missing), value=-1.0)
        queries = self.norm(self.mlp(boxes))
        if self.noise is not None:
            queries = queries + self.noise(len(tokens), generator)
        return queries


class PreheatedInitializer(Initializer, ScheduledModule):
    """Cold queries that have read the frame once: the preheater of SmoothSA.

    Zhao et al. (2025, arXiv 2508.05417). One transformer decoder block without biases, its
    cross-attention first and without a norm before it, turns the queries of another initializer
    into preheated ones. It learns only from the preheat objective, which pulls
    `preheat(tokens)` to the final slots: `forward` gives them detached, with learned noise in
    training. Differs from the paper in `eval()`, where the cold queries are deterministic.

    Args:
        cold: makes the queries to preheat; the paper's are a shared learned Gaussian (start it at
            mean 0, standard deviation 1 for the paper's) or noisy boxes.
        token_dim: F.
        slot_dim: D.
        num_heads: heads of the block.
        mlp_dim: hidden size of the block's MLP.
        detach_until: share of training during which the preheat objective does not reach the
            backbone.
        is_normalised: give preheated queries zero mean and unit variance over D. The paper does
            not: there queries are drawn to slots, and slots start from queries, so that both may
            grow without end where the decoder does not care how large a slot is. Normalise in the
            preheat objective as well.
    """

    def __init__(
        self,
        cold: Initializer,
        *,
        token_dim: int,
        slot_dim: int,
        num_heads: int,
        mlp_dim: int,
        detach_until: float,
        is_normalised: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= detach_until <= 1.0:
            raise ValueError(f"detach_until must be in [0,1], got {detach_until}")
        self.cold = cold
        self.detach_until = detach_until
        self.is_normalised = is_normalised
        self.register_buffer("progress", torch.zeros(()))
        self.to_memory = nn.Linear(token_dim, slot_dim)
        self.cross_attention = MultiHeadAttention(slot_dim, num_heads=num_heads, bias=False)
        self.norm_self = nn.LayerNorm(slot_dim, bias=False)
        self.self_attention = MultiHeadAttention(slot_dim, num_heads=num_heads, bias=False)
        self.mlp = MLP(
            slot_dim,
            hidden_dims=[mlp_dim],
            out_dim=slot_dim,
            activation="gelu",
            norm_first=True,
            bias=False,
        )
        self.log_std = nn.Parameter(torch.zeros(1, 1, slot_dim))

    def preheat(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The preheated queries (B,K,D), with their gradient, for the preheat objective."""
        if self.training:
            tokens = torch.where(self.progress < self.detach_until, tokens.detach(), tokens)
        memory = self.to_memory(tokens)
        queries = self.cold(tokens, condition=condition, generator=generator)
        queries = queries + self.cross_attention(queries, memory)
        queries = queries + self.self_attention(self.norm_self(queries))
        queries = queries + self.mlp(queries)
        if self.is_normalised:
            queries = functional.layer_norm(queries, queries.shape[-1:])
        return queries

    def forward(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Initializer.forward`."""
        preheated = self.preheat(tokens, condition=condition, generator=generator)
        return self.release(preheated, generator=generator)

    def release(self, preheated: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Detach preheated queries (B,K,D), and add noise in training: what binding starts from."""
        queries = preheated.detach()
        if not self.training:
            return queries
        noise = torch.randn(
            queries.shape, generator=generator, device=queries.device, dtype=queries.dtype
        )
        return queries + noise * self.log_std.exp()


def start_queries(
    initializer: Initializer, tokens: Tensor, *, condition: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Queries (B,K,D) for a first frame, and the preheated ones if the initializer preheats."""
    if isinstance(initializer, PreheatedInitializer):
        preheated = initializer.preheat(tokens, condition=condition)
        return initializer.release(preheated), preheated
    return initializer(tokens, condition=condition), None


def preheat_aux(
    initializer: Initializer, preheated: Tensor | None, slots: Tensor, start: Tensor | bool
) -> Mapping[str, Tensor]:
    """What the preheat objective reads of one frame; empty if the initializer does not preheat.

    Args:
        initializer: of the encoder.
        preheated: (B,K,D) from `start_queries`; None if no sample starts at this frame.
        slots: (B,K,D) that the frame was bound to.
        start: (B,) bool or one for all: the samples that start at this frame.

    Returns:
        `preheat_queries` (B,1,K,D): the preheated queries of samples that start, and the detached
        slots of the others, so that those add nothing.
    """
    if not isinstance(initializer, PreheatedInitializer):
        return {}
    ongoing = slots.detach()
    if preheated is None:
        return {"preheat_queries": ongoing[:, None]}
    is_start = torch.as_tensor(start, device=slots.device).view(-1, 1, 1)
    return {"preheat_queries": torch.where(is_start, preheated, ongoing)[:, None]}
