"""Discrete latents of slots: what a slot is said with while a dynamics imagines.

... leading axes, K slots, D slot size, G groups, C classes of a group, L = G * C, E what a dynamics
reads of a slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ocrl.nn.mlp import MLP


class SlotLatent(nn.Module, ABC):
    """Slots to latents, what a dynamics says to latents, and latents to slots.

    Latents are one-hot classes of G groups. What a dynamics says is drawn in training and the
    likeliest in `eval()`.

    Attributes:
        slot_dim: D.
        dim: E, what the dynamics reads and writes.
    """

    slot_dim: int
    dim: int

    @abstractmethod
    def encode(self, slots: Tensor) -> Tensor:
        """Latents (...,K,L) of slots (...,K,D)."""

    @abstractmethod
    def embed(self, latents: Tensor) -> Tensor:
        """What the dynamics reads (...,K,E) of latents (...,K,L)."""

    @abstractmethod
    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What a dynamics says (...,K,E) as latents (...,K,L) and log-probabilities (...,K,G,C)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Slots (...,K,D) of latents (...,K,L)."""

    @abstractmethod
    def costs(self, logits: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """What it costs that log-probabilities (...,K,G,C) foretold slots (...,K,D).

        Returns:
            By name, weighted and in float32, (...,K).
        """


def mix_uniform(logits: Tensor, unimix: float, *, is_class: Tensor | None = None) -> Tensor:
    """Log-probabilities in float32 at least, with a share of the uniform distribution.

    Hafner et al. 2023 (DreamerV3, arXiv 2301.04104): no class is ever impossible, so that a
    divergence stays finite.

    Args:
        logits: (...,C).
        unimix: the share.
        is_class: broadcastable to (...,C), false for padding, whose probability is e^-87.

    Returns:
        (...,C).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if is_class is None:
        return ((1 - unimix) * wide.softmax(-1) + unimix / logits.shape[-1]).log()
    probability = wide.masked_fill(~is_class, -torch.inf).softmax(-1)
    uniform = is_class / is_class.sum(-1, keepdim=True)
    mixed = (1 - unimix) * probability + unimix * uniform
    return mixed.clamp(min=torch.finfo(torch.float32).tiny).log()


def pick(log_probability: Tensor, *, is_drawn: bool) -> Tensor:
    """One-hot classes (...,C), with the gradient of the probabilities (straight through).

    Args:
        log_probability: (...,C).
        is_drawn: draw a class, in place of taking the likeliest.
    """
    probability = log_probability.exp()
    # The first arrival of exponential clocks with these rates is a draw.
    score = probability / torch.empty_like(probability).exponential_() if is_drawn else probability
    chosen = torch.zeros_like(probability).scatter_(-1, score.argmax(-1, keepdim=True), 1.0)
    return chosen + probability - probability.detach()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities (...,G,C), summed over groups: (...)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


class CategoricalLatent(SlotLatent):
    """A few categorical variables for each slot, learned with the dynamics.

    STICA's 16 x 8 per slot (arXiv 2511.14262) and OC-STORM's 16 x 16 per object (Zhang et al.
    2025, arXiv 2501.16443) in the manner of DreamerV3 (Hafner et al. 2023, arXiv 2301.04104,
    equation 5): straight-through draws, a share of the uniform distribution, and a divergence
    between what the dynamics foretold and what the slots say, of which each side learns from its
    own part, above as many nats as are free. What a dynamics writes are the logits.

    Args:
        slot_dim: D.
        num_groups: G.
        num_classes: C.
        hidden_dim: of the two-layer networks from and to slots.
        unimix: share of the uniform distribution.
        free_nats: of the divergence of a slot, below which nothing is learned from it.
        prior_weight: of the divergence as the dynamics sees it.
        posterior_weight: of the divergence as the slots' encoder sees it.
        reconstruction_weight: of the mean squared error of slots said by their own latent.

    Raises:
        ValueError: if `unimix` is not in (0,1).
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_groups: int,
        num_classes: int,
        hidden_dim: int,
        unimix: float,
        free_nats: float,
        prior_weight: float,
        posterior_weight: float,
        reconstruction_weight: float,
    ) -> None:
        super().__init__()
        self.slot_dim, self.dim = slot_dim, num_groups * num_classes
        self.shape = (num_groups, num_classes)
        self.unimix, self.free_nats = _check_unimix(unimix), free_nats
        self.prior_weight, self.posterior_weight = prior_weight, posterior_weight
        self.reconstruction_weight = reconstruction_weight
        self.encoder = MLP(
            slot_dim, hidden_dims=[hidden_dim], out_dim=self.dim, activation="silu", norm_first=True
        )
        self.decoder = MLP(self.dim, hidden_dims=[hidden_dim], out_dim=slot_dim, activation="silu")

    def encode(self, slots: Tensor) -> Tensor:
        """See `SlotLatent.encode`."""
        return pick(self._posterior(slots), is_drawn=self.training).flatten(-2)

    def embed(self, latents: Tensor) -> Tensor:
        """See `SlotLatent.embed`: as they are."""
        return latents

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """See `SlotLatent.predict`."""
        logits = mix_uniform(hidden.unflatten(-1, self.shape), self.unimix)
        return pick(logits, is_drawn=self.training).flatten(-2), logits

    def decode(self, latents: Tensor) -> Tensor:
        """See `SlotLatent.decode`."""
        return self.decoder(latents).to(latents.dtype)

    def costs(self, logits: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """See `SlotLatent.costs`: `divergence` and `reconstruction`."""
        posterior = self._posterior(target)
        for_prior = divergence(posterior.detach(), logits).clamp(min=self.free_nats)
        for_posterior = divergence(posterior, logits.detach()).clamp(min=self.free_nats)
        latents = pick(posterior, is_drawn=self.training).flatten(-2)
        error = (self.decode(latents) - target).float().square().mean(-1)
        return {
            "divergence": self.prior_weight * for_prior + self.posterior_weight * for_posterior,
            "reconstruction": self.reconstruction_weight * error,
        }

    def _posterior(self, slots: Tensor) -> Tensor:
        return mix_uniform(self.encoder(slots).unflatten(-1, self.shape), self.unimix)


def _check_unimix(unimix: float) -> float:
    if not 0 < unimix < 1:
        raise ValueError(f"expected unimix between 0 and 1, got {unimix}")
    return unimix


class FactorCodeLatent(SlotLatent):
    """The codes of an encoder whose slots are codes (VQ-SA, SVQ), one token for each slot.

    A slot's token is the sum of embeddings of its codes, which start from what the codes stand for
    in the encoder; the codes of the next slot are foretold in parallel by a head for each group,
    and cost their cross-entropy. No published dynamics does so; a token per slot and heads in
    parallel are OC-STORM's (Zhang et al. 2025, arXiv 2501.16443), with the codes in place of
    categoricals that are learned with it.

    Codes are read back from slots: the slots of these encoders are sums over groups of what a code
    stands for, so a slot is split into its groups' parts by projections, and each part is that of
    the nearest code.

    Args:
        slot_dim: D, and E.
        code_sizes: number of codes of each group, as the encoder's; C is the largest.
        unimix: share of the uniform distribution in what is foretold.
        weight: of the cross-entropy, which is in nats and summed over groups.

    Raises:
        ValueError: if there is no group, or `unimix` is not in (0,1).
    """

    codebook: Tensor
    base: Tensor
    split: Tensor
    is_code: Tensor

    def __init__(
        self, slot_dim: int, *, code_sizes: list[int], unimix: float, weight: float
    ) -> None:
        super().__init__()
        if not code_sizes or min(code_sizes) < 1:
            raise ValueError(f"expected code_sizes of at least one code each, got {code_sizes}")
        self.slot_dim = self.dim = slot_dim
        self.code_sizes = tuple(code_sizes)
        self.unimix, self.weight = _check_unimix(unimix), weight
        num_groups, largest = len(code_sizes), max(code_sizes)
        is_code = torch.arange(largest) < torch.tensor(code_sizes)[:, None]
        self.register_buffer("is_code", is_code, persistent=False)
        codebook = torch.randn(num_groups, largest, slot_dim) * is_code[..., None]
        self.register_buffer("base", torch.zeros(slot_dim))
        self.register_buffer("codebook", torch.zeros_like(codebook))
        self.register_buffer("split", torch.zeros(num_groups, slot_dim, slot_dim))
        self.embedding = nn.Parameter(torch.zeros_like(codebook))
        self.norm = nn.LayerNorm(slot_dim)
        self.head = nn.Parameter(torch.zeros(num_groups, slot_dim, largest))
        self.set_codes(codebook, self.base)

    @torch.no_grad()
    def set_codes(self, codebook: Tensor, base: Tensor) -> None:
        """Say what the codes stand for, and start the embeddings from it.

        Args:
            codebook: (G,C,D), the slots' part of each code; rows beyond a group's codes are not
                read.
            base: (D,), what is added to the sum of parts.
        """
        share = self.is_code[..., None].to(codebook) / self.is_code.sum(1)[:, None, None]
        mean = (codebook * share).sum(1)
        self.codebook.copy_((codebook - mean[:, None]) * self.is_code[..., None])
        self.base.copy_(base + mean.sum(0))
        self.split.copy_(_split(self.codebook))
        self.embedding.copy_(self.codebook)

    def codes_of(self, slots: Tensor) -> Tensor:
        """The codes (...,K,G) that slots (...,K,D) stand for."""
        return self._closeness(slots).argmax(-1)

    def encode(self, slots: Tensor) -> Tensor:
        """See `SlotLatent.encode`; nothing is drawn, the slots say their codes."""
        closeness = self._closeness(slots).log_softmax(-1)
        return pick(closeness, is_drawn=False).flatten(-2)

    def embed(self, latents: Tensor) -> Tensor:
        """See `SlotLatent.embed`: the sum of the codes' embeddings."""
        return self.base + latents @ self.embedding.flatten(0, 1)

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """See `SlotLatent.predict`."""
        said = torch.einsum("...ke,gec->...kgc", self.norm(hidden), self.head)
        logits = mix_uniform(said, self.unimix, is_class=self.is_code)
        return pick(logits, is_drawn=self.training).flatten(-2), logits

    def decode(self, latents: Tensor) -> Tensor:
        """See `SlotLatent.decode`."""
        return self.base + latents @ self.codebook.flatten(0, 1)

    def costs(self, logits: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """See `SlotLatent.costs`: `codes`, the cross-entropy."""
        codes = self.codes_of(target)
        likelihood = logits.gather(-1, codes[..., None]).squeeze(-1)
        return {"codes": -self.weight * likelihood.sum(-1)}

    def _closeness(self, slots: Tensor) -> Tensor:
        """Negative squared distances (...,K,G,C) of the parts of slots to those of codes."""
        # Differences of numbers that are nearly equal are not for the precision of an autocast.
        with torch.autocast(slots.device.type, enabled=False):
            offset = slots.to(self.base) - self.base
            parts = torch.einsum("...kd,gde->...kge", offset, self.split)
            product = torch.einsum("...kge,gce->...kgc", parts, self.codebook)
            length = self.codebook.square().sum(-1)
            return (2 * product - length).masked_fill(~self.is_code, -torch.inf)


def _split(codebook: Tensor) -> Tensor:
    """Projections (G,D,D) of a sum of codes (G,C,D) onto the part of each group.

    They are exact where the groups span subspaces of which none is in the sum of the others.
    """
    bases = [_span(group) for group in codebook.double()]
    inverse = torch.linalg.pinv(torch.cat(bases))
    sizes = [len(basis) for basis in bases]
    parts = zip(inverse.split(sizes, dim=1), bases, strict=True)
    return torch.stack([columns @ basis for columns, basis in parts]).to(codebook)


def _span(vectors: Tensor) -> Tensor:
    """An orthonormal basis (R,D) of what vectors (C,D) span."""
    _, values, basis = torch.linalg.svd(vectors, full_matrices=False)
    return basis[values > 1e-6 * values.max().clamp(min=1e-12)]
