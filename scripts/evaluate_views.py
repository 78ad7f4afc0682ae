"""Measure posed slots: objects across cameras and time, and views that were not seen.

python scripts/evaluate_views.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("evaluate_views", globals(), goes_on=False)

# isort: split

from measuring import subject_of
from omegaconf import DictConfig

from ocrl.data.clips import evaluation_clips
from ocrl.data.sources import stored_presets
from ocrl.data.store import EpisodeStore
from ocrl.log import TensorBoard
from ocrl.model import SlotModel
from ocrl.novel_views import evaluate_views
from ocrl.novel_views_report import summary, write_views
from ocrl.posed import is_posed


@command
def main(config: DictConfig) -> None:
    """Load, measure, write."""
    subject = subject_of(config)
    settings, data, model = subject.settings, dict(subject.data), subject.model
    if not isinstance(model, SlotModel) or not is_posed(model):
        raise ValueError(
            f"expected a model of posed views at {settings['checkpoint']}, with a decoder of rays, "
            "got another: scripts/evaluate_discovery.py measures models of frames"
        )
    store, preset = EpisodeStore(data.pop("path")), data.pop("preset")
    clips = evaluation_clips(
        store,
        **data,
        image_size=subject.image_size,
        segmentation=stored_presets([preset], store.arrays, path=store.path),
        depth="depth" in store.arrays,
    )
    result = evaluate_views(
        model,
        subject.counted(clips),
        num_seen=settings["num_seen"],
        preset=preset,
        is_aligned=settings["is_aligned"],
        baselines=settings["baselines"],
        device=subject.device,
        num_examples=settings["num_examples"],
        num_orbit=settings["num_orbit"],
    )
    details, is_aligned = subject.details, settings["is_aligned"]
    if model.sees_single_frames if is_aligned is None else is_aligned:
        details["aligned"] = "slots of each frame in the order of those before they are most like"
    written = write_views(
        output_dir(),
        result,
        title=f"Posed slots: {subject.env}",
        details=details,
        frames_per_second=settings["frames_per_second"],
    )
    with TensorBoard(output_dir() / "tensorboard") as board:
        board.scalars(result.scalars(), step=subject.step)
    subject.say(summary(result), written)


if __name__ == "__main__":
    main()
