import torch

from ocrl.nn.message_passing import MessagePassing

K, E, M = 4, 6, 10


def make(interacts=True):
    torch.manual_seed(0)
    return MessagePassing(E, hidden_dim=M, interacts=interacts).double()


def textbook(module, nodes):
    """C-SWM's equations pair by pair, with whole edge networks."""
    normal = module.norm(nodes)
    joint = torch.cat([module.from_receiver.weight, module.from_sender.weight], dim=1)
    told = torch.zeros(*nodes.shape[:-1], M, dtype=nodes.dtype)
    for i in range(K):
        for j in range(K):
            if i != j:
                pair = torch.cat([normal[..., i, :], normal[..., j, :]], dim=-1)
                edge = (pair @ joint.mT + module.from_receiver.bias).relu()
                edge = module.norm_pair(module.to_pair(edge)).relu()
                told[..., i, :] += module.to_message(edge)
    return nodes + module.mlp(torch.cat([normal, told], dim=-1))


def test_equals_an_edge_network_for_every_pair():
    nodes = torch.randn(2, 3, K, E, dtype=torch.float64)
    module = make()
    torch.testing.assert_close(module(nodes), textbook(module, nodes))


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
