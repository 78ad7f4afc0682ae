"""What comes of an action: the reward, and whether the episode goes on.

B batch, T steps, K slots, D slot size, A action size, E size of the head, M bins of the reward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.action import ActionEmbedding, check_action
from ocrl.nn.comparison import PairComparison
from ocrl.nn.multiplicative import RowProducts
from ocrl.nn.transformer import TransformerBlock
from ocrl.nn.two_hot import TwoHot


class Outcome(NamedTuple):
    """What an `OutcomeHead` says of each step.

    Attributes:
        event: logit (B,T) that there is a reward other than 0 or the episode terminates.
        reward: logits (B,T,M) over the bins of the reward of an event.
        goes_on: logit (B,T) that the episode goes on after an event.
    """

    event: Tensor
    reward: Tensor
    goes_on: Tensor


class OutcomeHead(nn.Module):
    """A token that reads what the slots were, what was done, and what they became.

    Reward and termination are read from a set by a token that attends to it, as in OC-STORM (Zhang
    et al. 2025, arXiv 2501.16443) and SOLD (Mosbach et al. 2025, arXiv 2410.08822); the reward as
    a distribution over bins, as DreamerV3's (arXiv 2301.04104). The order of slots does not matter;
    the same index is the same object before and after. Differs in that

    - the slots before the step are read beside those after it: many rewards are of a change;
    - a slot may come with how it differs from the others (`has_comparison`): many rewards are of a
      relation;
    - a slot may come with products of it and of what is asked for (`match_dim`), which stands among
      the slots: many rewards are for one of several things;
    - it tells first whether anything comes of the step, an event, and then what, as a hurdle model
      (Cragg 1971). Where rewards are rare, a balanced batch, half of it events, can thus teach all
      three parts (`balanced_loss`) without a bias: what comes of an event is not asked elsewhere,
      and the logit of an event is shifted by the true odds (`tell_odds`). In steps as they come,
      relations that decide a reward drown in those of which nothing comes. Where events are
      common (`expect`), each step counts as one: there is no hurdle.

    Args:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        has_comparison: whether slots before the step are compared, see `PairComparison`.
        dim: E.
        num_layers: of the transformer.
        num_heads: of its attention.
        mlp_dim: hidden size of its MLPs.
        num_bins: M.
        low: the first bin of the reward, in symlog.
        high: the last bin, in symlog.
        num_beside: the last columns of D, which hold vectors in rows of their own.
        match_dim: products of each slot before the step with them, see `RowProducts`; 0 for none.
    """

    log_odds: Tensor
    is_rare: Tensor

    def __init__(
        self,
        slot_dim: int,
        *,
        num_actions: int,
        action_dim: int,
        has_comparison: bool,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_bins: int,
        low: float,
        high: float,
        num_beside: int = 0,
        match_dim: int = 0,
    ) -> None:
        super().__init__()
        self.num_actions, self.action_dim = num_actions, action_dim
        self.comparison: PairComparison | None = None
        if has_comparison:
            self.comparison = PairComparison(slot_dim, dim=dim)
        self.products: RowProducts | None = None
        num_read = 2 * slot_dim + (dim if has_comparison else 0)
        if match_dim:
            self.products = RowProducts(slot_dim, num_beside=num_beside, out_dim=match_dim)
            num_read += match_dim
        self.embed_slots = nn.Linear(num_read, dim)
        self.embed_action: ActionEmbedding | None = None
        if num_actions or action_dim:
            self.embed_action = ActionEmbedding(dim, num_actions=num_actions, action_dim=action_dim)
        self.reader = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.layers = nn.ModuleList(
            TransformerBlock(dim, num_heads=num_heads, mlp_dim=mlp_dim, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm_outputs = nn.LayerNorm(dim)
        self.two_hot = TwoHot(num_bins, low=low, high=high)
        self.to_event = nn.Linear(dim, 1)
        self.to_reward = nn.Linear(dim, num_bins)
        self.to_goes_on = nn.Linear(dim, 1)
        # At first every reward is expected to be 0, the mean of the bins.
        nn.init.zeros_(self.to_reward.weight)
        nn.init.zeros_(self.to_reward.bias)
        self.register_buffer("log_odds", torch.zeros(()))
        self.register_buffer("is_rare", torch.ones((), dtype=torch.bool))
        # What the buffer says, without asking its device at each step.
        self.has_hurdle = True
        self.register_load_state_dict_post_hook(_read_hurdle)

    def forward(self, before: Tensor, action: Tensor | None, after: Tensor) -> Outcome:
        """Tell the outcome of steps.

        Args:
            before: slots (B,T,K,D) of the frame where the action was chosen.
            action: (B,T) or (B,T,A), None without actions.
            after: slots (B,T,K,D) of the frame that it led to.

        Raises:
            ValueError: if the action is of another space.
        """
        check_action(action, num_actions=self.num_actions, action_dim=self.action_dim)
        seen = [before, after]
        if self.comparison is not None:
            seen.append(self.comparison(before))
        if self.products is not None:
            seen.append(self.products(before))
        tokens = self.embed_slots(torch.cat(seen, dim=-1)).flatten(0, 1)
        reader = self.reader.to(tokens.dtype).expand(len(tokens), 1, -1)
        if self.embed_action is not None:
            reader = reader + self.embed_action(action).flatten(0, 1)[:, None]
        tokens = torch.cat([reader, tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        read = self.norm_outputs(tokens[:, 0]).unflatten(0, before.shape[:2])
        event = self.to_event(read).squeeze(-1).float() + self.log_odds
        event = torch.where(self.is_rare, event, torch.inf)
        return Outcome(event, self.to_reward(read), self.to_goes_on(read).squeeze(-1).float())

    def reward(self, outcome: Outcome) -> Tensor:
        """The expected rewards (B,T)."""
        return outcome.event.sigmoid() * self.two_hot.mean(outcome.reward)

    def goes_on(self, outcome: Outcome) -> Tensor:
        """The probability (B,T) that the episode does not terminate with the step."""
        return 1 - outcome.event.sigmoid() * (-outcome.goes_on).sigmoid()

    def losses(
        self, outcome: Outcome, *, reward: Tensor | None, terminated: Tensor | None
    ) -> dict[str, Tensor]:
        """The parts of minus the log likelihood (B,T) of what came, in nats.

        `event`, unless they are common, and of events `reward` and `continue`; without the two that
        are None. The reward of an event is a two-hot target, so its part is a cross-entropy.

        Args:
            outcome: of the steps.
            reward: (B,T).
            terminated: (B,T) bool.

        Raises:
            ValueError: if both are None.
        """
        target = self._events(reward, terminated).to(outcome.event)
        losses = {}
        if self.has_hurdle:
            losses["event"] = functional.binary_cross_entropy_with_logits(
                outcome.event, target, reduction="none"
            )
        if reward is not None:
            losses["reward"] = target * self.two_hot.loss(outcome.reward, reward)
        if terminated is not None:
            goes_on = (~terminated.bool()).to(outcome.goes_on)
            losses["continue"] = target * functional.binary_cross_entropy_with_logits(
                outcome.goes_on, goes_on, reduction="none"
            )
        return losses

    def balanced_loss(
        self, outcome: Outcome, *, reward: Tensor | None, terminated: Tensor | None
    ) -> Tensor:
        """The scalar by which steps teach of which half should be events, whatever their odds.

        The means over events of what came of them, and the mean of the mean losses of events and of
        other steps for whether they were events, before the logit is shifted by the odds.

        Args:
            outcome: of the steps.
            reward: (B,T); None where it is not learned, as `terminated`.
            terminated: (B,T) bool.

        Raises:
            ValueError: if both are None.
        """
        unshifted = outcome._replace(event=outcome.event - self.log_odds)
        losses = self.losses(unshifted, reward=reward, terminated=terminated)
        weight = self._events(reward, terminated).to(outcome.event)
        number = weight.sum().clamp(min=1)
        total = outcome.goes_on.new_zeros(())
        if "event" in losses:
            rest = (1 - weight) / (1 - weight).sum().clamp(min=1)
            total = 0.5 * (losses.pop("event") * (weight / number + rest)).sum()
        for loss in losses.values():
            total = total + loss.sum() / number
        return total

    def expect(self, num_events: int, num_steps: int) -> None:
        """Decide, before anything is learned, whether events are rare: at most half of the steps.

        Raises:
            ValueError: as `tell_odds`.
        """
        self.tell_odds(num_events, num_steps)
        self.has_hurdle = 2 * num_events <= num_steps
        self.is_rare.fill_(self.has_hurdle)

    def tell_odds(self, num_events: int, num_steps: int) -> None:
        """Tell how many of the steps that `balanced_loss` draws from are events.

        Raises:
            ValueError: unless 0 <= `num_events` <= `num_steps`.
        """
        if not 0 <= num_events <= num_steps:
            raise ValueError(f"expected 0 to {num_steps} events, got {num_events}")
        # One more of each, so that what has not been seen is not impossible.
        self.log_odds.fill_(math.log((num_events + 1) / (num_steps - num_events + 1)))

    def _events(self, reward: Tensor | None, terminated: Tensor | None) -> Tensor:
        """Where (B,T) there was a reward other than 0 or an end; everywhere if that is common."""
        known = [value for value in (reward, terminated) if value is not None]
        if not known:
            raise ValueError("expected rewards or terminations to learn from, got neither")
        if not self.has_hurdle:
            return torch.ones_like(known[0], dtype=torch.bool)
        return torch.stack([value != 0 for value in known]).any(0)


def _read_hurdle(head: nn.Module, _: object) -> None:
    """Take from loaded weights whether events are rare."""
    assert isinstance(head, OutcomeHead)
    head.has_hurdle = bool(head.is_rare)
