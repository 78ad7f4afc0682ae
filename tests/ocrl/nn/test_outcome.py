import pytest
import torch

from ocrl.nn.outcome import OutcomeHead

B, T, K, D = 2, 3, 4, 5


def make(**actions):
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "num_bins": 41}
    spaces = {"num_actions": 3, "action_dim": 0} | actions
    return OutcomeHead(D, **sizes, **spaces, low=-4.0, high=4.0)


def draw(batch_size=B):
    before, after = torch.randn(2, batch_size, T, K, D).unbind(0)
    return before, torch.randint(3, (batch_size, T)), after


def test_the_order_of_slots_does_not_matter_but_who_is_who_does():
    head = make()
    torch.nn.init.normal_(head.to_reward.weight)
    before, action, after = draw()
    order = torch.tensor([2, 0, 3, 1])
    said = head(before, action, after)
    moved = head(before[:, :, order], action, after[:, :, order])
    torch.testing.assert_close(said.reward, moved.reward)
    torch.testing.assert_close(said.goes_on, moved.goes_on)
    assert not torch.allclose(said.reward, head(before[:, :, order], action, after).reward)
    assert said.reward.shape == (B, T, 41) and said.goes_on.shape == (B, T)


def test_an_untrained_head_expects_nothing():
    head = make()
    reward = head.reward(head(*draw()))
    torch.testing.assert_close(reward, torch.zeros(B, T), atol=1e-5, rtol=0)


def test_it_learns_rewards_of_a_change_and_of_an_action_and_ends():
    head = make()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for step in range(150):
        before, action, after = draw(24)
        moved = (after - before)[..., 0].amax(-1) > 1.5
        reward = moved * 2.0 + (action == 1)
        terminated = before[..., 1].amax(-1) > 1.0
        outcome = head(before, action, after)
        loss = head.reward_loss(outcome, reward) + head.goes_on_loss(outcome, terminated)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        if step == 0:
            at_first = loss.mean().item()
    assert loss.mean().item() < 0.45 * at_first, (at_first, loss.mean().item())
    is_one = action == 1
    assert head.reward(outcome)[is_one].mean() > head.reward(outcome)[~is_one].mean() + 0.4


def test_actions_of_another_space_are_refused():
    before, action, after = draw()
    with pytest.raises(ValueError, match="expected no actions"):
        make(num_actions=0)(before, action, after)
    with pytest.raises(ValueError, match=r"continuous actions \(B,T,2\)"):
        make(num_actions=0, action_dim=2)(before, action, after)
    assert make(num_actions=0)(before, None, after).goes_on.shape == (B, T)
