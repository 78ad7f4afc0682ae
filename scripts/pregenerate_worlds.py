"""Generate Crafter's worlds once and keep them: a reset with one of their seeds is then instant.

    python scripts/pregenerate_worlds.py WORLDS --seeds 1000
    python scripts/collect_rollouts.py env=crafter env.world_cache=WORLDS

Worlds that are there already are kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from launch import resumable
from rich.console import Console
from rich.progress import Progress

from ocrl.envs.crafter_world import pregenerate

_ENV = Path(__file__).resolve().parents[1] / "configs" / "env" / "crafter.yaml"


@resumable()
def main() -> None:
    """Generate what is missing and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the worlds go")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--episodes", type=int, default=1, help="worlds after each seeded reset")
    parser.add_argument("--area", type=int, nargs=2, help="cells of the map; env=crafter's if none")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.episodes < 1 or arguments.start < 0:
        parser.error("expected at least one seed and one episode, and seeds from 0 on")
    if arguments.folder.exists() and not arguments.folder.is_dir():
        parser.error(f"expected a folder, got the file {arguments.folder}")
    area = arguments.area or yaml.safe_load(_ENV.read_text())["area"]
    console = Console(stderr=True)
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("worlds", total=arguments.seeds * arguments.episodes)
            added = pregenerate(
                arguments.folder,
                seeds=range(arguments.start, arguments.start + arguments.seeds),
                area=tuple(area),
                episodes=arguments.episodes,
                progress=lambda done: progress.update(task, completed=done),
            )
    except OSError as error:
        sys.exit(f"pregenerate_worlds: {error}")
    console.print(f"added {added:,} worlds to {arguments.folder}", soft_wrap=True)


if __name__ == "__main__":
    main()
