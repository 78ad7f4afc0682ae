import math

import pytest
import torch

from ocrl.nn.slot_transformer import SlotTransformer


def make(**changes):
    arguments = dict(num_layers=3, num_heads=2, mlp_dim=24, dropout=0.0)
    torch.manual_seed(0)
    return SlotTransformer(8, **(arguments | changes)).double()


SEQUENCE = torch.randn(2, 6, 8).double()
SLOTS = torch.randn(2, 4, 8).double()


def test_steps_equal_the_whole_sequence():
    transformer = make()
    whole, _ = transformer(SEQUENCE, SLOTS, is_causal=True)
    cache = transformer.start(SLOTS, num_tokens=6)
    with torch.no_grad():
        steps = [
            transformer.step(token, cache, position=position)
            for position, token in enumerate(SEQUENCE.split(1, dim=1))
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_the_cache_of_a_token_does_not_depend_on_what_it_held():
    transformer, results = make(), []
    for rubbish in (0.0, math.nan):
        cache = transformer.start(SLOTS, num_tokens=6)
        for tensor in cache.tokens:
            tensor.fill_(rubbish)
        with torch.no_grad():
            results.append(transformer.step(SEQUENCE[:, :1], cache, position=0))
    assert torch.equal(*results)


def test_masks_sum_to_one_and_move_with_the_slots():
    transformer = make()
    hidden, masks = transformer(SEQUENCE, SLOTS, is_causal=True)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 6).double())
    other, moved = transformer(SEQUENCE, SLOTS.flip(1), is_causal=True)
    torch.testing.assert_close(moved.flip(1), masks)
    torch.testing.assert_close(other, hidden)


def test_the_first_norm_is_on_the_stream_itself():
    transformer = make()
    larger, _ = transformer(5 * SEQUENCE, SLOTS, is_causal=True)
    expected, _ = transformer(SEQUENCE, SLOTS, is_causal=True)
    torch.testing.assert_close(larger, expected, rtol=1e-3, atol=1e-4)


def test_last_maps_start_smaller_the_deeper_it_is():
    layer = make(num_layers=12).layers[0]
    for linear, shape in ((layer.attention.to_out, 8 + 8), (layer.mlp.layers[-1], 24 + 8)):
        bound = math.sqrt(6 / shape) * 36**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_heads_must_divide_the_size():
    with pytest.raises(ValueError, match="got 3 heads and dim 8"):
        make(num_heads=3)
