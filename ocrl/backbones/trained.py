"""A backbone that another run trained.

B batch, V views, C H W image, N tokens, F token features.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ocrl.interfaces import Backbone, TaughtModule
from ocrl.nn.mlp import MLP
from ocrl.types import Camera


class TrainedBackbone(Backbone, TaughtModule):
    """The tokens of a backbone that a model on the same rollouts has learned, and an MLP on them.

    What DINOSAUR (Seitzer et al. 2022, arXiv 2209.14860) takes from a network that was trained on
    photographs, for worlds that look like none. `take_teacher` copies the weights, see
    `ocrl.checkpoint.load_teachers`: what is saved has them and loads without the teacher.

    Args:
        backbone: of the same configuration as that of the teacher's encoder.
        teacher: where the trained model is, see `ocrl.interfaces.TaughtModule`.
        is_frozen: keep the backbone in `eval()` and without gradient; the MLP learns.
        out_dim: F after a LayerNorm and a two-layer MLP; the backbone's own tokens if None.
    """

    def __init__(
        self, backbone: Backbone, *, teacher: str | None, is_frozen: bool, out_dim: int | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.teacher_path = teacher
        self.is_frozen = is_frozen
        self.image_size, self.grid = backbone.image_size, backbone.grid
        self.out_dim = backbone.out_dim if out_dim is None else out_dim
        self.head: nn.Module = nn.Identity()
        if out_dim is not None:
            self.head = MLP(
                backbone.out_dim, hidden_dims=[backbone.out_dim], out_dim=out_dim, norm_first=True
            )
        if is_frozen:
            self.backbone.requires_grad_(False).eval()

    def take_teacher(self, teacher: nn.Module, *, student: nn.Module) -> None:
        """Copy the weights of the teacher's backbone, see `TaughtModule.take_teacher`.

        Raises:
            ValueError: if the teacher has none, or one of other sizes.
        """
        theirs = getattr(getattr(teacher, "encoder", None), "backbone", None)
        if isinstance(theirs, TrainedBackbone):
            theirs = theirs.backbone
        found = {} if theirs is None else theirs.state_dict()
        own = self.backbone.state_dict()
        if _shapes(found) != _shapes(own):
            raise ValueError(
                f"expected a teacher whose encoder has the backbone {type(self.backbone).__name__} "
                f"with weights of the same sizes, got {type(theirs).__name__} with others at "
                f"{self.teacher_path}: give both the same encoder.backbone and image_size"
            )
        self.backbone.load_state_dict(found)

    def train(self, mode: bool = True) -> TrainedBackbone:
        """Set the mode; a frozen backbone stays in `eval`."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode (B,[V,]C,H,W), see `Backbone.forward`."""
        with torch.no_grad() if self.is_frozen else nullcontext():
            tokens = self.backbone(frames, camera=camera)
        features: Tensor = self.head(tokens)
        return features


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
