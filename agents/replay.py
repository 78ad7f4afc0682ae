"""What was played, episode by episode, and windows of it to learn from.

B windows, T frames, L frames of an episode, E environments, A action size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
"""By name, (L,...): `action`, `reward`, `terminated`, `truncated` and the parts of observations."""

_OUTCOMES = ("action", "reward", "terminated", "truncated")
_PREFIX = "observation/"
_FILE = "replay.npz"


@dataclass(frozen=True)
class Window:
    """Equally long pieces of what was played.

    As in `ocrl.types.Clip`, reward and endings came with a frame, and an action followed it; on the
    last frame of an episode it is zero, and nobody reads it.

    Attributes:
        observation: (B,T,...) by part.
        action: (B,T) or (B,T,A), as networks know them.
        reward: (B,T).
        terminated: (B,T) bool.
        truncated: (B,T) bool, or the episode was broken off there, or goes on in another piece.
        is_first: (B,T) bool; true on the first frame of each window, too.
    """

    observation: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    is_first: Tensor

    def to(self, device: torch.device | str) -> Window:
        """Move every tensor."""
        parts = {name: value.to(device) for name, value in self.observation.items()}
        others = (self.action, self.reward, self.terminated, self.truncated, self.is_first)
        return Window(parts, *(value.to(device) for value in others))

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.reward.shape[0], self.reward.shape[1]


class EpisodeReplay:
    """The last episodes, or pieces of them, as one row of frames from which windows are cut.

    A window begins at any frame with another one after it in its episode, all alike likely, and
    goes on over the end of an episode into the next one, `is_first` there. Some may be drawn by
    surprise instead, how wrong a world model was about a step when it last foretold it, as Curious
    Replay draws single steps (Kauvar et al. 2023, arXiv 2306.15934); differs in that what was not
    foretold yet is as surprising as the mean of what was, and that the others are drawn alike. And
    some may hold an event, a step with a reward other than 0 or that terminated: what is imagined
    from these finds rewards, rare as they may be. Single steps are drawn with at least as many
    events as others.

    What is drawn depends on the content, the seed and the number of the draw alone, so a run that
    is resumed draws what it would have drawn.

    Attributes:
        capacity: frames that are kept at least, as far as there are so many: the oldest episode
            goes when those after it are as many.
        num_frames: that are held.
        version: of what made the observations; an episode remembers the one that it was added with.
    """

    def __init__(self, *, capacity: int, seed: int) -> None:
        """Start empty.

        Args:
            capacity: frames.
            seed: of the drawing of windows.

        Raises:
            ValueError: if `capacity` is below 2.
        """
        if capacity < 2:
            raise ValueError(f"expected agent.replay.capacity of at least 2 frames, got {capacity}")
        self.capacity, self._seed = capacity, seed
        self.num_frames, self.version = 0, 0
        self._episodes: list[Arrays] = []
        self._versions: list[int] = []
        self._surprise = np.empty(0, np.float32)
        self._index: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._sorted: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Episodes that are held."""
        return len(self._episodes)

    @property
    def num_steps(self) -> int:
        """Steps that are held: frames without the first ones."""
        return self.num_frames - len(self)

    @property
    def num_events(self) -> int:
        """Events among the steps that are held."""
        return len(self._kinds()[0])

    def add(
        self,
        observation: Mapping[str, NDArray[Any]],
        outcomes: Mapping[str, Any],
        *,
        version: int | None = None,
    ) -> None:
        """Add an episode of L frames.

        Args:
            observation: (L,...) by part.
            outcomes: `action`, `reward`, `terminated` and `truncated`, (L,...).
            version: of what made the observation; None for the present one.

        Raises:
            ValueError: if it has less than two frames, its arrays are not equally long, or they are
                other ones than those of the episodes before.
        """
        episode = {f"{_PREFIX}{name}": np.asarray(part) for name, part in observation.items()}
        episode |= {name: np.asarray(outcomes[name]) for name in _OUTCOMES}
        lengths = {name: len(array) for name, array in episode.items()}
        if len(set(lengths.values())) != 1 or min(lengths.values()) < 2:
            raise ValueError(f"expected arrays of one length, from 2 frames on, got {lengths}")
        before = self._episodes[-1] if self._episodes else episode
        for name, array in before.items():
            found = episode.get(name)
            if found is None or found.shape[1:] != array.shape[1:] or found.dtype != array.dtype:
                got = "none" if found is None else f"{found.shape[1:]} in {found.dtype}"
                raise ValueError(
                    f"expected {name} of shape {array.shape[1:]} in {array.dtype} as in the "
                    f"episodes before, got {got}"
                )
        if more := sorted(set(episode) - set(before)):
            raise ValueError(
                f"expected {', '.join(before)} as in the episodes before, got {', '.join(more)} "
                "besides"
            )
        self._episodes.append(episode)
        self._versions.append(self.version if version is None else version)
        self.num_frames += len(episode["reward"])
        unknown = np.full(len(episode["reward"]), np.nan, np.float32)
        self._surprise = np.concatenate([self._surprise, unknown])
        while self.num_frames - len(self._episodes[0]["reward"]) >= self.capacity:
            self.num_frames -= len(self._episodes.pop(0)["reward"])
            del self._versions[0]
        self._surprise = self._surprise[-self.num_frames :]
        self._index = self._sorted = None

    def windows(
        self,
        number: int,
        *,
        batch_size: int,
        length: int,
        num_surprising: int = 0,
        num_given: int = 1,
        num_eventful: int = 0,
        series: Sequence[int] = (),
    ) -> NDArray[np.int64]:
        """The numbers of the frames (B,T) of the windows of a draw.

        Args:
            number: of the draw.
            batch_size: B.
            length: T.
            num_surprising: of the windows that hold a step drawn by its surprise. They come after
                those that are drawn alike.
            num_given: the steps at their beginning that this is one of.
            num_eventful: of the windows that hold an event, if there is any. They come last.
            series: numbers that set draws apart which have the same number; none for the first of
                them. One number 1 is that of `steps`.

        Raises:
            ValueError: if fewer than T frames are held.
        """
        if self.num_frames < length or length < 2:
            raise ValueError(
                f"expected windows of 2 to {self.num_frames} frames, which are held, got {length}"
            )
        rng = np.random.default_rng((self._seed, number, *series))
        begins, steps = self._places()
        starts = rng.integers(self.num_steps, size=batch_size)
        episodes = np.searchsorted(steps, starts, side="right") - 1
        first = begins[episodes] + starts - steps[episodes]
        if num_surprising:
            drawn = self._surprising(rng, num_surprising)
            before = 1 + rng.integers(num_given, size=num_surprising)
            place = batch_size - num_eventful - num_surprising
            surprising = slice(place, place + num_surprising)
            first[surprising] = np.maximum(drawn - before, self._begin_of(drawn))
        if num_eventful and self.num_events:
            events, _ = self._kinds()
            drawn = events[rng.integers(len(events), size=num_eventful)]
            before = 1 + rng.integers(length - 1, size=num_eventful)
            first[-num_eventful:] = np.maximum(drawn - before, self._begin_of(drawn))
        # A window that would run over the end of all goes on at the beginning.
        return (first[:, None] + np.arange(length)) % self.num_frames

    def _begin_of(self, frames: NDArray[np.intp]) -> NDArray[np.int64]:
        """The first frames of the episodes that frames (n,) are of."""
        return self._places()[0][self.episodes_of(frames)]

    def note_surprise(self, frames: NDArray[np.int64], surprise: NDArray[np.floating]) -> None:
        """Remember how wrong (n,) a world model was about the steps that led to frames (n,).

        Raises:
            ValueError: if it is negative or not finite.
        """
        if not np.isfinite(surprise).all() or (surprise < 0).any():
            raise ValueError("expected surprise of at least 0 that is finite, got another one")
        is_step = self._begin_of(frames) != frames
        self._surprise[frames[is_step]] = surprise[is_step]

    def _surprising(self, rng: np.random.Generator, number: int) -> NDArray[np.intp]:
        """Frames (n,) that steps led to, drawn in proportion to the surprise of these."""
        is_step = np.ones(self.num_frames, bool)
        is_step[self._places()[0]] = False
        known = self._surprise[is_step & ~np.isnan(self._surprise)]
        mean = known.mean() if known.any() else 1.0
        # Where nothing surprises any more, all are alike.
        told = self._surprise if known.any() else np.nan
        weight = np.where(is_step, np.where(np.isnan(told), mean, told), 0.0).astype(np.float64)
        return rng.choice(self.num_frames, size=number, p=weight / weight.sum())

    def steps(self, number: int, *, batch_size: int) -> NDArray[np.int64]:
        """The numbers of the frames (B,2) before and after the steps of a draw.

        Half of them are events, or as many as among all steps where those are more; none where
        there is none.

        Args:
            number: of the draw.
            batch_size: B.
        """
        rng = np.random.default_rng((self._seed, number, 1))
        events, others = self._kinds()
        share = max(0.5, len(events) / self.num_steps) if len(events) else 0.0
        num_events = round(share * batch_size)
        drawn = [
            kind[rng.integers(max(len(kind), 1), size=size)]
            for kind, size in ((events, num_events), (others, batch_size - num_events))
            if size
        ]
        return np.concatenate(drawn)[:, None] + np.array([-1, 0])

    def episodes_of(self, frames: NDArray[np.int64]) -> NDArray[np.intp]:
        """The places (...) of the episodes that frames (...) are of."""
        return np.searchsorted(self._places()[0], frames, side="right") - 1

    def outdated(self, places: Sequence[int]) -> list[int]:
        """Those of the episodes whose observations were made by another version."""
        return [place for place in places if self._versions[place] != self.version]

    def episode(self, place: int) -> tuple[Arrays, Arrays]:
        """The observation and the outcomes of an episode."""
        episode = self._episodes[place]
        parts = {n.removeprefix(_PREFIX): a for n, a in episode.items() if n.startswith(_PREFIX)}
        return parts, {name: episode[name] for name in _OUTCOMES}

    def replace(self, place: int, part: str, values: NDArray[Any]) -> None:
        """Put another array of the same shape in place of a part of an episode's observation."""
        name = f"{_PREFIX}{part}"
        old = self._episodes[place][name]
        if values.shape != old.shape:
            raise ValueError(f"expected {part} of shape {old.shape}, got {values.shape}")
        self._episodes[place] = self._episodes[place] | {name: values.astype(old.dtype)}
        self._versions[place] = self.version

    def frames_of(self, part: str) -> Iterator[NDArray[Any]]:
        """A part of the observation of each episode, (L,...)."""
        for episode in self._episodes:
            yield episode[f"{_PREFIX}{part}"]

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each episode begins, counted in frames and in steps."""
        if self._index is None:
            lengths = np.array([len(episode["reward"]) for episode in self._episodes], np.int64)
            begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            self._index = begins, begins - np.arange(len(lengths))
        return self._index

    def _kinds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of the frames that events led to, and of those that other steps led to."""
        if self._sorted is None:
            frames = np.arange(self.num_frames)
            is_event = np.zeros(self.num_frames, bool)
            if self._episodes:
                reward, ends = (
                    np.concatenate([episode[name] for episode in self._episodes])
                    for name in ("reward", "terminated")
                )
                is_event = (reward != 0) | ends
            is_step = np.ones(self.num_frames, bool)
            is_step[self._places()[0]] = False
            self._sorted = frames[is_step & is_event], frames[is_step & ~is_event]
        return self._sorted

    def cut(self, frames: NDArray[np.int64]) -> Window:
        """What was played in the frames (B,T) of a draw."""
        where = self.episodes_of(frames)
        within = frames - self._places()[0][where]

        def gathered(name: str) -> Tensor:
            sample = self._episodes[0][name]
            out = np.empty((*frames.shape, *sample.shape[1:]), sample.dtype)
            for place in np.unique(where):
                rows = where == place
                out[rows] = self._episodes[place][name][within[rows]]
            return torch.from_numpy(out)

        is_first = torch.from_numpy(within == 0)
        is_first[:, 0] = True
        names = [name for name in self._episodes[0] if name.startswith(_PREFIX)]
        return Window(
            {name.removeprefix(_PREFIX): gathered(name) for name in names},
            action=gathered("action"),
            reward=gathered("reward"),
            terminated=gathered("terminated"),
            truncated=gathered("truncated"),
            is_first=is_first,
        )

    # --- on disk --------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write everything that later draws depend on into a folder."""
        lengths = np.array([len(episode["reward"]) for episode in self._episodes], np.int64)
        arrays = {name: np.concatenate([e[name] for e in self._episodes]) for name in self._names()}
        versions = np.array([*self._versions, self.version], np.int64)
        with (folder / _FILE).open("wb") as file:
            arrays |= {"lengths": lengths, "versions": versions, "surprise": self._surprise}
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self, folder: Path) -> None:
        """Hold what `save` wrote, in place of what is held.

        Raises:
            ValueError: if the file is damaged.
        """
        try:
            with (folder / _FILE).open("rb") as opened:
                file = np.load(opened, allow_pickle=False)
                arrays = {name: file[name] for name in file.files}
        except (OSError, EOFError, ValueError, BadZipFile, AttributeError) as error:
            sentence = " ".join(str(error).split())
            raise ValueError(f"{folder / _FILE} is damaged: {sentence}") from error
        lengths, versions = arrays.pop("lengths"), arrays.pop("versions")
        self._surprise = arrays.pop("surprise")
        ends = np.cumsum(lengths)
        self._episodes = [
            # Copies, so that those that are dropped later free their part.
            {name: array[end - length : end].copy() for name, array in arrays.items()}
            for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
        ]
        self._versions, self.version = versions[:-1].tolist(), int(versions[-1])
        self.num_frames, self._index, self._sorted = int(lengths.sum()), None, None

    def _names(self) -> list[str]:
        return list(self._episodes[0]) if self._episodes else []


class OpenEpisodes:
    """Episodes that are being played, one in each environment, until they are whole.

    An action is known one step after its frame, so frames are kept until the next one comes. Of an
    episode of hundreds of steps nothing would be learned before it is over, and an agent that is
    stuck would hardly notice: it may be handed over in pieces, each of which begins with the frame
    that the one before ended with.
    """

    def __init__(self, num_envs: int, replay: EpisodeReplay, *, piece: int | None = None) -> None:
        """Start with nothing played.

        Args:
            num_envs: E.
            replay: is given each episode when it is whole, or each piece.
            piece: frames of a piece, from 2 on; None to wait until episodes are whole.
        """
        self._replay, self._piece = replay, piece
        self._open: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
        self._versions = [0] * num_envs

    def begin(self, observation: Mapping[str, NDArray[Any]], *, empty: NDArray[Any]) -> None:
        """Start an episode in every environment; open ones are broken off, see `break_off`.

        Args:
            observation: (E,...) by part.
            empty: stands where no action was done.
        """
        self.break_off()
        self._empty = empty
        for env in range(len(self._open)):
            self._start(env, observation)

    def step(
        self,
        action: NDArray[Any],
        reward: NDArray[Any],
        ended: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        *,
        last: Mapping[str, NDArray[Any]],
        observation: Mapping[str, NDArray[Any]],
    ) -> None:
        """Add a step of every environment.

        Args:
            action: (E,...) as networks know them.
            reward: (E,).
            ended: (E,) bool.
            truncated: (E,) bool, where it ended without a termination.
            last: (E,...) by part, what the step led to: the final observation where one ended.
            observation: (E,...) by part; where an episode ended, the first of the next one.
        """
        for env, frames in enumerate(self._open):
            frames[-1]["action"] = action[env]
            is_cut = bool(truncated[env])
            is_over = bool(ended[env])
            frames.append(
                self._frame(last, env, float(reward[env]), is_over and not is_cut, is_cut)
            )
            if is_over:
                self._close(env)
                self._start(env, observation)
            elif len(frames) == self._piece:
                frames[-1]["truncated"] = np.bool_(True)
                self._close(env)
                self._start(env, last)

    def break_off(self) -> None:
        """Hand over what is open as episodes that were truncated, and forget it."""
        for env, frames in enumerate(self._open):
            if len(frames) > 1:
                frames[-1]["truncated"] = np.bool_(True)
                self._close(env)
            self._open[env] = []

    def _start(self, env: int, observation: Mapping[str, NDArray[Any]]) -> None:
        self._open[env] = [self._frame(observation, env, 0.0, False, False)]
        self._versions[env] = self._replay.version

    def _frame(
        self, parts: Mapping[str, Any], env: int, reward: float, terminated: bool, truncated: bool
    ) -> dict[str, Any]:
        values = {"action": self._empty, "reward": np.float32(reward)}
        values |= {"terminated": np.bool_(terminated), "truncated": np.bool_(truncated)}
        return values | {f"{_PREFIX}{name}": part[env].copy() for name, part in parts.items()}

    def _close(self, env: int) -> None:
        frames = self._open[env]
        whole = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
        parts = {n.removeprefix(_PREFIX): a for n, a in whole.items() if n.startswith(_PREFIX)}
        outcomes = {name: whole[name] for name in _OUTCOMES}
        self._replay.add(parts, outcomes, version=self._versions[env])
