"""Collect rollouts, train slots on them, measure how well they find objects: one command.

python scripts/pretrain_slots.py env=crafter
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, choice, note_command, output_dir

command = Command("pretrain", globals())

# isort: split
import os

from omegaconf import DictConfig
from pretraining import pretrain


@command
def main(config: DictConfig) -> None:
    """Do it in the run's directory."""
    pretrain(config, directory=output_dir(), env=choice("env"), encoder=choice("encoder"))
    if os.environ.get("RANK", "0") == "0":
        note_command(output_dir())


if __name__ == "__main__":
    main()
