"""What a run tells: TensorBoard files, and progress on the terminal."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_RGB = 3
_SECONDS_BETWEEN_LINES = 20.0
_FINDING = 20
"""Characters that tell one finding from another."""


class TensorBoard:
    """Scalars, pictures (GIFs move) and text for TensorBoard.

    What was logged at or after `start_step` by a run that was killed is hidden, so that a resumed
    run has one curve.
    """

    def __init__(
        self, directory: Path | str, *, start_step: int = 0, is_silent: bool = False
    ) -> None:
        """Open a new event file.

        Args:
            directory: where it lies, beside those of earlier parts of the run.
            start_step: the first step that will be logged, if there are earlier parts.
            is_silent: write nothing, as all processes but the first do.
        """
        self._writer = None if is_silent else EventFileWriter(str(directory))
        if start_step > 0:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step, session_log=start))

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers by name; those that are not finite are left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._add([Summary.Value(tag=k, simple_value=v) for k, v in finite.items()], step)

    def picture(self, name: str, encoded: bytes, *, step: int) -> None:
        """Log the bytes of a PNG or GIF file; a GIF moves."""
        with Image.open(io.BytesIO(encoded)) as opened:
            width, height = opened.size
        image = Summary.Image(
            height=height, width=width, colorspace=_RGB, encoded_image_string=encoded
        )
        self._add([Summary.Value(tag=name, image=image)], step)

    def text(self, name: str, content: str, *, step: int) -> None:
        """Log a text in Markdown."""
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[content.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        metadata = SummaryMetadata(plugin_data=plugin)
        self._add([Summary.Value(tag=name, metadata=metadata, tensor=tensor)], step)

    def flush(self) -> None:
        """Write what is waiting."""
        if self._writer is not None:
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, values: list[Summary.Value], step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        if self._writer is not None:
            self._writer.add_event(event)


class SayOnce:
    """Says each finding once, however often it is found and whatever its numbers are by then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Remember who is told.

        Args:
            say: takes a sentence.
        """
        self._say = say
        self._said: set[str] = set()

    def __call__(self, sentences: Iterable[str]) -> None:
        """Say those of the sentences that begin as none before did."""
        for sentence in sentences:
            kind = sentence.split(":")[0].split(".")[0][:_FINDING]
            if kind not in self._said:
                self._said.add(kind)
                self._say(sentence)


class ProgressBar:
    """How far a long job is, how fast, and how long it will take.

    A bar on a terminal; in a file or a pipe a line every twenty seconds.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        start: int = 0,
        console: Console | None = None,
        is_silent: bool = False,
    ) -> None:
        """Prepare a bar.

        Args:
            title: what is being done.
            total: steps of the whole job.
            start: steps done before.
            console: where to; the terminal's error stream unless given.
            is_silent: show nothing, as all processes but the first do.
        """
        self._console = console or Console(stderr=True, quiet=is_silent)
        self._title, self._total, self._start, self._done = title, total, start, start
        self._begun = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal or is_silent,
        )
        self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def update(self, done: int, *, note: str = "", fraction: float | None = None) -> None:
        """Say that `done` steps are done.

        Args:
            done: steps.
            note: what else to show: a speed, a loss.
            fraction: share of the whole job that is done, where it is not `done / total`.
        """
        self._done = done
        if fraction is not None and fraction > 0:
            self._total = max(done, round(done / fraction))
        self._bar.update(self._task, completed=done, total=self._total, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            said = [f"{done}/{self._total}", f"{self._left(now)} left", *filter(None, [note])]
            self.say(f"{self._title}: {', '.join(said)}")

    def say(self, sentence: str) -> None:
        """Say something without breaking the bar."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def _left(self, now: float) -> str:
        done = self._done - self._start
        if done <= 0:
            return "unknown time"
        # Rollouts end where they end, which may be beyond the total.
        to_do = max(0, self._total - self._done)
        seconds = to_do * (now - self._begun) / done
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
