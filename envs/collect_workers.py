"""Worker processes that play episodes, and the ledger that says which episodes are needed.

A worker plays an episode, says how long it became and keeps it in memory until it is told to write
or to drop it. So every worker can play ahead, yet only the shortest row of episodes 0, 1, 2, ...
that has the steps asked for reaches the disk. Each worker writes a shard of its own.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ocrl.data.store import EpisodeWriter
from ocrl.envs.interface import ObjectEnv
from ocrl.envs.policies import Policy, build_policy
from ocrl.envs.record import Episode, count_steps, record_episode
from ocrl.envs.registry import make
from ocrl.envs.vector import worker_context

_STEPS_PER_MESSAGE = 32
_SECONDS_TO_STOP = 20.0


@dataclass(frozen=True)
class Job:
    """What every worker must know."""

    env_name: str
    env_kwargs: Mapping[str, Any]
    policy: str
    seed: int
    episode_length: int | None
    segmentation: tuple[str, ...]
    path: Path
    metadata: Mapping[str, Any]

    def record(
        self,
        env: ObjectEnv,
        policy: Policy,
        number: int,
        *,
        after_step: Callable[[int], None],
    ) -> Episode:
        """Play episode `number`."""
        return record_episode(
            env,
            policy,
            seed=self.seed,
            number=number,
            episode_length=self.episode_length,
            segmentation=self.segmentation,
            after_step=after_step,
        )


class Ledger:
    """Which episodes there are, how long they are, and which are still needed.

    Attributes:
        num_steps: how many steps the needed episodes must have together.
    """

    def __init__(self, num_steps: int, episode_length: int | None) -> None:
        """Start with no episode."""
        self.num_steps = num_steps
        self._longest = float("inf") if episode_length is None else episode_length
        self._lengths: dict[int, int] = {}
        self._written: set[int] = set()
        self._running: dict[int, int] = {}
        self._frontier = 0
        self._frontier_steps = 0

    @property
    def num_played(self) -> int:
        """Steps on disk, in memory, and in the running episodes."""
        return sum(self._lengths.values()) + sum(self._running.values())

    @property
    def is_complete(self) -> bool:
        """Whether every needed episode is on disk."""
        if self._frontier_steps < self.num_steps:
            return False
        return all(
            self.is_needed(number) is False
            for number in self._lengths
            if number not in self._written
        )

    def next_number(self) -> int | None:
        """The first episode that nobody plays yet and that may be needed, and mark it as played."""
        number = self._frontier
        while number in self._lengths or number in self._running:
            number += 1
        if self._bounds(number)[0] >= self.num_steps:
            return None
        self._running[number] = 0
        return number

    def note(self, number: int, steps: int) -> None:
        """Say how far a running episode is."""
        self._running[number] = steps

    def finish(self, number: int, steps: int) -> None:
        """Say how long an episode became."""
        self._running.pop(number, None)
        self._lengths[number] = steps
        while self._frontier in self._lengths:
            self._frontier_steps += self._lengths[self._frontier]
            self._frontier += 1

    def add(self, number: int, steps: int) -> None:
        """Say that an episode is on disk."""
        if number not in self._lengths:
            self.finish(number, steps)
        self._written.add(number)

    def is_needed(self, number: int) -> bool | None:
        """Whether an episode belongs to the shortest sufficient row; None if it is not known yet.

        It does if those before it have too few steps.
        """
        least, most = self._bounds(number)
        if least >= self.num_steps:
            return False
        return True if most < self.num_steps else None

    def _bounds(self, number: int) -> tuple[float, float]:
        """The least and the most steps that the episodes before `number` can have."""
        if number < self._frontier:
            before = sum(self._lengths[index] for index in range(number, self._frontier))
            return self._frontier_steps - before, self._frontier_steps - before
        least = most = float(self._frontier_steps)
        for index in range(self._frontier, number):
            if index in self._lengths:
                least, most = least + self._lengths[index], most + self._lengths[index]
            else:
                least += max(1, self._running.get(index, 0))
                most += self._longest
        return least, most


@dataclass
class _Hand:
    """A worker as its employer sees it: which episode it plays and which it holds in memory."""

    number: int
    process: BaseProcess
    connection: Connection
    playing: int | None = None


def collect_in_processes(
    job: Job, ledger: Ledger, *, num_workers: int, update: Callable[[], None]
) -> None:
    """Have workers play until the ledger is complete.

    Raises:
        ChildProcessError: if a worker ends before it is told to.
        Exception: what went wrong in a worker.
    """
    hands: list[_Hand] = []
    try:
        for number in range(num_workers):
            hands.append(_hire(job, number))
        undecided: dict[int, _Hand] = {}
        for hand in hands:
            _assign(hand, ledger)
        while not ledger.is_complete:
            for connection in wait([hand.connection for hand in hands]):
                hand = next(h for h in hands if h.connection is connection)
                _hear(hand, ledger, undecided)
            _decide(ledger, undecided)
            for hand in hands:
                if hand.playing is None:
                    _assign(hand, ledger)
            update()
    finally:
        _dismiss(hands)


def _hire(job: Job, number: int) -> _Hand:
    context = worker_context()
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(job, number, theirs), name=f"collect-{number}", daemon=True
    )
    with _interrupts_ignored():
        process.start()
    theirs.close()
    return _Hand(number, process, ours)


def _assign(hand: _Hand, ledger: Ledger) -> None:
    hand.playing = ledger.next_number()
    if hand.playing is not None:
        _tell(hand, "play", hand.playing)


def _tell(hand: _Hand, order: str, number: int) -> None:
    try:
        hand.connection.send((order, number))
    except OSError as error:
        raise _death(hand) from error


def _hear(hand: _Hand, ledger: Ledger, undecided: dict[int, _Hand]) -> None:
    """Take one message from a worker."""
    try:
        kind, number, content = hand.connection.recv()
    except (EOFError, OSError) as error:
        raise _death(hand) from error
    if kind == "failed":
        raise content
    if kind == "playing":
        ledger.note(number, content)
    elif kind == "played":
        ledger.finish(number, content)
        undecided[number] = hand
        hand.playing = None
    else:
        ledger.add(number, content)


def _decide(ledger: Ledger, undecided: dict[int, _Hand]) -> None:
    """Have those episodes written or dropped of which it is known by now."""
    for number, hand in list(undecided.items()):
        is_needed = ledger.is_needed(number)
        if is_needed is not None:
            _tell(hand, "write" if is_needed else "drop", number)
            del undecided[number]


def _death(hand: _Hand) -> ChildProcessError:
    hand.process.join(1.0)
    code = hand.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else "ended"
    when = "" if hand.playing is None else f" during episode {hand.playing}"
    return ChildProcessError(f"worker {hand.number} {how}{when}")


def _dismiss(hands: list[_Hand]) -> None:
    """Have every worker write what it was told to write, drop the rest and end."""
    for hand in hands:
        with contextlib.suppress(OSError):
            hand.connection.send(("stop", -1))
    for hand in hands:
        hand.process.join(_SECONDS_TO_STOP)
        if hand.process.is_alive():
            hand.process.terminate()
            hand.process.join()
        hand.connection.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts in here ignores Ctrl-C, which reaches the whole group of processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- in the worker's process ------------------------------------------------------------------


class _Stop(Exception):
    """The employer wants no more, or is gone."""


class _Worker:
    def __init__(self, job: Job, writer: EpisodeWriter, connection: Connection) -> None:
        self._job, self._writer, self._connection = job, writer, connection
        self._env = make(job.env_name, **job.env_kwargs)
        self._policy = build_policy(job.policy, self._env)
        self._to_play: deque[int] = deque()
        self._held: dict[int, Episode] = {}

    def serve(self) -> None:
        """Play, write and drop as told, until told to stop."""
        while True:
            while not self._to_play:
                self._obey()
            number = self._to_play.popleft()

            def after_step(steps: int, number: int = number) -> None:
                if steps % _STEPS_PER_MESSAGE == 0:
                    self._connection.send(("playing", number, steps))
                    while self._connection.poll():
                        self._obey()

            episode = self._job.record(self._env, self._policy, number, after_step=after_step)
            self._held[number] = episode
            self._connection.send(("played", number, count_steps(episode)))

    def _obey(self) -> None:
        order, number = self._connection.recv()
        if order == "play":
            self._to_play.append(number)
        elif order == "stop":
            raise _Stop
        else:
            episode = self._held.pop(number)
            if order == "write":
                self._writer.append(episode)
                self._connection.send(("wrote", number, count_steps(episode)))


def _work(job: Job, number: int, connection: Connection) -> None:
    # A server that was started before may have handed its own handling of Ctrl-C on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The workers share the cores; threads of each would stand in the others' way.
    torch.set_num_threads(1)
    try:
        with EpisodeWriter(job.path, metadata=job.metadata, worker=number) as writer:
            _Worker(job, writer, connection).serve()
    except (_Stop, EOFError, ConnectionError):
        return
    except Exception as error:
        connection.send(("failed", -1, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way between processes, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
