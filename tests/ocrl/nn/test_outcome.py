import copy
import math

import pytest
import torch

from ocrl.nn.outcome import OutcomeHead

B, T, K, D = 2, 3, 4, 5


def make(slot_dim=D, *, has_comparison=True, num_beside=0, match_dim=0, **actions):
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "num_bins": 41}
    asked = {"num_beside": num_beside, "match_dim": match_dim}
    spaces = {"num_actions": 3, "action_dim": 0, "low": -4.0, "high": 4.0} | actions
    return OutcomeHead(slot_dim, has_comparison=has_comparison, **sizes, **asked, **spaces)


def draw(batch_size=B):
    before, after = torch.randn(2, batch_size, T, K, D).unbind(0)
    return before, torch.randint(3, (batch_size, T)), after


@pytest.mark.parametrize("has_comparison", [False, True])
def test_the_order_of_slots_does_not_matter_but_who_is_who_does(has_comparison):
    head = make(has_comparison=has_comparison)
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
        loss = sum(head.losses(outcome, reward=reward, terminated=terminated).values())
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


def chances(count):
    """Steps of which few end, with a reward; a feature hints at that, and is often wrong."""
    generator = torch.Generator().manual_seed(count)
    before, after = torch.zeros(2, count, 1, K, D).unbind(0)
    is_end = torch.rand(count, 1, generator=generator) < 0.05
    hint = is_end ^ (torch.rand(count, 1, generator=generator) < 0.25)
    after[..., 0, 0] = hint.float()
    return before, torch.zeros(count, 1, dtype=torch.long), after, 3.0 * is_end, is_end


def test_what_a_balanced_batch_teaches_has_the_odds_that_were_told():
    head = make(has_comparison=False)
    before, action, after, reward, is_end = chances(40_000)
    events, rest = is_end[:, 0].nonzero().flatten(), (~is_end[:, 0]).nonzero().flatten()
    head.tell_odds(len(events), len(is_end))
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(250):
        index = torch.cat([kind[torch.randint(len(kind), (64,))] for kind in (events, rest)])
        outcome = head(before[index], action[index], after[index])
        loss = head.balanced_loss(outcome, reward=reward[index], terminated=is_end[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outcome = head(before, action, after)
        ends, rewards = 1 - head.goes_on(outcome), head.reward(outcome)
    for hint in (0.0, 1.0):
        where = after[:, :, 0, 0] == hint
        share = float(is_end[where].float().mean())
        assert ends[where].mean() == pytest.approx(share, rel=0.3), (hint, share)
        assert rewards[where].mean() == pytest.approx(3 * share, rel=0.3)


def test_the_parts_are_those_of_a_hurdle():
    head = make()
    torch.nn.init.normal_(head.to_reward.weight)
    head.tell_odds(1, 9)
    assert float(head.log_odds) == pytest.approx(math.log(2 / 9))
    outcome = head(*draw())
    reward = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    terminated = torch.tensor([[False, False, True], [False, False, True]])
    is_event = (reward != 0) | terminated
    losses = head.losses(outcome, reward=reward, terminated=terminated)
    chance, ends = outcome.event.sigmoid(), (-outcome.goes_on).sigmoid()
    torch.testing.assert_close(
        losses["event"], -torch.where(is_event, chance, 1 - chance).log(), atol=1e-5, rtol=1e-5
    )
    told = head.two_hot.loss(outcome.reward, reward)
    torch.testing.assert_close(losses["reward"], told * is_event)
    came = -torch.where(terminated, ends, 1 - ends).log()
    torch.testing.assert_close(losses["continue"], came * is_event)
    torch.testing.assert_close(head.reward(outcome), chance * head.two_hot.mean(outcome.reward))
    torch.testing.assert_close(head.goes_on(outcome), 1 - chance * ends)
    # Of what is not learned nothing is asked, and it makes no events.
    only = head.losses(outcome, reward=None, terminated=terminated)
    assert set(only) == {"event", "continue"}
    torch.testing.assert_close(
        only["event"], -torch.where(terminated, chance, 1 - chance).log(), atol=1e-5, rtol=1e-5
    )
    assert set(head.losses(outcome, reward=reward, terminated=None)) == {"event", "reward"}
    # Balanced: means over events and over the others, of the logit without the odds.
    raw = (outcome.event - head.log_odds).sigmoid()
    found = head.balanced_loss(outcome, reward=reward, terminated=terminated)
    expected = 0.5 * -raw[is_event].log().mean() + 0.5 * -(1 - raw)[~is_event].log().mean()
    expected = expected + told[is_event].mean() + came[is_event].mean()
    torch.testing.assert_close(found, expected)


def test_where_events_are_common_every_step_is_one():
    head = make()
    torch.nn.init.normal_(head.to_reward.weight)
    head.expect(2, 4)
    assert head.is_rare
    head.expect(3, 4)
    assert not head.is_rare
    outcome = head(*draw())
    reward = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    terminated = torch.tensor([[False, False, True], [False, False, True]])
    losses = head.losses(outcome, reward=reward, terminated=terminated)
    assert set(losses) == {"reward", "continue"}
    torch.testing.assert_close(losses["reward"], head.two_hot.loss(outcome.reward, reward))
    torch.testing.assert_close(head.reward(outcome), head.two_hot.mean(outcome.reward))
    goes_on = outcome.goes_on.sigmoid()
    torch.testing.assert_close(head.goes_on(outcome), goes_on)
    came = -torch.where(terminated, 1 - goes_on, goes_on).log()
    torch.testing.assert_close(losses["continue"], came)
    found = head.balanced_loss(outcome, reward=reward, terminated=terminated)
    torch.testing.assert_close(found, losses["reward"].mean() + came.mean())
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    other = make()
    other.load_state_dict(head.state_dict())
    assert not other.is_rare


@pytest.mark.parametrize("num_events", [2, 3])
def test_a_loss_asks_the_device_for_no_number(num_events):
    head, other = make(), make()
    head.expect(num_events, 4)
    other.load_state_dict(head.state_dict())
    assert copy.deepcopy(other).has_hurdle == other.has_hurdle == (num_events == 2)
    # Of tensors without values any number that is asked for raises.
    other.to("meta")
    before, action, after = (value.to("meta") for value in draw())
    reward = torch.zeros(B, T, device="meta")
    outcome = other(before, action, after)
    assert other.balanced_loss(outcome, reward=reward, terminated=reward.bool()).shape == ()


def test_batches_of_one_kind_are_finite():
    head = make()
    outcome = head(*draw())
    for reward in (torch.zeros(B, T), torch.ones(B, T)):
        never = torch.zeros(B, T, dtype=torch.bool)
        assert head.balanced_loss(outcome, reward=reward, terminated=never).isfinite()


def test_odds_and_outcomes_that_are_none_are_refused():
    head = make()
    with pytest.raises(ValueError, match="expected 0 to 3 events, got 4"):
        head.tell_odds(4, 3)
    with pytest.raises(ValueError, match="rewards or terminations to learn from, got neither"):
        head.losses(head(*draw()), reward=None, terminated=None)


def test_whether_it_was_what_was_asked_for_is_learned_from_few_examples():
    """The last row asks for one of 16 kinds; without products it is told by heart."""
    num_kinds = 16
    row_dim = 1 + 2 * num_kinds

    def examples(number):
        kinds = torch.eye(num_kinds)
        asked, touched, other = torch.randint(num_kinds, (3, number))
        touched = torch.where(torch.rand(number) < 0.5, asked, touched)
        rows = torch.zeros(number, 1, 3, row_dim)
        rows[:, 0, 0, 0] = 1
        rows[:, 0, :2, 1 : 1 + num_kinds] = kinds[torch.stack([touched, other], dim=1)]
        rows[:, 0, 2, 1 + num_kinds :] = kinds[asked]
        return rows, (touched == asked).float()[:, None]

    def error(match_dim):
        sizes = {"num_beside": num_kinds, "match_dim": match_dim}
        head = make(row_dim, has_comparison=False, **sizes)
        assert (head.products is None) == (match_dim == 0)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        known, new = examples(600), examples(500)

        def loss(rows, reward):
            action = torch.zeros(len(rows), 1, dtype=torch.long)
            outcome = head(rows, action, rows)
            return head.losses(outcome, reward=reward, terminated=None)["event"].mean()

        for _ in range(150):
            optimizer.zero_grad()
            loss(*known).backward()
            optimizer.step()
        return float(loss(*new).detach())

    with_products, without = error(32), error(0)
    assert with_products < 0.6 * without, (with_products, without)
