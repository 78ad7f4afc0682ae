"""What comes of an action: the reward, and whether the episode goes on.

B batch, T steps, K slots, D slot size, A action size, E size of the head, M bins of the reward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.action import ActionEmbedding, check_action
from ocrl.nn.transformer import TransformerBlock
from ocrl.nn.two_hot import TwoHot


class Outcome(NamedTuple):
    """What an `OutcomeHead` says of each step.

    Attributes:
        reward: logits (B,T,M) over the bins of the reward.
        goes_on: logit (B,T) that the episode does not terminate there.
    """

    reward: Tensor
    goes_on: Tensor


class OutcomeHead(nn.Module):
    """A token that reads what the slots were, what was done, and what they became.

    Reward and termination are read from a set by a token that attends to it, as in OC-STORM (Zhang
    et al. 2025, arXiv 2501.16443) and SOLD (Mosbach et al. 2025, arXiv 2410.08822); the reward as
    a distribution over bins, as DreamerV3's (arXiv 2301.04104). Differs in that the slots before
    the step are read beside those after it: many rewards are of a change. The order of slots does
    not matter; the same index is the same object before and after.

    Args:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
        dim: E.
        num_layers: of the transformer.
        num_heads: of its attention.
        mlp_dim: hidden size of its MLPs.
        num_bins: M.
        low: the first bin of the reward, in symlog.
        high: the last bin, in symlog.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        num_actions: int,
        action_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_bins: int,
        low: float,
        high: float,
    ) -> None:
        super().__init__()
        self.num_actions, self.action_dim = num_actions, action_dim
        self.embed_slots = nn.Linear(2 * slot_dim, dim)
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
        self.to_reward = nn.Linear(dim, num_bins)
        self.to_goes_on = nn.Linear(dim, 1)
        # At first every reward is expected to be 0, the mean of the bins.
        nn.init.zeros_(self.to_reward.weight)
        nn.init.zeros_(self.to_reward.bias)

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
        tokens = self.embed_slots(torch.cat([before, after], dim=-1)).flatten(0, 1)
        reader = self.reader.to(tokens.dtype).expand(len(tokens), 1, -1)
        if self.embed_action is not None:
            reader = reader + self.embed_action(action).flatten(0, 1)[:, None]
        tokens = torch.cat([reader, tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        read = self.norm_outputs(tokens[:, 0]).unflatten(0, before.shape[:2])
        return Outcome(self.to_reward(read), self.to_goes_on(read).squeeze(-1))

    def reward(self, outcome: Outcome) -> Tensor:
        """The expected rewards (B,T)."""
        return self.two_hot.mean(outcome.reward)

    def reward_loss(self, outcome: Outcome, reward: Tensor) -> Tensor:
        """The cross-entropy (B,T) with rewards (B,T), in nats."""
        return self.two_hot.loss(outcome.reward, reward)

    def goes_on_loss(self, outcome: Outcome, terminated: Tensor) -> Tensor:
        """The cross-entropy (B,T) with whether a step terminated (B,T), in nats."""
        logit = outcome.goes_on.float()
        return functional.binary_cross_entropy_with_logits(
            logit, (~terminated.bool()).to(logit), reduction="none"
        )
