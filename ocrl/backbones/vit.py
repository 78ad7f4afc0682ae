"""Vision transformers with pretrained weights.

B batch, V views, C H W image, N tokens, F token features, h w tokens per side.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.interfaces import Backbone
from ocrl.nn.mlp import MLP
from ocrl.nn.views import fold_views, unfold_views
from ocrl.types import Camera


class ViT(Backbone):
    """Patch tokens of a Hugging Face ViT, DINOv2 or DINOv3, and an MLP on them.

    Frames are resized to `input_size` and normalised; class and register tokens are dropped. The
    tokens are those of a block's output without the network's final norm, as DINOSAUR (Seitzer et
    al. 2022, arXiv 2209.14860) takes them. Position embeddings are interpolated to the grid.

    Args:
        path: local folder or name on the hub, as `transformers.AutoModel` takes it.
        image_size: (H, W) of the frames.
        input_size: (H, W) the network sees, multiples of its patch.
        layer: whose output to take, counted as in `hidden_states`: -1 is the last block.
        is_frozen: keep the network in `eval()` and without gradient; the MLP learns.
        num_tuned_blocks: how many blocks learn of a network that is not frozen, the last ones up to
            `layer` or all that there are; it stays in `eval()`. None for the whole network.
        out_dim: F after a LayerNorm and a two-layer MLP; the network's own tokens if None.
        mean: of the normalisation, one per channel.
        std: of the normalisation, one per channel.

    Raises:
        ImportError: if transformers is not installed.
        OSError: if there is no network at `path`.
        ValueError: if the network is none that cuts images into patches, or its weights are those
            of another; if `input_size` is no multiple of the patch, or `num_tuned_blocks` not
            positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        path: str,
        *,
        image_size: Sequence[int],
        input_size: Sequence[int],
        layer: int,
        is_frozen: bool,
        out_dim: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        num_tuned_blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.network = _load(path)
        config = self.network.config
        patch_size = getattr(config, "patch_size", None)
        if not isinstance(patch_size, int):
            raise ValueError(
                f"expected a vision transformer with one patch size, got {path} with a "
                f"{type(self.network).__name__}"
            )
        if any(size % patch_size for size in input_size):
            raise ValueError(
                f"expected input_size to be multiples of the patch size {patch_size} of {path}, "
                f"got {list(input_size)}"
            )
        if num_tuned_blocks is not None and num_tuned_blocks < 1:
            raise ValueError(f"num_tuned_blocks must be at least 1, got {num_tuned_blocks}")
        self.image_size = (image_size[0], image_size[1])
        self.input_size = (input_size[0], input_size[1])
        self.grid = (input_size[0] // patch_size, input_size[1] // patch_size)
        self.out_dim = config.hidden_size if out_dim is None else out_dim
        self.layer = layer
        self.is_frozen = is_frozen
        self.is_always_eval = is_frozen or num_tuned_blocks is not None
        # ViT must be told; DINOv2 always interpolates, DINOv3 rotates and has nothing to.
        parameters = inspect.signature(self.network.forward).parameters
        self.options: dict[str, Any] = (
            {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        )
        self.head: nn.Module = nn.Identity()
        if out_dim is not None:
            self.head = MLP(
                config.hidden_size,
                hidden_dims=[config.hidden_size],
                out_dim=out_dim,
                activation="gelu",
                norm_first=True,
            )
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        if self.is_always_eval:
            self.network.requires_grad_(False).eval()
        if num_tuned_blocks is not None and not is_frozen:
            for block in self._blocks()[-num_tuned_blocks:]:
                block.requires_grad_(True)

    def train(self, mode: bool = True) -> ViT:
        """Set the mode; a network that does not learn as a whole stays in `eval`."""
        super().train(mode)
        if self.is_always_eval:
            self.network.eval()
        return self

    def _blocks(self) -> list[nn.Module]:
        """The blocks that the tokens have passed."""
        number = self.network.config.num_hidden_layers
        stacks = (part for part in self.network.modules() if isinstance(part, nn.ModuleList))
        blocks = next(stack for stack in stacks if len(stack) == number)
        return list(blocks)[: range(number + 1)[self.layer]]

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`; the camera is not read."""
        images, num_views = fold_views(frames, image_size=self.image_size)
        with torch.no_grad() if self.is_frozen else nullcontext():
            if self.input_size != self.image_size:
                images = functional.interpolate(
                    images, size=self.input_size, mode="bicubic", align_corners=False
                )
            pixels = (images - self.mean) / self.std
            hidden = self.network(pixels, output_hidden_states=True, **self.options).hidden_states
            # Class and register tokens stand before the patches.
            tokens = hidden[self.layer][:, -self.grid[0] * self.grid[1] :]
        return unfold_views(self.head(tokens), num_views=num_views)


def _load(path: str) -> Any:
    try:
        from huggingface_hub.utils import logging as hub_logging
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError("the vit backbone needs transformers: pip install 'ocrl[vit]'") from error
    verbosity, verbosity_of_hub = logging.get_verbosity(), hub_logging.get_verbosity()
    # What does not fit, or can not be reached, is told below, in one sentence.
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    try:
        network, found = AutoModel.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"expected a folder with config.json and weights, or a name on the Hugging Face hub, "
            f"got {path!r}: {str(error).splitlines()[0]} Without a network, copy that folder from "
            "where there is one and give it as vit=FOLDER"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(verbosity_of_hub)
    misfits = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    # A pooler is not read here, and many published networks have none.
    misfits = sorted(name for name in misfits if "pooler" not in name)
    if misfits:
        raise ValueError(
            f"expected weights of the {type(network).__name__} that {path}/config.json describes, "
            f"got weights without {len(misfits)} of its tensors, {misfits[0]} among them"
        )
    return network
