"""The decoder of rays draws what the encoder looks at.

B batch, T frames, W views that are seen, K slots, P rays, N = W * n tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocrl.interfaces import Objective
from ocrl.nn.position import grid_like
from ocrl.objectives.views import PLACE
from ocrl.types import Clip, DecoderOutput, SlotOutput


class ViewsAgreement(Objective):
    """Cross-entropy of the masks of rays under the attention, which is the teacher.

    A decoder of rays has to find out where in space each slot is before any slot is worth telling
    from another, and so gives everything to one for thousands of steps. Of the rays through pixels
    that the encoder saw it is known which slots looked there: the masks come to say so, and the
    cameras that were not seen follow from the geometry. The attention is detached. Ours; the other
    way round, for frames, it is `Agreement`.

    Args:
        num_seen: W.
        image_size: (H, W) of a view.
    """

    def __init__(self, num_seen: int, *, image_size: Sequence[int]) -> None:
        super().__init__()
        self.num_seen = num_seen
        self.image_size = (image_size[0], image_size[1])

    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """Mean over the rays of seen cameras, nats; 0 where there are none.

        Raises:
            ValueError: if nothing says which rays those are, or the tokens are on no grid.
        """
        if PLACE not in clip.properties:
            raise ValueError("expected rays that the objective views drew, got frames")
        view, y, x = clip.properties[PLACE].unbind(-1)
        is_seen = view >= 0
        num_tokens = encoded.attn.shape[-1] // self.num_seen
        rows, columns = grid_like(num_tokens, shape=self.image_size, what="a view")
        token = view.long() * num_tokens + (y * rows).long() * columns + (x * columns).long()
        index = token.clamp_min(0)[:, :, None].expand(-1, -1, encoded.attn.shape[2], -1)
        teacher = encoded.attn.detach().float().gather(3, index)
        masks = decoded.masks.float().flatten(-2)
        entropy = -(teacher * masks.clamp_min(1e-6).log()).sum(dim=2)
        return (entropy * is_seen).sum() / is_seen.sum().clamp_min(1)
