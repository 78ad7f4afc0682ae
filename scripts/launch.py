"""How every script starts: its configuration, its memory and threads, and its last sentence.

Import this before torch. Two environment variables change what it does:

    OCRL_KEEP_ALLOCATOR=1   leave the C library's memory allocator as it is
    OCRL_TRACEBACK=1        show the whole traceback of an error instead of one sentence
"""

from __future__ import annotations

# Before all that takes time to load.
from interruption import BEGINS_ANEW, GOES_ON

# isort: split
import ctypes
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from help_text import help_text
from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from mistakes import CONFIGS, check_kinds, check_sizes, composed, explain
from omegaconf import DictConfig
from processes import only_writer

OF_ENVIRONMENTS = ("rollouts", "experiment", "task")
"""Groups with an option for each environment."""

COMMAND = "command.txt"
"""In the directory of a finished run: what made it."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEBIBYTE = 1 << 20
_begun: list[str] = []
"""Name of the script, and the options that the environment chose."""


class Command:
    """A script over `configs/<name>.yaml`: begun before its heavy imports, put on `main(config)`.

    Where the script is what was started, `--help` and a command line that can not be composed are
    answered at once, long before torch is loaded.

    A user's mistake ends in one sentence and exit code 1, an interruption in exit code 130; it
    says whether the same command `goes_on` or begins anew.
    One process at a time writes into the command's directory, unless it `writes_here` nothing.
    Where the configuration has a group of `OF_ENVIRONMENTS` and the command line names none of its
    options, that of the environment is taken: `configs/experiment/<env>.yaml`.
    """

    def __init__(
        self,
        name: str,
        script: Mapping[str, Any],
        *,
        writes_here: bool = True,
        goes_on: bool = True,
    ) -> None:
        """Read the command line if the script was started.

        Args:
            name: of the configuration.
            script: `globals()` of the script.
            writes_here: whether it writes into its directory.
            goes_on: see above.
        """
        self.name, self.script = name, script
        self.writes_here, self.goes_on = writes_here, goes_on
        self._is_begun = False
        if script["__name__"] == "__main__":
            with self._ending():
                self._begin()

    def __call__(self, main: Callable[[DictConfig], None]) -> Callable[[], None]:
        """Turn `main(config)` into the script's entry."""

        @wraps(main)
        def run() -> None:
            with self._ending():
                if not self._is_begun:
                    self._begin()
                self._run(main)

        return run

    def _begin(self) -> None:
        """Everything that needs no more than the command line."""
        self._is_begun = True
        # Hydra would print its own shorter traceback and exit.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        keep_freed_memory()
        set_num_threads()
        job = Path(self.script["__file__"]).stem
        _begun[:] = [job, *choices_of_environment(self.name, sys.argv[1:])]
        added = [*_begun[1:], f"hydra.job.name={job}"]
        sys.argv[1:] = with_overrides(sys.argv[1:], added)
        check_kinds(self.name, sys.argv[1:])
        flags = [word for word in sys.argv[1:] if word.startswith("-")]
        overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
        if {"-h", "--help"} & set(flags):
            told = self.script["__doc__"]
            sys.stdout.write(help_text(self.name, overrides, job=job, docstring=told))
            sys.exit(0)
        if not flags:
            check_sizes(composed(self.name, overrides))

    def _run(self, main: Callable[[DictConfig], None]) -> None:
        errors: list[Exception] = []

        def task(config: DictConfig) -> None:
            # Hydra would announce an error that passes through it with all overrides.
            if errors:
                return
            try:
                check_sizes(config)
                with only_writer(output_dir()) if self.writes_here else nullcontext():
                    main(config)
            except Exception as error:
                errors.append(error)

        start = hydra_main(version_base="1.3", config_path=str(CONFIGS), config_name=self.name)
        start(task)()
        if errors:
            raise errors[0]

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End mistakes and interruptions in a sentence."""
        program = Path(sys.argv[0]).stem
        try:
            yield
        except KeyboardInterrupt as error:
            _end(program, str(error) or (GOES_ON if self.goes_on else BEGINS_ANEW), 130)
        except Exception as error:
            sentence = explain(error, self.name, sys.argv[1:])
            if sentence is None or os.environ.get("OCRL_TRACEBACK") == "1":
                raise
            _end(program, sentence, 1)


def note_command(directory: Path) -> None:
    """Write the running command into a directory, as `read_command` reads it.

    Of a sweep that of the one run.
    """
    job, *chosen = _begun
    told = [option for option in HydraConfig.get().overrides.task if option not in chosen]
    words = ["python", f"scripts/{job}.py", *told]
    (directory / COMMAND).write_text(shlex.join(words) + "\n")


def read_command(directory: Path) -> list[str] | None:
    """The options of the command that a finished run was made by; None where it is not known.

    Without those of Hydra's own, such as where the run is.
    """
    file = directory / COMMAND
    return shlex.split(file.read_text())[2:] if file.is_file() else None


def choice(group: str) -> str:
    """The option of a configuration group that the running command chose."""
    return str(HydraConfig.get().runtime.choices[group])


def output_dir() -> Path:
    """The directory of the running command: everything it writes goes there."""
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def resumable() -> Iterator[None]:
    """End an interruption of a script without a configuration in one sentence and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        _end(Path(sys.argv[0]).stem, GOES_ON, 130)


def _end(program: str, sentence: str, code: int) -> None:
    sys.stderr.write(f"{program}: {sentence}\n")
    sys.stderr.flush()
    sys.exit(code)


# --- memory and threads -----------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks instead of handing them back to the system.

    Otherwise each training step on a CPU asks for every activation's pages again. Does nothing
    where the C library is another one, where the user set a `MALLOC_` variable, or where
    `OCRL_KEEP_ALLOCATOR=1`.

    Returns:
        Whether the allocator took the settings.
    """
    is_set = any(variable.startswith("MALLOC_") for variable in os.environ)
    if os.environ.get("OCRL_KEEP_ALLOCATOR") == "1" or is_set or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        # Larger thresholds than half a heap, 32 MiB, are refused.
        _MMAP_THRESHOLD: 32 * _MEBIBYTE,
        _TRIM_THRESHOLD: 2047 * _MEBIBYTE,
        _TOP_PAD: 64 * _MEBIBYTE,
    }
    return all(mallopt(key, value) == 1 for key, value in settings.items())


def set_num_threads() -> None:
    """Use as many threads as this process may have cores, unless `OMP_NUM_THREADS` says.

    A container's share of the CPU counts, which torch does not look at.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = str(num_cores())
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(num_cores())


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


# --- what belongs to an environment ------------------------------------------------------------


def with_overrides(arguments: list[str], added: list[str]) -> list[str]:
    """Put overrides beside those of the command line: Hydra takes them in one row only."""
    is_override = [not a.startswith("-") and ("=" in a or a[0] == "~") for a in arguments]
    end = max((index + 1 for index, known in enumerate(is_override) if known), default=0)
    return [*arguments[:end], *added, *arguments[end:]]


def choices_of_environment(name: str, arguments: list[str]) -> list[str]:
    """The overrides that choose what belongs to the environment, as far as there is any.

    Raises:
        ValueError: if a sweep over environments leaves a choice open.
    """
    defaults: list[Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["defaults"]
    options = {
        str(key): value
        for entry in defaults
        if isinstance(entry, dict)
        for key, value in entry.items()
    }
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    left = [group for group in OF_ENVIRONMENTS if group in options and group not in chosen]
    env = str(chosen.get("env", options.get("env")))
    if left and "," in env:
        named = " and ".join(f"{group}=NAME" for group in left)
        raise ValueError(f"a sweep over env needs {named} on the command line as well")
    choices = []
    for group in left:
        stems = [s for s in (env, env.split("-")[0]) if (CONFIGS / group / f"{s}.yaml").is_file()]
        choices += [f"{group}={stem}" for stem in stems[:1]]
    return choices
