"""Draw new scenes from a prior over codes.

python scripts/sample_scenes.py checkpoint=outputs/train_code_prior/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("sample_scenes", globals(), goes_on=False)

# isort: split
import torch
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.clips import evaluation_clips
from ocrl.data.store import EpisodeStore
from ocrl.device import find_device
from ocrl.scene_prior import ScenePrior, scene_picture
from ocrl.visualize import to_png


@command
def main(config: DictConfig) -> None:
    """Load, draw, write."""
    settings = checkpoint.plain(config)
    if settings["checkpoint"] is None:
        raise ValueError("expected checkpoint=PATH on the command line, got none")
    scenes = ocrl.load(settings["checkpoint"])
    if not isinstance(scenes, ScenePrior):
        raise ValueError(
            f"expected the checkpoint of a prior (train_code_prior.py makes one) at "
            f"{settings['checkpoint']}, got that of a {type(scenes).__name__}"
        )
    device = find_device(settings["device"])
    scenes = scenes.to(device)
    new = scenes.prior.sample(
        settings["num_scenes"],
        temperature=settings["temperature"],
        generator=torch.Generator(device).manual_seed(settings["seed"]),
    )
    real = []
    if settings["data"]["path"] is not None:
        clips = evaluation_clips(
            EpisodeStore(settings["data"]["path"]),
            clip_length=1,
            num_clips=settings["num_scenes"],
            holdout=settings["data"]["holdout"],
            image_size=scenes.model.encoder.backbone.image_size,
            objects=scenes.model.is_conditioned,
        )
        real = [clip.to(device) for clip in clips]
    path = output_dir() / "scenes.png"
    path.write_bytes(to_png(scene_picture(scenes, new, real)))
    Console(stderr=True).print(f"{len(new)} new scenes: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
