"""The Slot Mixture Module: slots are the Gaussians of a mixture over the tokens of a frame.

B batch, T frames, K slots, D slot size, N tokens, F token features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocrl.interfaces import Backbone, FrameSlotEncoder, Initializer, RecurrentSlotEncoder, State
from ocrl.nn.mixture import MixtureCorrector
from ocrl.nn.predictor import Predictor
from ocrl.nn.slot_attention import Gradient, correct_frame, resolve_start
from ocrl.types import Camera, SlotOutput


class SlotMixture(FrameSlotEncoder):
    """The image encoder of Kirilenko et al. (2024, arXiv 2311.04640), applied to every frame.

    What differs from the paper stands in `ocrl.nn.mixture.MixtureCorrector`. Slots of different
    frames do not correspond.

    `aux["mixture_weights"]` (B,T,K) are the components' shares of a frame, which sum to 1 over K:
    a slot that owns next to nothing is empty.

    Args:
        backbone: frames to tokens.
        initializer: the means of every frame's start.
        num_slots: K.
        slot_dim: D.
        num_iterations: E and M steps per frame; 3 in the paper's object discovery.
        mlp_dim: hidden size of the residual MLP; no MLP if None.
        head_dim: hidden size of the MLP that makes slots of means and deviations.
        likelihood_power: see `MixtureCorrector`.
        gradient: see `ocrl.nn.slot_attention.Corrector`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        num_slots: int,
        slot_dim: int,
        num_iterations: int,
        mlp_dim: int | None,
        head_dim: int,
        likelihood_power: float,
        gradient: Gradient,
    ) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.num_iterations = num_iterations
        self.backbone = backbone
        self.initializer = initializer
        self.corrector = MixtureCorrector(
            backbone.out_dim,
            slot_dim=slot_dim,
            mlp_dim=mlp_dim,
            head_dim=head_dim,
            likelihood_power=likelihood_power,
            gradient=gradient,
        )

    def encode(
        self, frames: Tensor, *, condition: Tensor | None, camera: Camera | None = None
    ) -> SlotOutput:
        """Encode frames, see `FrameSlotEncoder.encode`."""
        tokens = self.backbone(frames, camera=camera)
        start = self.corrector.start(self.initializer(tokens, condition=condition))
        components, attn = self.corrector(start, tokens, num_iterations=self.num_iterations)
        return _output(self.corrector, components, attn, start)


class SlotMixtureVideo(RecurrentSlotEncoder):
    """A mixture that goes on from the last frame's.

    Kirilenko et al. (2024, arXiv 2311.04640) bind images; the recurrence is that of SAVi (Kipf et
    al. 2022, arXiv 2111.12594): the predictor carries the means, and deviations and weights are
    kept as they were. Everything else is as in `SlotMixture`.

    Args:
        backbone: frames to tokens.
        initializer: the means of a first frame's start.
        predictor: means to those that the next frame starts from; it may read the last frame only
            (`window` 1).
        num_slots: K.
        slot_dim: D.
        num_iterations_first: E and M steps on a first frame.
        num_iterations_rest: on later frames.
        mlp_dim: see `SlotMixture`.
        head_dim: see `SlotMixture`.
        likelihood_power: see `SlotMixture`.
        gradient: see `SlotMixture`.

    Raises:
        ValueError: if the predictor reads more than the last frame.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        initializer: Initializer,
        predictor: Predictor,
        num_slots: int,
        slot_dim: int,
        num_iterations_first: int,
        num_iterations_rest: int,
        mlp_dim: int | None,
        head_dim: int,
        likelihood_power: float,
        gradient: Gradient,
    ) -> None:
        super().__init__()
        if predictor.window != 1:
            raise ValueError(
                f"expected a predictor that reads one frame, got window {predictor.window}"
            )
        self.num_slots = num_slots
        self.slot_dim = slot_dim
        self.num_iterations_first = num_iterations_first
        self.num_iterations_rest = num_iterations_rest
        self.backbone = backbone
        self.initializer = initializer
        self.predictor = predictor
        self.corrector = MixtureCorrector(
            backbone.out_dim,
            slot_dim=slot_dim,
            mlp_dim=mlp_dim,
            head_dim=head_dim,
            likelihood_power=likelihood_power,
            gradient=gradient,
        )

    def initial_state(self, batch_size: int) -> State:
        """Components (B,K,2D+1) of the last frame, and whether there was none yet (B,)."""
        weight = self.corrector.log_std
        return {
            "components": weight.new_zeros(batch_size, self.num_slots, 2 * self.slot_dim + 1),
            "is_fresh": torch.ones(batch_size, dtype=torch.bool, device=weight.device),
        }

    def bind(
        self,
        tokens: Tensor,
        state: State,
        is_first: Tensor | bool,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[SlotOutput, State]:
        """Bind one frame, see `RecurrentSlotEncoder.bind`."""
        is_start = resolve_start(is_first, state["is_fresh"])
        fresh = ongoing = None
        if is_start is not False:
            fresh = self.corrector.start(self.initializer(tokens, condition=condition))
        if is_start is not True:
            mean, *shape = self.corrector.unpack(state["components"])
            mean = self.predictor([mean], [tokens], (~state["is_fresh"]).long())
            ongoing = torch.cat([mean.to(shape[0]), *shape], dim=-1)
        components, attn, start = correct_frame(
            self.corrector,
            tokens,
            start=is_start,
            fresh=fresh,
            ongoing=ongoing,
            num_iterations_first=self.num_iterations_first,
            num_iterations_rest=self.num_iterations_rest,
        )
        output = _output(self.corrector, components, attn, start)
        return output, {
            "components": components,
            "is_fresh": torch.zeros_like(state["is_fresh"]),
        }


def _output(
    corrector: MixtureCorrector, components: Tensor, attn: Tensor, start: Tensor
) -> SlotOutput:
    """What a frame was bound to, with T = 1."""
    _, _, log_weight = corrector.unpack(components)
    return SlotOutput(
        slots=corrector.slots(components)[:, None],
        attn=attn[:, None],
        queries=corrector.unpack(start)[0][:, None],
        aux={"mixture_weights": log_weight.exp().squeeze(-1)[:, None]},
    )
