"""A trained model and a prior over its codes: what scenes there are, and new ones.

B batch, T frames, K slots, G code groups, S scenes, C H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocrl.health import code_use, describe_code_use
from ocrl.interfaces import CodePrior, SlotCodes
from ocrl.log import TensorBoard
from ocrl.model import SlotModel
from ocrl.types import Clip
from ocrl.visualize import grid, to_png, to_uint8

_COLUMNS = 8


@dataclass(frozen=True)
class PriorOutput:
    """One pass over a clip.

    Attributes:
        losses: `scene` and `code`, the negative log-likelihood in nats of a scene and of a code.
        total: what is minimised, that of a scene.
    """

    losses: dict[str, Tensor]
    total: Tensor


class ScenePrior(nn.Module):
    """A frozen model whose slots are codes, and a prior over the codes of its frames.

    The second stage of the neural language of thought (Wu, Lee and Ahn 2024, arXiv 2402.01203):
    `ocrl.train.Trainer` trains it, and its checkpoint has the model in it. Every frame is a scene.
    Differs from the published code in that codes are made anew at each step and not kept in files.

    Args:
        model: stays as it is, in `eval()`.
        prior: of as many slots and codes as the model has.

    Raises:
        ValueError: if the model has no codes, its slots are more than codes, or the prior does not
            fit.
    """

    def __init__(self, model: SlotModel, *, prior: CodePrior) -> None:
        super().__init__()
        sizes = code_sizes_of(model)
        expected, got = (model.encoder.num_slots, sizes), (prior.num_slots, prior.code_sizes)
        if expected != got:
            raise ValueError(
                f"expected a prior over {expected[0]} slots with codes of sizes "
                f"{list(expected[1])}, got {got[0]} with {list(got[1])}"
            )
        self.model = model.requires_grad_(False).eval()
        self.prior = prior

    def train(self, mode: bool = True) -> ScenePrior:
        """Set the mode; the model stays in `eval`."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def codes(self, clip: Clip) -> Tensor:
        """The codes (B*T,K,G) of the frames of a clip."""
        codes = self.model.encode(clip).codes
        assert codes is not None
        return codes.flatten(0, 1)

    def forward(self, clip: Clip) -> PriorOutput:
        """How unlikely the frames of a clip are."""
        codes = self.codes(clip)
        scene = -self.prior.log_prob(codes).mean()
        return PriorOutput({"scene": scene, "code": scene / codes[0].numel()}, scene)

    @torch.no_grad()
    def draw(self, codes: Tensor) -> Tensor:
        """Pictures (S,C,H,W) in [0,1] of codes (S,K,G).

        Raises:
            ValueError: if the decoder draws nothing from slots alone.
        """
        assert isinstance(self.model.encoder, SlotCodes)
        slots, decoder = self.model.encoder.slots_of(codes)[:, None], self.model.decoder
        pictures = decoder(slots).recon if decoder.space == "pixels" else decoder.depict(slots)
        if pictures is None:
            raise ValueError(
                "expected a decoder that draws slots, of pixels or of a tokenizer's tokens, got "
                f"{type(decoder).__name__} in the space of {decoder.space}"
            )
        return pictures[:, 0].float().clamp(0.0, 1.0)


def code_sizes_of(model: SlotModel) -> tuple[int, ...]:
    """How many codes each group of a model's slots has.

    Raises:
        ValueError: if the model has no codes, or its slots are more than codes.
    """
    encoder = model.encoder
    if not isinstance(encoder, SlotCodes) or not encoder.code_sizes:
        raise ValueError(
            "expected a model whose slots are codes (encoder=svq, or vq_sa without continuous "
            f"coordinates), got {type(encoder).__name__}, which gives none"
        )
    zeros = torch.zeros(1, len(encoder.code_sizes), dtype=torch.long)
    try:
        encoder.slots_of(zeros.to(next(model.parameters()).device))
    except ValueError as error:
        raise ValueError(f"expected a model whose slots are codes alone: {error}") from error
    return encoder.code_sizes


def scene_picture(scenes: ScenePrior, new: Tensor, clips: Iterable[Clip] = ()) -> Tensor:
    """New scenes in rows of eight; above them real ones, and what the codes of those say.

    Rows are shorter if there are fewer of either; what does not fill a row is left out.

    Args:
        scenes: the model and the prior, in `eval()`.
        new: codes (S,K,G).
        clips: their first frames are the real ones; as many as stand in a row are shown.

    Returns:
        (3,H',W') uint8, on the CPU.
    """
    real = [clip[:1].to_float() for clip in clips]
    found = sum(clip.batch_size for clip in real) or _COLUMNS
    columns = min(_COLUMNS, len(new), found)
    rows = list(to_uint8(scenes.draw(new[: len(new) // columns * columns])).split(columns))
    if real:
        frames = torch.cat([clip.video[:, 0] for clip in real])[:columns]
        codes = torch.cat([scenes.codes(clip) for clip in real])[:columns]
        rows = [to_uint8(frames), to_uint8(scenes.draw(codes)), *rows]
    return grid(rows)


class PriorMonitor:
    """Likelihood of held-out frames, and new scenes, every so many steps of training.

    Figures are in nats per code: `code` of the prior; `uniform`, where nothing is known;
    `independent`, the mean entropy of each code of each slot by itself among these very frames,
    which no prior that takes codes one by one can be below.
    """

    def __init__(
        self,
        clips: Callable[[], Iterable[Clip]],
        *,
        num_scenes: int,
        temperature: float,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        """Remember what to evaluate on.

        Args:
            clips: gives the same held-out clips at every call.
            num_scenes: how many are drawn.
            temperature: of the draw.
            device: where the model will be.
            say: takes a sentence about codes that the frames do not use, once.
        """
        self._clips, self._num_scenes, self._temperature = clips, num_scenes, temperature
        self._device, self._say = device, say
        self._is_told = False

    @torch.no_grad()
    def __call__(self, model: nn.Module, *, step: int, board: TensorBoard) -> Mapping[str, float]:
        """Evaluate a `ScenePrior`, log new scenes, and give the figures by name."""
        if not isinstance(model, ScenePrior):
            raise TypeError(f"expected a ScenePrior, got {type(model).__name__}")
        clips = [clip.to(self._device) for clip in self._clips()]
        codes = torch.cat([model.codes(clip) for clip in clips])
        sizes = torch.tensor(model.prior.code_sizes, dtype=torch.float64)
        perplexity, _ = code_use(codes.flatten(1).cpu())
        nats = torch.cat([model.prior.log_prob(piece) for piece in codes.split(256)])
        if not self._is_told:
            for sentence in describe_code_use(codes.cpu(), model.prior.code_sizes):
                self._is_told = True
                self._say(sentence)
        generator = torch.Generator(self._device).manual_seed(0)
        new = model.prior.sample(
            self._num_scenes, temperature=self._temperature, generator=generator
        )
        board.picture("scenes", to_png(scene_picture(model, new, clips)), step=step)
        return {
            "code": -nats.mean().item() / codes[0].numel(),
            "independent": perplexity.log().mean().item(),
            "uniform": sizes.log().mean().item(),
        }
