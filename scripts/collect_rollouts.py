"""Have a policy play an environment and keep the episodes, with exact object masks.

python scripts/collect_rollouts.py env=crafter
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, choice, output_dir

command = Command("collect", globals())

# isort: split
from omegaconf import DictConfig
from rich.console import Console

from ocrl.checkpoint import plain
from ocrl.envs.collect import collect


@command
def main(config: DictConfig) -> None:
    """Collect what is missing, and say what there is."""
    settings = plain(config)
    arguments = {key: value for key, value in settings["env"].items() if key != "_target_"}
    path = settings["data"]["path"] or output_dir() / "episodes"
    store = collect(
        choice("env"),
        arguments,
        path=path,
        segmentation=settings["data"]["presets"],
        **settings["collect"],
    )
    num_steps = store.num_frames - len(store)
    Console(stderr=True).print(
        f"{len(store):,} episodes with {num_steps:,} steps in {store.path}", soft_wrap=True
    )


if __name__ == "__main__":
    main()
