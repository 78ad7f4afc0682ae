"""Transformer blocks against torch's own layers with the same weights."""

import pytest
import torch
from torch import nn

from ocrl.nn.attention import MultiHeadAttention
from ocrl.nn.transformer import TransformerBlock


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    maps = (ours.to_q, ours.to_k, ours.to_v)
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in maps])
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in maps])
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())


def randomise(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_block_equals_torch(norm_first: bool) -> None:
    ours = TransformerBlock(8, num_heads=2, mlp_dim=12, norm_first=norm_first)
    randomise(ours)
    theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=norm_first)
    copy_attention(ours.self_attention, theirs.self_attn)
    theirs.linear1.load_state_dict(ours.mlp.layers[0].state_dict())
    theirs.linear2.load_state_dict(ours.mlp.layers[2].state_dict())
    theirs.norm1.load_state_dict(ours.norm_self.state_dict())
    theirs.norm2.load_state_dict(ours.norm_mlp.state_dict())
    sequence = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(sequence), theirs(sequence))


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_block_equals_torch(norm_first: bool) -> None:
    ours = TransformerBlock(
        8, num_heads=2, mlp_dim=12, norm_first=norm_first, context_dim=8, activation="gelu"
    )
    randomise(ours)
    theirs = nn.TransformerDecoderLayer(
        8, 2, 12, 0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    assert ours.cross_attention is not None
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    theirs.linear1.load_state_dict(ours.mlp.layers[0].state_dict())
    theirs.linear2.load_state_dict(ours.mlp.layers[2].state_dict())
    theirs.norm1.load_state_dict(ours.norm_self.state_dict())
    theirs.norm2.load_state_dict(ours.norm_cross.state_dict())
    theirs.norm3.load_state_dict(ours.norm_mlp.state_dict())
    sequence, context = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    torch.testing.assert_close(ours(sequence, context), theirs(sequence, context))


@pytest.mark.parametrize("norm_first", [False, True])
def test_causal(norm_first: bool) -> None:
    block = TransformerBlock(8, num_heads=2, mlp_dim=12, norm_first=norm_first)
    sequence = torch.randn(1, 6, 8)
    changed = sequence.clone()
    changed[:, 4:] += 1
    before, after = block(sequence, is_causal=True), block(changed, is_causal=True)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_context_must_fit_the_block() -> None:
    block = TransformerBlock(8, num_heads=2, mlp_dim=12, norm_first=True)
    with pytest.raises(ValueError, match="if and only if context_dim"):
        block(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    block = TransformerBlock(8, num_heads=2, mlp_dim=12, norm_first=True, context_dim=4)
    with pytest.raises(ValueError, match="got none"):
        block(torch.randn(1, 2, 8))
