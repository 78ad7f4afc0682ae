"""Play a trained agent, in its worlds and in those that training held out.

python scripts/evaluate_agent.py checkpoint=outputs/train_agent/NAME episodes=100
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command

command = Command("evaluate_agent", globals(), writes_here=False, goes_on=False)

# isort: split
import sys
from contextlib import nullcontext
from pathlib import Path

from agent_evaluation import check_comparable, evaluate_run
from kept_results import FRACTION, read_published
from measuring import check_rate
from omegaconf import DictConfig
from processes import only_writer
from rich.console import Console

from ocrl import checkpoint
from ocrl.agents.comparison import compare
from ocrl.agents.comparison_table import evaluation_rows, markdown
from ocrl.agents.results import read_run
from ocrl.tables import markdown_table


@command
def main(config: DictConfig) -> None:
    """Evaluate each run, print its table, and that over seeds where there are several."""
    settings = checkpoint.plain(config)
    runs = settings["checkpoint"]
    if runs is None:
        raise ValueError("expected checkpoint=RUN on the command line, got none")
    for name in ("episodes", "num_envs", "video_steps"):
        if settings[name] < 1:
            raise ValueError(f"expected {name} of at least 1, got {settings[name]}")
    check_rate(settings["frames_per_second"])
    if not settings["seeds"]:
        raise ValueError("expected seeds=[NUMBER,...], got none")
    runs = [runs] if isinstance(runs, str) else list(runs)
    if len(runs) > 1:
        check_comparable(runs)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for run in runs:
        console.print(f"{run}: {settings['episodes']} episodes for each of {settings['seeds']}")
        with only_writer(Path(run)) if Path(run).is_dir() else nullcontext():
            record = evaluate_run(run, say=console.print, settings=settings)
        sys.stdout.write(f"\n{run}\n\n{markdown_table(evaluation_rows(record))}\n")
        if record["ceiling"] is not None:
            sys.stdout.write(f"\nceiling: {record['ceiling']['source']}\n")
    if len(runs) > 1:
        result = compare([read_run(run) for run in runs], fraction=FRACTION)
        sys.stdout.write(f"\nover seeds\n\n{markdown(result, read_published())}")


if __name__ == "__main__":
    main()
