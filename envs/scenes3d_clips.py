"""Clips of scenes straight from the ray caster: many episodes drawn together, no disk between.

B clips, T frames, V views, M objects, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange

from ocrl.envs.scenes3d import Scenes3DEnv
from ocrl.envs.scenes_table import ATTRIBUTES
from ocrl.types import Camera, Clip


def scene_clips(env: Scenes3DEnv, seeds: Sequence[int], *, num_frames: int) -> Clip:
    """The first frames of the episodes of some seeds, as `reset(seed=...)` and steps show them.

    Args:
        env: the episode that is being played there ends; call `reset` before the next step.
        seeds: B of them.
        num_frames: T.

    Returns:
        On the environment's device `video` (B,T,V,3,H,W) in uint8, the segmentation `entities`,
        `depth`, `camera`, and the properties `id`, `category` and `attributes` (B,T,M,...) of all
        objects, whether they are seen or not.

    Raises:
        ValueError: as `reset`.
    """
    moments = [moment for seed in seeds for moment in env.simulate(seed, num_frames=num_frames)]
    stage = env.stage(moments)
    picture = env.caster.draw(stage)
    device = env.caster.device
    sizes = {"b": len(seeds), "t": num_frames, "v": env.num_views}
    # Rows after the objects' are pieces of statues: background.
    counts = torch.tensor([len(moment.centers) for moment in moments], device=device)
    counts = counts.repeat_interleave(env.num_views)[:, None, None]
    ids = picture.ids * (picture.ids <= counts)
    properties = {
        name: torch.tensor(array, device=device).unflatten(0, (len(seeds), num_frames))
        for name, array in _tables(env, moments).items()
    }
    is_first = torch.zeros(len(seeds), num_frames, dtype=torch.bool, device=device)
    is_first[:, 0] = True
    return Clip(
        video=rearrange(picture.frames, "(b t v) h w c -> b t v c h w", **sizes),
        is_first=is_first,
        segmentation={"entities": rearrange(ids, "(b t v) h w -> b t v h w", **sizes)},
        properties=properties,
        camera=Camera(
            rearrange(stage.intrinsics, "(b t v) i j -> b t v i j", **sizes),
            rearrange(stage.extrinsics, "(b t v) i j -> b t v i j", **sizes),
        ),
        depth=rearrange(picture.depth, "(b t v) h w -> b t v h w", **sizes),
    )


def _tables(env: Scenes3DEnv, moments: Sequence) -> dict[str, np.ndarray]:
    """Arrays (B*T,M,...) of the objects' ids, categories and attributes; id 0 is no object."""
    size = (len(moments), env.max_objects)
    ids, categories = np.zeros(size, np.int32), np.zeros(size, np.int32)
    attributes = np.zeros((*size, len(ATTRIBUTES)), np.float32)
    for row, moment in enumerate(moments):
        count, setting = len(moment.centers), moment.setting
        ids[row, :count] = np.arange(count) + 1
        categories[row, :count] = setting.look[:, 0]
        columns = (setting.look, setting.radii, moment.centers, moment.angles)
        attributes[row, :count] = np.column_stack(columns)
    return {"id": ids, "category": categories, "attributes": attributes}
