"""A slot world model as the planners of the package `stable-worldmodel` know one.

That package is not needed to import this. B environments, S candidates, H frames of the context, T
planned steps, K slots, D slot size, A action size, for discrete actions their number, N actions in
a planned step, C h w frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ocrl.agents.costs import DreamCost, GoalCost, Judged, Matching, RewardCost
from ocrl.slot_world import Dream
from ocrl.types import Clip
from ocrl.world_model import WorldModel

_CONTEXT = "ocrl_context"
"""Key of what is read of the context: it is the same for every candidate and iteration."""


class CostableWorldModel(nn.Module):
    """`encode`, `rollout`, `criterion` and `get_cost` over dictionaries: both of its protocols.

    `Costable` is what every solver asks for; `Dynamics` what its `ShootingCostEvaluator` composes
    with an objective, such as `GoalMSE`, that compares slots of the same place. Embeddings have
    the shape (...,K,D).

    Frames are `pixels` (B,S,H,C,h,w), or with colours last, uint8 or floats in [0,1] of the
    encoder's size, not normalised in another way; more than one come with `action_history`
    (B,S,H-1,N*A), what was done between them. Candidates are (B,S,T,N*A), those of discrete
    actions one-hot; N is the package's `action_block`. All S rows of what is observed are the
    same, as its solvers make them, so one is read.

    Args:
        model: on the device where it is to run.
        matching: of slots with those of `goal`, see `GoalCost`.
        judged: the steps that are compared with the goal, see `GoalCost`.
        discount: of rewards, which count where there is no `goal`.
    """

    def __init__(
        self, model: WorldModel, *, matching: Matching, judged: Judged, discount: float
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.matching, self.judged, self.discount = matching, judged, discount

    def encode(self, x: dict[str, Any]) -> dict[str, Any]:
        """Add `emb`, the slots (B,T,K,D) of `pixels` (B,T,C,h,w), in an order that stays.

        Raises:
            ValueError: if there are no frames, or they are none of the encoder's.
        """
        video = self._video(x, "pixels")
        is_first = torch.zeros(video.shape[:2], dtype=torch.bool, device=video.device)
        is_first[:, 0] = True
        x["emb"] = self.model.encode(Clip(video, is_first)).slots
        return x

    def rollout(self, info_dict: dict[str, Any], action_candidates: Tensor) -> dict[str, Any]:
        """Add what candidates lead to, with the context's own slots in front.

        `predicted_emb` (B,S,H+T,K,D), `predicted_reward` (B,S,T*N) and `predicted_continue`
        (B,S,T*N) in [0,1].

        Raises:
            ValueError: if the candidates are of another action space, actions of the context are
                missing, or as `encode`.
        """
        num_candidates = action_candidates.shape[1]
        actions, block = self._actions(action_candidates)
        slots, state = self._context(info_dict)
        begins = torch.full_like(slots[:, 0, 0, 0], slots.shape[1] == 1, dtype=torch.bool)
        start, before, is_first = tree_map(
            lambda value: value.repeat_interleave(num_candidates, dim=0),
            (slots[:, -1], state, begins),
        )
        flat = actions.flatten(0, 1)
        dream = self.model.imagine(start, before, flat, flat.shape[1], is_first=is_first)

        def split(value: Tensor) -> Tensor:
            return value.unflatten(0, (-1, num_candidates))

        context = slots[:, None].expand(-1, num_candidates, -1, -1, -1)
        info_dict["emb"] = context
        info_dict["predicted_emb"] = torch.cat(
            [context, split(dream.slots[:, block - 1 :: block])], dim=2
        )
        info_dict["predicted_reward"] = split(dream.reward)
        info_dict["predicted_continue"] = split(dream.goes_on)
        return info_dict

    def criterion(
        self, info_dict: dict[str, Any], action_candidates: Tensor | None = None
    ) -> Tensor:
        """The costs (B,S) of what `rollout` left: distances from `goal_emb`, or lacking rewards."""
        reward = info_dict["predicted_reward"]
        num_context = info_dict["emb"].shape[2]
        dream = Dream(
            slots=info_dict["predicted_emb"][:, :, num_context:].flatten(0, 1),
            action=None,
            reward=reward.flatten(0, 1),
            goes_on=info_dict["predicted_continue"].flatten(0, 1),
            state=None,
        )
        return self._cost(info_dict)(dream).unflatten(0, reward.shape[:2])

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """The costs (B,S) of candidates, see `rollout` and `criterion`.

        The goal is `goal` (B,S,H',C,h,w), of which the last frame counts, or `goal_emb` if it is
        encoded already.
        """
        if "goal" in info_dict and "goal_emb" not in info_dict:
            frames = self._first(info_dict["goal"])
            info_dict["goal_emb"] = self.encode({"pixels": frames})["emb"]
        return self.criterion(self.rollout(info_dict, action_candidates))

    # --- what the dictionaries hold -------------------------------------------------------------

    def _cost(self, info_dict: dict[str, Any]) -> DreamCost:
        if "goal_emb" not in info_dict:
            return RewardCost(self.discount, ends=bool(self.model.weights["continue"]))
        goal = info_dict["goal_emb"]
        goal = goal[:, 0] if goal.ndim == 5 else goal
        return GoalCost(goal[:, -1], matching=self.matching, judged=self.judged)

    def _context(self, info_dict: dict[str, Any]) -> tuple[Tensor, Any]:
        """The slots (B,H,K,D) of the context, and the state that has read all but the last."""
        if _CONTEXT not in info_dict:
            slots = self.encode({"pixels": self._first(info_dict.get("pixels"))})["emb"]
            batch_size, num_frames = slots.shape[:2]
            history = info_dict.get("action_history")
            if num_frames > 1 and history is None:
                raise ValueError(
                    f"expected action_history (B,S,{num_frames - 1},A) beside {num_frames} frames "
                    "of context, got none; give the present frame alone, or what was done between"
                )
            action, is_first = None, torch.zeros(batch_size, num_frames, dtype=torch.bool)
            is_first[:, 0] = True
            if num_frames > 1:
                assert history is not None
                action, block = self._actions(history[:, :1])
                if block > 1:
                    raise ValueError(
                        f"expected one action between two frames of the context, got {block}; "
                        "plan from the present frame alone"
                    )
                action = action[:, 0]
            state = self.model.read(slots, action, is_first.to(slots.device))
            info_dict[_CONTEXT] = slots, state
        slots, state = info_dict[_CONTEXT]
        return slots, state

    @staticmethod
    def _first(value: Any) -> Any:
        """What the first of equal candidates observes."""
        return value[:, 0] if isinstance(value, Tensor) else value

    def _video(self, x: dict[str, Any], name: str) -> Tensor:
        """Frames (B,T,C,h,w), floats in [0,1], on the model's device."""
        frames, size = x.get(name), tuple(self.model.model.encoder.backbone.image_size)
        if isinstance(frames, Tensor) and frames.ndim == 5 and frames.shape[-1] == 3:
            frames = frames.movedim(-1, -3)
        if not isinstance(frames, Tensor) or frames.shape[2:] != (3, *size):
            got = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"expected {name} (B,T,3,{size[0]},{size[1]}), got {got}")
        frames = frames.to(next(self.model.parameters()).device)
        if frames.dtype == torch.uint8:
            return frames / 255.0
        if frames.min() < 0 or frames.max() > 1:
            raise ValueError(
                f"expected {name} in uint8 or in [0,1], as the encoder was trained, got values "
                f"from {frames.min():.3g} to {frames.max():.3g}: leave out the normalisation"
            )
        return frames

    def _actions(self, blocks: Tensor) -> tuple[Tensor, int]:
        """Actions (B,S,T*N) or (B,S,T*N,A) of planned steps (B,S,T,N*A), and N."""
        dynamics = self.model.dynamics
        size = dynamics.num_actions or dynamics.action_dim
        if blocks.ndim != 4 or not size or blocks.shape[-1] % size:
            raise ValueError(
                f"expected actions (B,S,T,{size}) or several of them in a step, got "
                f"{tuple(blocks.shape)}"
            )
        number = blocks.shape[-1] // size
        actions = blocks.unflatten(-1, (number, size)).flatten(2, 3)
        return (actions.argmax(-1) if dynamics.num_actions else actions.float()), number
