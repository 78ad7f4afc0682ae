import pytest
import torch
from torch import nn

from ocrl.nn.block import BlockGRUCell, BlockLinear, BlockMLP, standardize_blocks

M, D = 3, 12


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_linear_map_of_blocks_is_a_block_diagonal_matrix() -> None:
    layer = BlockLinear(D, 6, num_blocks=M).double()
    inputs = vectors(2, 5, D)
    matrix = torch.block_diag(*layer.weight)
    assert matrix.shape == (D, 6)
    torch.testing.assert_close(layer(inputs), inputs @ matrix + layer.bias)


def test_a_linear_map_starts_as_that_of_one_block() -> None:
    layer = BlockLinear(400, 800, num_blocks=4)
    limit = nn.Linear(100, 200).weight.abs().max()
    assert limit * 0.9 < layer.weight.abs().max() < limit * 1.1
    assert layer.bias is not None and layer.bias.abs().max() <= 0.1


def cell_of(gru: BlockGRUCell, block: int) -> nn.GRUCell:
    """The cell of torch that one block is."""
    size = D // M
    cell = nn.GRUCell(size, size, dtype=torch.float64)
    gates = slice(3 * size * block, 3 * size * (block + 1))
    for source, kind in ((gru.from_input, "ih"), (gru.from_state, "hh")):
        assert source.bias is not None
        getattr(cell, f"weight_{kind}").data = source.weight[block].mT.detach()
        getattr(cell, f"bias_{kind}").data = source.bias[gates].detach()
    return cell


def test_a_recurrent_unit_of_blocks_is_one_unit_for_each() -> None:
    torch.manual_seed(0)
    gru = BlockGRUCell(D, num_blocks=M).double()
    inputs, state = vectors(2, 5, D), vectors(2, 5, D, seed=1)
    cut = D // M
    expected = [
        cell_of(gru, m)(
            inputs[..., cut * m : cut * (m + 1)].flatten(0, 1),
            state[..., cut * m : cut * (m + 1)].flatten(0, 1),
        )
        for m in range(M)
    ]
    torch.testing.assert_close(gru(inputs, state).flatten(0, 1), torch.cat(expected, dim=1))


def test_a_recurrent_unit_is_float32_under_autocast() -> None:
    gru = BlockGRUCell(D, num_blocks=M)
    inputs, state = vectors(4, D).bfloat16(), vectors(4, D, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gru(inputs, state)
    assert torch.equal(found, gru(inputs.float(), state)) and found.dtype == torch.float32


@pytest.mark.parametrize("layer", [BlockMLP(D, hidden_dim=6, num_blocks=M)])
def test_no_block_reads_another(layer: nn.Module) -> None:
    inputs = vectors(2, D).float()
    changed = inputs.clone()
    changed[:, 4:8] += vectors(2, 4, seed=1)
    moved = (layer(inputs) - layer(changed)).abs().amax(0) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_blocks_are_standardized_each() -> None:
    found = standardize_blocks(vectors(7, D) * 5 + 3, M).unflatten(-1, (M, -1))
    torch.testing.assert_close(found.mean(-1), torch.zeros(7, M, dtype=torch.float64))
    assert (found.var(-1, correction=0) - 1).abs().max() < 1e-3


def test_sizes_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got 5 blocks for 12 to 10"):
        BlockLinear(12, 10, num_blocks=5)
