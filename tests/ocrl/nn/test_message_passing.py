import math

import pytest
import torch

from ocrl.nn.message_passing import Displacements, MessagePassing
from ocrl.nn.octaves import OctaveEncoding

K, E, M, P = 4, 6, 10, 3


def make(interacts=True, **others):
    torch.manual_seed(0)
    return MessagePassing(E, hidden_dim=M, interacts=interacts, **others).double()


def textbook(module, nodes, pairs=None):
    """C-SWM's equations pair by pair, with whole edge networks."""
    normal = module.norm(nodes)
    joint = torch.cat([module.from_receiver.weight, module.from_sender.weight], dim=1)
    told = torch.zeros(*nodes.shape[:-1], M, dtype=nodes.dtype)
    for i in range(K):
        for j in range(K):
            if i != j:
                pair = torch.cat([normal[..., i, :], normal[..., j, :]], dim=-1)
                edge = pair @ joint.mT + module.from_receiver.bias
                if pairs is not None:
                    edge = edge + pairs[..., i, j, :] @ module.from_pair.weight.mT
                edge = edge.relu()
                edge = module.norm_pair(module.to_pair(edge)).relu()
                told[..., i, :] += module.to_message(edge)
    return nodes + module.mlp(torch.cat([normal, told], dim=-1))


def test_equals_an_edge_network_for_every_pair():
    nodes = torch.randn(2, 3, K, E, dtype=torch.float64)
    module = make()
    torch.testing.assert_close(module(nodes), textbook(module, nodes))


def test_what_is_known_of_a_pair_goes_into_its_network():
    nodes = torch.randn(2, 3, K, E, dtype=torch.float64)
    pairs = torch.randn(2, 3, K, K, P, dtype=torch.float64)
    module = make(pair_dim=P)
    torch.testing.assert_close(module(nodes, pairs), textbook(module, nodes, pairs))


def test_displacements_are_octaves_of_receiver_less_sender():
    module = Displacements(2, num_learned=1)
    with torch.no_grad():
        module.to_coordinates.weight.copy_(torch.tensor([[0.0, 1.0]]))
    slots = torch.tensor([[9.0, 0.5], [7.0, 0.2]])
    pairs = module(slots)
    assert pairs.shape == (2, 2, module.out_dim)
    angles = [math.pi * 0.3 * factor for factor in (0.5, 1.0, 2.0, 4.0)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    torch.testing.assert_close(pairs[0, 1], torch.tensor(expected))
    torch.testing.assert_close(pairs[1, 0, :4], -pairs[0, 1, :4])


def test_numbers_of_slots_are_coordinates_as_they_are():
    slots = torch.randn(3, 5, 4)
    alone = Displacements(4, num_learned=0, places=[3, 1])
    apart = slots[:, :, None, [3, 1]] - slots[:, None, :, [3, 1]]
    expected = OctaveEncoding(4, first_octave=-1)(apart)
    torch.testing.assert_close(alone(slots), expected)
    assert not list(alone.parameters())
    both = Displacements(4, num_learned=2, places=[3, 1])
    assert both.out_dim == 2 * alone.out_dim
    torch.testing.assert_close(both(slots)[..., alone.out_dim :], expected)
    with pytest.raises(ValueError, match=r"num_learned from 1 on, or places, got 0 and \[\]"):
        Displacements(4, num_learned=0)
    with pytest.raises(ValueError, match=r"numbers 0 to 3 of a slot, got \[4\]"):
        Displacements(4, num_learned=0, places=[4])


def test_without_norms_sizes_are_seen():
    nodes = torch.randn(2, K, E, dtype=torch.float64)
    for normalizes in (True, False):
        module = make(normalizes=normalizes)
        torch.testing.assert_close(module(nodes), textbook(module, nodes))
        one, other = (module(scale * nodes) - scale * nodes for scale in (1.0, 3.0))
        assert torch.allclose(one, other, atol=1e-4) is normalizes


def test_one_slot_is_told_nothing_and_none_without_interaction():
    one = torch.randn(2, 1, E, dtype=torch.float64)
    module = make()
    with torch.no_grad():
        before = module(one)
        module.to_message.weight.add_(1)
    torch.testing.assert_close(module(one), before)
    nodes = torch.randn(2, K, E, dtype=torch.float64)
    changed = nodes.clone()
    changed[:, 0, 0] += 1
    for interacts in (True, False):
        module = make(interacts)
        is_same = torch.allclose(module(nodes)[:, 1:], module(changed)[:, 1:])
        assert is_same is not interacts
