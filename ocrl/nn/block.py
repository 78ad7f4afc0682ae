"""Layers for slots made of blocks, which read and write each block by itself.

M blocks, d size of a block, D = M * d; ... any leading axes.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.attention import standardize


def split_blocks(vectors: Tensor, num_blocks: int) -> Tensor:
    """View vectors (...,D) as blocks (...,M,d)."""
    return rearrange(vectors, "... (m d) -> ... m d", m=num_blocks)


def standardize_blocks(vectors: Tensor, num_blocks: int) -> Tensor:
    """Zero mean and unit deviation of each block of (...,D)."""
    return standardize(split_blocks(vectors, num_blocks)).flatten(-2)


class BlockLinear(nn.Module):
    """A linear map whose matrix is block-diagonal: one batched product over the blocks.

    It starts as `nn.Linear` of one block would.

    Args:
        in_dim: D of the input.
        out_dim: D of the output.
        num_blocks: M.
        bias: whether to add one.

    Raises:
        ValueError: if `num_blocks` does not divide both sizes.
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_blocks: int, bias: bool = True) -> None:
        super().__init__()
        if in_dim % num_blocks or out_dim % num_blocks:
            raise ValueError(
                f"num_blocks must divide both sizes, got {num_blocks} blocks for {in_dim} to "
                f"{out_dim}"
            )
        self.num_blocks = num_blocks
        size = in_dim // num_blocks
        limit = size**-0.5
        weight = torch.empty(num_blocks, size, out_dim // num_blocks).uniform_(-limit, limit)
        self.weight = nn.Parameter(weight)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-limit, limit))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (...,in_dim) to (...,out_dim)."""
        blocks = split_blocks(vectors, self.num_blocks)
        mapped = torch.einsum("...mi,mio->...mo", blocks, self.weight).flatten(-2)
        return mapped if self.bias is None else mapped + self.bias


class BlockMLP(nn.Module):
    """Two layers for each block, on its standardized numbers.

    Args:
        dim: D.
        hidden_dim: of all blocks together.
        num_blocks: M.
    """

    def __init__(self, dim: int, *, hidden_dim: int, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.to_hidden = BlockLinear(dim, hidden_dim, num_blocks=num_blocks)
        self.to_out = BlockLinear(hidden_dim, dim, num_blocks=num_blocks)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (...,D) to (...,D)."""
        hidden = self.to_hidden(standardize_blocks(vectors, self.num_blocks))
        return self.to_out(functional.relu(hidden))


class BlockGRUCell(nn.Module):
    """A gated recurrent unit for each block (Cho et al. 2014, arXiv 1406.1078, appendix A).

    The same as M cells of `nn.GRUCell` side by side; float32 whatever the autocast.

    Args:
        dim: D of input and state.
        num_blocks: M.
    """

    def __init__(self, dim: int, *, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.from_input = BlockLinear(dim, 3 * dim, num_blocks=num_blocks)
        self.from_state = BlockLinear(dim, 3 * dim, num_blocks=num_blocks)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """The next state (...,D) for inputs (...,D) and a state (...,D)."""
        with torch.autocast(state.device.type, enabled=False):
            read = self._gates(self.from_input(inputs.to(state.dtype)))
            kept = self._gates(self.from_state(state))
            reset, update = torch.sigmoid(read[:2] + kept[:2])
            new = torch.tanh(read[2] + reset * kept[2])
            return torch.lerp(new, state, update)

    def _gates(self, mapped: Tensor) -> Tensor:
        """Reset, update and new (3,...,D), which lie together in each block."""
        pattern = "... (m three d) -> three ... (m d)"
        return rearrange(mapped, pattern, m=self.num_blocks, three=3)
