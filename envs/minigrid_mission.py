"""What a MiniGrid or BabyAI game asks for, in numbers; their count depends on the game alone.

W numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace
from minigrid.minigrid_env import MiniGridEnv as Game
from numpy.typing import NDArray

_VERBS = (
    verifier.GoToInstr,
    verifier.OpenInstr,
    verifier.PickupInstr,
    verifier.PutNextInstr,
)
_WORDS: dict[str, Sequence[str]] = {
    "type": verifier.OBJ_TYPES,
    "color": COLOR_NAMES,
    "loc": verifier.LOC_NAMES,
}
_OBJECT_SIZE = sum(len(words) for words in _WORDS.values())
_ACTION_SIZE = len(_VERBS) + 2 * _OBJECT_SIZE
_BABYAI_SIZE = 4 * _ACTION_SIZE


class MissionCode:
    """The mission of a game as zeros and ones (W,), one to one.

    MiniGrid's missions are sentences with gaps: each gap has a number for each of its words. A game
    with one mission has one number, 1. BabyAI's say what to do first and what then (all zero for
    nothing more), each one action or two in any order. An action has numbers for its verb, and for
    the type, colour and place of its object and of the one to put it next to; what is left open,
    such as the colour in "a box", is all zero.

    Attributes:
        size: W.
    """

    def __init__(self, game: Game) -> None:
        """Find out which missions a game has."""
        space = game.observation_space["mission"]  # type: ignore[index]
        self._is_babyai = isinstance(space, BabyAIMissionSpace)
        self._codes: dict[str, NDArray[np.float32]] = {}
        if self._is_babyai:
            self.size = _BABYAI_SIZE
            return
        gaps: Sequence[Sequence[str]] = space.ordered_placeholders or ()
        for words in itertools.product(*gaps):
            mission = space.mission_func(*words)
            chosen = [_one_hot(gap, word) for gap, word in zip(gaps, words, strict=True)]
            self._codes[mission] = np.concatenate(chosen or [np.ones(1, np.float32)])
        self.size = len(next(iter(self._codes.values())))

    def __call__(self, game: Game) -> NDArray[np.float32]:
        """The mission (W,) that a game has now.

        Raises:
            ValueError: if the game did not announce it.
        """
        if self._is_babyai:
            return _encode_tree(game.instrs)  # type: ignore[attr-defined]
        if game.mission not in self._codes:
            raise ValueError(
                f"expected one of {len(self._codes)} missions, such as "
                f"{next(iter(self._codes))!r}, got {game.mission!r}"
            )
        return self._codes[game.mission]


def _encode_tree(instruction: Any) -> NDArray[np.float32]:
    """The numbers of a BabyAI instruction."""
    halves: tuple[Any, ...] = (instruction,)
    if isinstance(instruction, verifier.BeforeInstr):
        halves = (instruction.instr_a, instruction.instr_b)
    if isinstance(instruction, verifier.AfterInstr):
        halves = (instruction.instr_b, instruction.instr_a)
    code = np.zeros((2, 2, _ACTION_SIZE), np.float32)
    for part, half in zip(code, halves, strict=False):
        is_pair = isinstance(half, verifier.AndInstr)
        actions = (half.instr_a, half.instr_b) if is_pair else (half,)
        for row, action in zip(part, actions, strict=False):
            row[:] = _encode_action(action)
    return code.ravel()


def _encode_action(action: Any) -> NDArray[np.float32]:
    is_put = isinstance(action, verifier.PutNextInstr)
    described = (action.desc_move, action.desc_fixed) if is_put else (action.desc,)
    objects = np.zeros((2, _OBJECT_SIZE), np.float32)
    for row, description in zip(objects, described, strict=False):
        words = [_one_hot(known, getattr(description, name)) for name, known in _WORDS.items()]
        row[:] = np.concatenate(words)
    verb = _one_hot(_VERBS, type(action))
    return np.concatenate([verb, objects.ravel()])


def _one_hot(known: Sequence[Any], entry: Any) -> NDArray[np.float32]:
    return np.array([entry == other for other in known], np.float32)
