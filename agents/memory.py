"""What an agent with a world model remembers of its play, as the encoder now sees it.

E environments, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.interface import Observation
from ocrl.agents.replay import EpisodeReplay, OpenEpisodes, Window
from ocrl.agents.world_agent import WorldAgent

FRAME = "frame"
"""The part of an observation that is remembered where slots may have to be made again."""


class Memory:
    """A replay of episodes, filled step by step, whose slots are those of one encoder.

    Attributes:
        parts: (E,...) of the last observation by name, rows in the order of the frame before.
        replay: the episodes that are whole, or pieces.
        num_encoded_again: episodes whose slots were made again, by the last draw.
    """

    parts: dict[str, NDArray[Any]]
    _drawn: NDArray[np.int64]

    def __init__(
        self,
        agent: WorldAgent,
        replay: EpisodeReplay,
        *,
        num_envs: int,
        encoder: EpisodeEncoder | None,
        has_frames: bool,
        piece: int | None = None,
    ) -> None:
        """Start with what the replay holds.

        Args:
            agent: whose observations and actions they are.
            replay: is filled.
            num_envs: E.
            encoder: what makes the slots; None where there is none.
            has_frames: whether frames stand beside the slots.
            piece: see `OpenEpisodes`; where there are frames episodes stay whole, since slots are
                made again from their beginning on.
        """
        self.replay, self.num_encoded_again = replay, 0
        self._agent, self._encoder, self._has_frames = agent, encoder, has_frames
        self._open = OpenEpisodes(num_envs, replay, piece=None if has_frames else piece)

    def begin(self, observation: Observation) -> None:
        """Start an episode in every environment; open ones are broken off."""
        self.parts = self._kept(observation)
        self._open.begin(self.parts, empty=self._agent.actions.empty())

    def step(
        self,
        action: NDArray[Any],
        reward: NDArray[Any],
        ended: NDArray[np.bool_],
        infos: Sequence[Mapping[str, Any]],
        observation: Observation,
    ) -> None:
        """Add what `StableBaselinesVecEnv.step` gave for actions (E,...)."""
        name = self._agent.rows.name
        new = self._kept(observation)
        last = {part: values.copy() for part, values in new.items()}
        for row in np.flatnonzero(ended):
            for part, values in self._kept(infos[int(row)]["terminal_observation"]).items():
                last[part][row] = values
        last = self._agent.ordered(last, self.parts[name])
        is_over = ended.reshape(-1, 1, 1)
        self.parts = {**new, name: np.where(is_over, new[name], last[name])}
        self._open.step(
            self._agent.actions.from_env(action),
            reward,
            ended,
            np.array([info["TimeLimit.truncated"] for info in infos]),
            last=last,
            observation=self.parts,
        )

    def break_off(self) -> None:
        """Hand over what is open as episodes that were truncated."""
        self._open.break_off()

    def note_encoder(self) -> None:
        """Notice which encoder makes observations from now on.

        Raises:
            ValueError: if it is another one than before, and no frames are there to use it on.
        """
        if self._encoder is None:
            return
        version = self._encoder.fingerprint
        if version != self.replay.version and len(self.replay) and not self._has_frames:
            raise ValueError(
                "the encoder has changed under the replay, whose slots are those of the one "
                "before; freeze it, or remember frames (encoder.mode=replay), of which slots are "
                "made again"
            )
        self.replay.version = version

    def window(self, number: int, *, batch_size: int, length: int, **kinds: int) -> Window:
        """The windows of a draw, see `EpisodeReplay.windows`, in slots of the encoder as it is."""
        frames = self.replay.windows(number, batch_size=batch_size, length=length, **kinds)
        self._drawn = frames
        places = np.unique(self.replay.episodes_of(frames)).tolist()
        self._encode_again(self.replay.outdated(places))
        return self.replay.cut(frames)

    def motions(
        self, number: int, *, part: int, batch_size: int, length: int, num_surprising: int
    ) -> Window | None:
        """Windows of the draw `number`, other ones for each `part` of it, as they were remembered.

        Without those whose slots an earlier encoder made, see `steps`. None if that leaves none.
        """
        frames = self.replay.windows(
            number,
            batch_size=batch_size,
            length=length,
            num_surprising=num_surprising,
            num_given=length - 1,
            series=(2, part),
        )
        self._drawn = self._as_now(frames)
        return self.replay.cut(self._drawn) if len(self._drawn) else None

    def note_surprise(self, surprise: Tensor) -> None:
        """Remember how wrong (B,n) the first n steps of the windows of the last draw were told."""
        frames = self._drawn[:, 1 : 1 + surprise.shape[1]]
        self.replay.note_surprise(frames.ravel(), surprise.cpu().numpy().ravel())

    def steps(self, number: int, *, batch_size: int) -> Window | None:
        """The steps of a draw, see `EpisodeReplay.steps`, as windows of two frames.

        Without those whose slots an earlier encoder made: to make them anew would cost an episode
        for each. None if that leaves none.
        """
        frames = self._as_now(self.replay.steps(number, batch_size=batch_size))
        return self.replay.cut(frames) if len(frames) else None

    def _as_now(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of windows (B,T) whose slots are all of the encoder as it is."""
        places = self.replay.episodes_of(frames)
        outdated = self.replay.outdated(np.unique(places).tolist())
        return frames[~np.isin(places, outdated).any(-1)]

    def _encode_again(self, places: list[int]) -> None:
        self.num_encoded_again = len(places)
        if not places or self._encoder is None:
            return
        agent = self._agent
        episodes = [self.replay.episode(place) for place in places]
        slots = self._encoder.encode(
            [parts[FRAME] for parts, _ in episodes],
            [agent.actions.to_env(torch.from_numpy(done["action"])) for _, done in episodes],
        )
        for place, rows in zip(places, slots, strict=True):
            self.replay.replace(place, agent.rows.name, agent.ordered_episode(rows))

    def _kept(self, observation: Observation) -> dict[str, NDArray[Any]]:
        """The parts of an observation that are remembered."""
        parts = self._agent.rows.parts(observation)
        if isinstance(observation, Mapping) and self._has_frames:
            parts[FRAME] = observation[FRAME]
        return parts
