"""What is said of Ctrl-C; imported first of all, as the other imports take seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

GOES_ON = "interrupted; the same command goes on where it was stopped"
BEGINS_ANEW = "interrupted; the same command begins anew"
NOT_BEGUN = "interrupted before anything was begun"


def _end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """In place of the traceback of an interruption that nothing else has taken: one sentence."""
    if not issubclass(kind, KeyboardInterrupt) or os.environ.get("OCRL_TRACEBACK") == "1":
        _before(kind, error, traceback)
    else:
        sys.stderr.write(f"{Path(sys.argv[0]).stem}: {NOT_BEGUN}\n")


_before = sys.excepthook
sys.excepthook = _end
