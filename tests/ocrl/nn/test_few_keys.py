import pytest
import torch
from torch.nn import functional

from ocrl.nn.few_keys import FewKeyAttention, PairMLP


def textbook(layer, queries, slots):
    """The ordinary order of the products."""
    heads = (layer.num_heads, layer.head_dim)
    query, key, value = (
        projected.unflatten(-1, heads).transpose(1, 2)
        for projected in (layer.to_q(queries), layer.to_k(slots), layer.to_v(slots))
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return layer.to_out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 5), (4, 3), (12, 128)])
def test_it_is_ordinary_attention(heads, head_dim):
    torch.manual_seed(0)
    layer = FewKeyAttention(12, slot_dim=7, num_heads=heads, head_dim=head_dim).double()
    queries = torch.randn(2, 30, 12, dtype=torch.float64, requires_grad=True)
    slots = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(queries, slots), textbook(layer, queries, slots)
    # The softmax is float32 whatever comes in.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    noise = torch.randn_like(ours)
    inputs = [queries, slots, *layer.parameters()]
    gradients = zip(
        torch.autograd.grad(ours, inputs, noise),
        torch.autograd.grad(theirs, inputs, noise),
        strict=True,
    )
    for own, other in gradients:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_heads_size_is_kept_for_a_query():
    layer = FewKeyAttention(8, slot_dim=8, num_heads=4, head_dim=64)
    kept = []
    queries, slots = torch.randn(1, 1000, 8), torch.randn(1, 3, 8, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, id)
    with hooks:
        layer(queries, slots)
    of_queries = [shape.numel() / 1000 for shape in kept if shape.numel() >= 1000]
    # The queries, the softmax of 4 heads and 3 slots, and copies of it: never 4 * 64.
    assert of_queries and max(of_queries) <= 12


def test_a_pair_is_what_the_joined_vector_gives():
    torch.manual_seed(0)
    layer = PairMLP(3, ray_dim=4, hidden_dims=[6, 5], out_dim=2, activation="leaky_relu")
    slots, rays = torch.randn(10, 3), torch.randn(10, 4)
    weight = torch.cat([layer.of_slots.weight, layer.of_rays.weight], dim=1)
    first = functional.linear(torch.cat([slots, rays], dim=1), weight, layer.of_slots.bias)
    torch.testing.assert_close(layer(layer.of_slots(slots), rays), layer.layers(first))
    with pytest.raises(ValueError, match="at least one hidden layer"):
        PairMLP(3, ray_dim=4, hidden_dims=[], out_dim=2)
