"""Discrete variational autoencoder: each patch of 4 x 4 pixels becomes one token.

B batch, C H W image, V vocabulary, N = h * w tokens, one per patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.interfaces import ScheduledModule, Tokenizer
from ocrl.types import NUM_COLOURS

PATCH_SIZE = 4


class DVAE(Tokenizer, ScheduledModule):
    """The discrete autoencoder of SLATE (Singh et al. 2022, arXiv 2110.11405, section 2.1).

    Convolutions give every patch the logits of V codes. In training the frame is drawn from a
    relaxed sample (Gumbel-softmax, Jang et al. 2017, arXiv 1611.01144, equation 2), whose
    temperature falls along a cosine; the tokens are a second, independent sample, which is hard.
    In `eval()` the likeliest code is the token and the frame is drawn from the tokens. There is no
    term that pulls codes to a prior, as in SLATE.

    What differs: a hard sample does not depend on the temperature, so none is applied to the
    tokens; hard codes look up the columns of the first layer instead of multiplying one-hot
    vectors with it, which is the same; the annealing is a share of training, not a number of
    steps.

    Args:
        vocabulary_size: V.
        image_size: (H, W), multiples of 4.
        channels: of all hidden layers; 64 in SLATE and STEVE.
        is_normalised: put a GroupNorm of one group into every hidden layer, as SLATE; STEVE
            (arXiv 2205.14065) has biases instead.
        temperatures: at the start and at the end of the annealing.
        anneal_until: the share of training after which the temperature stays.

    Raises:
        ValueError: if the patches do not tile the image, a temperature is not positive or
            `anneal_until` is not in (0,1].
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        image_size: Sequence[int],
        channels: int,
        is_normalised: bool,
        temperatures: Sequence[float],
        anneal_until: float,
    ) -> None:
        super().__init__()
        if image_size[0] % PATCH_SIZE or image_size[1] % PATCH_SIZE:
            raise ValueError(f"image_size must be a multiple of 4, got {list(image_size)}")
        if len(temperatures) != 2 or min(temperatures) <= 0:
            raise ValueError(f"expected two positive temperatures, got {list(temperatures)}")
        if not 0 < anneal_until <= 1:
            raise ValueError(f"anneal_until must be in (0,1], got {anneal_until}")
        self.vocabulary_size = vocabulary_size
        self.image_size = (image_size[0], image_size[1])
        self.grid = (image_size[0] // PATCH_SIZE, image_size[1] // PATCH_SIZE)
        self.temperatures = (temperatures[0], temperatures[1])
        self.anneal_until = anneal_until

        def layer(in_dim: int, out_dim: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
            padding = kernel_size // 2 if stride == 1 else 0
            bias = not is_normalised
            convolution = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding, bias=bias)
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
            norm = nn.GroupNorm(1, out_dim) if is_normalised else nn.Identity()
            return nn.Sequential(convolution, norm, nn.ReLU())

        self.encoder = nn.Sequential(
            layer(NUM_COLOURS, channels, PATCH_SIZE, PATCH_SIZE),
            *(layer(channels, channels, 1) for _ in range(6)),
            nn.Conv2d(channels, vocabulary_size, 1),
        )
        self.first = layer(vocabulary_size, channels, 1)
        doubling: list[nn.Module] = []
        for _ in range(2):
            doubling += [
                layer(channels, channels, 3),
                layer(channels, channels, 1),
                layer(channels, channels, 1),
                layer(channels, 4 * channels, 1),
                nn.PixelShuffle(2),
            ]
        self.decoder = nn.Sequential(*doubling, nn.Conv2d(channels, NUM_COLOURS, 1))
        self.register_buffer("progress", torch.zeros(()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def temperature(self) -> Tensor:
        """The temperature of the relaxed sample now, a scalar."""
        start, end = self.temperatures
        share = (self.progress / self.anneal_until).clamp(max=1.0)
        return end + (start - end) * 0.5 * (1 + torch.cos(math.pi * share))

    def logits(self, frames: Tensor) -> Tensor:
        """Logits of the codes (B,V,h,w) in float32.

        Raises:
            ValueError: if the frames (B,C,H,W) have another size than `image_size`.
        """
        if tuple(frames.shape[-2:]) != self.image_size:
            raise ValueError(
                f"expected frames of {list(self.image_size)}, got {list(frames.shape[-2:])}"
            )
        frames = frames.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.encoder(frames)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,N) and frames (B,C,H,W), see `Tokenizer.forward`."""
        logits = self.logits(frames)
        if not self.training:
            tokens = logits.argmax(1).flatten(1)
            return tokens, self.decode(tokens)
        tokens = (logits.detach() + _gumbel(logits)).argmax(1).flatten(1)
        noisy = logits.log_softmax(1) + _gumbel(logits)
        return tokens, self._draw(self.first((noisy / self.temperature()).softmax(1)))

    def decode(self, tokens: Tensor) -> Tensor:
        """The frames (B,C,H,W) of tokens (B,N)."""
        convolution, *rest = self.first
        assert isinstance(convolution, nn.Conv2d)
        codes = functional.embedding(tokens, convolution.weight.flatten(1).T)
        if convolution.bias is not None:
            codes = codes + convolution.bias
        hidden = rearrange(codes, "b (h w) c -> b c h w", h=self.grid[0])
        for module in rest:
            hidden = module(hidden)
        return self._draw(hidden)

    def _draw(self, hidden: Tensor) -> Tensor:
        drawn: Tensor = self.decoder(hidden)
        return drawn.to(torch.promote_types(drawn.dtype, torch.float32))


def _gumbel(logits: Tensor) -> Tensor:
    """Standard Gumbel noise of the same shape."""
    # Several times faster on a CPU than drawing exponential variables.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    uniform = torch.rand_like(logits, dtype=dtype).clamp_min_(torch.finfo(dtype).tiny)
    return uniform.log_().neg_().log_().neg_()
