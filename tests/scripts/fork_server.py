"""Starts scripts as forks of one process that has the heavy imports behind it.

A script of a few steps spends most of its time importing torch. Each line on standard input is a
request in JSON: `argv` (the script first), `cwd`, `env`, and the files `stdout` and `stderr`; each
line on standard output is the exit code.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

HEAVY = (
    *("torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "hydra", "numba"),
    *("stable_baselines3", "crafter", "minigrid", "scipy.optimize", "av", "rich.progress"),
)
"""Packages of others only: what is tested is imported anew by each script."""


def become(request: dict) -> None:
    """Turn this process into the script; its exit ends the process."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(request["stdout"], flags), 1)
    os.dup2(os.open(request["stderr"], flags), 2)
    sys.argv = request["argv"]
    script = Path(sys.argv[0])
    sys.path[0] = str(script.parent)
    sys.path[1:1] = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    runpy.run_path(str(script), run_name="__main__")
    sys.exit(0)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
