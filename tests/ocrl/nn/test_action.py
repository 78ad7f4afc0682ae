import pytest
import torch

from ocrl.nn.action import ActionEmbedding, SlotsAndAction, check_action

SLOTS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
BOX = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([[0, 1, 2], [2, 1, 0]])


def make(num_actions, action_dim, binding):
    return SlotsAndAction(5, dim=6, num_actions=num_actions, action_dim=action_dim, binding=binding)


def test_a_token_stands_behind_the_slots_which_stay_as_they_are():
    for module, action in ((make(3, 0, "token"), INDEX), (make(0, 2, "token"), BOX)):
        tokens = module(SLOTS, action)
        assert tokens.shape == (2, 3, 5, 6)
        assert torch.equal(tokens[:, :, :4], module.embed_slots(SLOTS))
        assert torch.equal(tokens[:, :, 4], module.embed_action(action))


def test_a_bound_action_is_a_map_of_slot_and_action_together():
    module = make(0, 2, "slot")
    joint = torch.cat([module.embed_slots.weight, module.embed_action.embed.weight], dim=1)
    both = torch.cat([SLOTS, BOX[:, :, None].expand(-1, -1, 4, -1)], dim=-1)
    bias = module.embed_slots.bias + module.embed_action.embed.bias
    torch.testing.assert_close(module(SLOTS, BOX), both @ joint.mT + bias)


def test_without_actions_there_is_no_token():
    module = make(0, 0, "token")
    assert module(SLOTS, None).shape == (2, 3, 4, 6)
    assert [name for name, _ in module.named_parameters()] == [
        "embed_slots.weight",
        "embed_slots.bias",
    ]


@pytest.mark.parametrize(
    ("num_actions", "action_dim", "action", "words"),
    [
        (3, 0, None, "discrete actions .* below 3, got none"),
        (3, 0, BOX, "below 3, got float32 of shape"),
        (2, 0, INDEX, "below 2, got actions up to 2"),
        (0, 2, INDEX, r"continuous actions \(B,T,2\), got int64 of shape \(2, 3\)"),
        (0, 3, BOX, r"\(B,T,3\), got float32 of shape \(2, 3, 2\)"),
        (0, 0, INDEX, "expected no actions, got int64"),
    ],
)
def test_actions_of_another_space_are_refused(num_actions, action_dim, action, words):
    with pytest.raises(ValueError, match=words):
        check_action(action, num_actions=num_actions, action_dim=action_dim)


def test_an_embedding_is_of_one_kind():
    for sizes in ((0, 0), (2, 2)):
        with pytest.raises(ValueError, match="num_actions of a discrete or action_dim"):
            ActionEmbedding(4, num_actions=sizes[0], action_dim=sizes[1])
