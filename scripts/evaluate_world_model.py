"""Measure how far ahead a world model can foretell.

python scripts/evaluate_world_model.py checkpoint=outputs/train_world_model/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("evaluate_world_model", globals(), goes_on=False)

# isort: split

from measuring import subject_of
from omegaconf import DictConfig
from worlds import action_sizes, ending_clips

import ocrl
from ocrl.data.sources import is_footage, read_clips
from ocrl.data.store import EpisodeStore
from ocrl.horizon import check_horizons, evaluate_horizons
from ocrl.horizon_report import summary, write_results
from ocrl.log import TensorBoard
from ocrl.world_model import WorldModel


@command
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    subject = subject_of(config)
    settings, data, model = subject.settings, dict(subject.data), subject.model
    check_horizons(settings["horizons"])
    if not isinstance(model, WorldModel):
        raise ValueError(
            f"expected the checkpoint of a world model at {settings['checkpoint']}, as "
            f"train_world_model writes it, got that of a {type(model).__name__}"
        )
    if is_footage(data["path"]):
        raise ValueError(f"expected episodes at {data['path']}, got pictures or a video")
    store = EpisodeStore(data["path"])
    dynamics, found = model.dynamics, action_sizes(store)
    wanted = {"num_actions": dynamics.num_actions, "action_dim": dynamics.action_dim}
    if any(wanted.values()) and found != wanted:
        raise ValueError(f"expected episodes with {wanted}, as the model has, got {found}")
    judge = None
    if settings["judge"] is not None:
        judge = ocrl.load(settings["judge"]).encoder.backbone.to(subject.device)
    preset, horizons = data.pop("preset"), settings["horizons"]
    clips = read_clips(
        **data,
        presets=[preset],
        clip_length=model.num_context + horizons[-1],
        max_frames=0,
        image_size=model.model.encoder.backbone.image_size,
    )
    result = evaluate_horizons(
        model,
        subject.counted(clips),
        horizons=horizons,
        preset=preset,
        ends=ending_clips(model, store, **{k: data[k] for k in ("split", "holdout", "num_clips")}),
        judge=judge,
        device=subject.device,
        num_examples=settings["num_examples"],
    )
    judged_by = str(settings["judge"] or "the model's own backbone")
    written = write_results(
        output_dir(),
        result,
        title=f"World model: {subject.env}",
        details={**subject.details, "perceptual": judged_by},
        frames_per_second=settings["frames_per_second"],
    )
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=subject.step)
    subject.say(summary(result), written)


if __name__ == "__main__":
    main()
