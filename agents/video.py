"""An episode as a moving picture: what the agent saw, its slots, and what its policy attends to.

T frames, K slots, H W image, h w the size of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ocrl.agents.interface import Agent
from ocrl.colours import is_ground, slot_colours
from ocrl.lettering import captioned, marked, numbered, wrapped
from ocrl.matching import align_over_time
from ocrl.page import write_bytes
from ocrl.visualize import borders, enlarge, overlay, resize_masks, to_gif, write_mp4

Look = Callable[[], tuple[NDArray[np.uint8], NDArray[np.float32] | None]]
"""The frame (H,W,3) of the observation that came last, and its masks (K,h,w) where it has slots."""

_PANEL = 256
"""Pixels of a panel's height at least: small frames grow by a whole factor."""
_BARS_WIDTH = 132
_TEXT_LINE, _TEXT_SIZE, _TEXT_SPACE = 16, 12, 8
_GAP = 6
_DARK, _INK, _SOFT = (16, 18, 22), (232, 234, 240), (120, 126, 138)
_BAR = (205, 210, 220)
_OBJECTS = "objects"
"""Key of the true objects among several parts of an observation."""
_DIMMED = 0.22
"""Brightness of what the policy does not attend to."""
_HELD = 6
"""Times that the last frame is repeated."""


@dataclass(frozen=True)
class Recording:
    """An episode, decision by decision.

    Attributes:
        frames: (T,H,W,3) uint8 that the agent decided on.
        masks: (T,K,h,w) of its slots, sum to 1 over K; None where it has none.
        attention: (T,K) share of the policy's attention on each slot; None where it has none.
        actions: T words.
        rewards: (T,) that came of them.
        places: (T,K,2) x and y in [0,1] of the true objects that it decided on, in the order of
            `attention`, not a number where there is none; None where it was not given objects.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None
    actions: Sequence[str]
    rewards: NDArray[np.float64]
    places: NDArray[np.float32] | None = None


def record(
    agent: Agent,
    env: VectorEnv[Any, Any, Any],
    look: Look,
    *,
    seed: int,
    num_steps: int,
    is_deterministic: bool,
    action_names: Sequence[str] | None = None,
    object_columns: Sequence[str] = (),
) -> Recording:
    """Play one episode and keep what was seen and done.

    True objects, which come in another order in every frame, are put in that of the first one: each
    goes to the one before that is most like it.

    Args:
        agent: who plays.
        env: one environment, as a vector environment.
        look: gives what the agent is about to decide on.
        seed: of the world.
        num_steps: after so many the recording ends before the episode does.
        is_deterministic: take the likeliest action instead of drawing one.
        action_names: words for discrete actions; None shows their numbers.
        object_columns: names of the columns of the true objects that are observed, if they are.

    Raises:
        ValueError: if there is more than one environment, or no step is asked for.
    """
    if env.num_envs != 1 or num_steps < 1:
        raise ValueError(
            f"expected one environment and a step or more, got {env.num_envs} and {num_steps}"
        )
    observation, _ = env.reset(seed=seed)
    state, is_first = agent.initial_state(1), np.ones(1, dtype=bool)
    views, shares, tables, actions, rewards = [], [], [], [], []
    for _ in range(num_steps):
        views.append(look())
        shares.append(agent.attention(observation, state, is_first))
        if object_columns:
            tables.append(observation[_OBJECTS] if isinstance(observation, dict) else observation)
        action, state = agent.act(observation, state, is_first, is_deterministic=is_deterministic)
        observation, reward, terminated, truncated, _ = env.step(action)
        actions.append(_word(action[0], action_names))
        rewards.append(float(reward[0]))
        is_first = terminated | truncated
        if is_first[0]:
            break
    masks = [mask for _, mask in views if mask is not None]
    known = [share[0] for share in shares if share is not None]
    attention = np.stack(known).astype(np.float32) if len(known) == len(views) else None
    places = None
    if attention is not None and tables:
        table, attention = _in_one_order(np.concatenate(tables), attention)
        places = _places(table, object_columns)
    return Recording(
        frames=np.stack([frame for frame, _ in views]),
        masks=np.stack(masks) if len(masks) == len(views) else None,
        attention=attention,
        actions=actions,
        rewards=np.array(rewards),
        places=places,
    )


def _in_one_order(
    table: NDArray[np.float32], attention: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Objects (T,K,F) and shares (T,K) in the order of the first frame."""
    order = align_over_time(torch.from_numpy(table)[None])[0].numpy()
    rows = np.take_along_axis(table, order[..., None], axis=1)
    return rows, np.take_along_axis(attention, order, axis=1)


def _places(table: NDArray[np.float32], columns: Sequence[str]) -> NDArray[np.float32] | None:
    """Where objects (T,K,F) are in the one view that there is: (T,K,2)."""
    if not {"presence", "x", "y"} <= set(columns):
        return None
    presence, *place = (list(columns).index(name) for name in ("presence", "x", "y"))
    return np.where(table[..., presence, None] > 0, table[..., place], np.float32(np.nan))


def _word(action: Any, names: Sequence[str] | None) -> str:
    if np.ndim(action):
        return " ".join(f"{number:+.2f}" for number in np.ravel(action))
    return str(action) if names is None else names[int(action)].replace("_", " ")


def draw(recording: Recording) -> Tensor:
    """The recording as a video (T',3,H',W') uint8: panels side by side over a line of text.

    The last picture is held for a moment. The panels: the frame; with slots also their masks over
    the frame and, where the policy attends to them, the frame as bright as it is attended to; a
    bar for each slot's or object's share of the attention. The numbers of the bars stand on the
    slots, or on the objects in the frame.
    """
    frames = rearrange(torch.from_numpy(recording.frames), "t h w c -> t c h w")
    scale = max(1, round(_PANEL / frames.shape[-2]))
    large = enlarge(frames, scale)
    panels = {"frame": _with_marks(large, recording.places, scale)}
    share = None if recording.attention is None else torch.from_numpy(recording.attention)
    # Objects have colours of their own, so that their bars have none.
    colours = None if share is None else torch.tensor([_BAR] * share.shape[1], dtype=torch.uint8)
    if recording.masks is not None:
        size = (frames.shape[-2], frames.shape[-1])
        masks = resize_masks(torch.from_numpy(recording.masks), size)
        ids = masks.argmax(1)
        colours = slot_colours(ids, num_slots=masks.shape[1])
        panels["slots"] = overlay(frames, ids, colours=colours, scale=scale)
        if share is not None:
            named = zip(panels["slots"], ids, strict=True)
            labels = range(masks.shape[1])
            panels["slots"] = torch.stack(
                [numbered(picture, own, labels, scale=scale) for picture, own in named]
            )
            panels["attended"] = _attended(large, masks, share, _visible(colours), scale)
    columns = [captioned(panel, [name]) for name, panel in panels.items()]
    if share is not None and colours is not None:
        shown = _visible(colours).tolist()
        bars = [_bars(row, shown, height=columns[0].shape[-2]) for row in share]
        columns.append(torch.stack(bars))
    pictures = [_joined([column[t] for column in columns]) for t in range(len(frames))]
    lines = _lines(recording, pictures[0].shape[-1] - 2 * _TEXT_SPACE)
    texts = _texts(lines, pictures[0].shape[-1])
    video = torch.stack([torch.cat(pair, dim=-2) for pair in zip(pictures, texts, strict=True)])
    return torch.cat([video, video[-1:].expand(_HELD - 1, -1, -1, -1)])


def _with_marks(video: Tensor, places: NDArray[np.float32] | None, scale: int) -> Tensor:
    """Frames (T,3,H,W) with the numbers of objects where they are."""
    if places is None:
        return video
    pairs = zip(video, torch.from_numpy(places), strict=True)
    return torch.stack([marked(picture, own, scale=scale) for picture, own in pairs])


def _visible(colours: Tensor) -> Tensor:
    """Colours (K,3) with a light grey for the ground, which pictures of slots leave untinted."""
    soft = torch.tensor(_SOFT, dtype=torch.uint8)
    return torch.where(is_ground(colours)[:, None], soft, colours)


def _attended(large: Tensor, masks: Tensor, share: Tensor, colours: Tensor, scale: int) -> Tensor:
    """Frames (T,3,H,W) dimmed where the policy does not attend; the largest share is bright."""
    weight = share / share.amax(dim=1, keepdim=True).clamp(min=1e-6)
    bright = enlarge((masks * weight[:, :, None, None]).sum(1), scale).clamp(0, 1)
    bright = _DIMMED + (1 - _DIMMED) * bright
    picture = (large.float() * bright[:, None]).round().to(torch.uint8)
    ids = enlarge(masks.argmax(1), scale)
    first = share.argmax(1)
    is_edge = borders((ids == first[:, None, None]).long())
    return torch.where(is_edge[:, None], colours[first][:, :, None, None], picture)


def _bars(share: Tensor, colours: Sequence[Sequence[int]], *, height: int) -> Tensor:
    """A picture (3,height,132) with a bar for each share (K,), in the slots' colours (K,3)."""
    picture = Image.new("RGB", (_BARS_WIDTH, height), _DARK)
    pen = ImageDraw.Draw(picture)
    pen.text((_BARS_WIDTH / 2, 9), "attention", fill=_INK, anchor="mm", font_size=11)
    row = (height - 26) / len(share)
    width = _BARS_WIDTH - 66
    for slot, value in enumerate(share.tolist()):
        top, bottom = 22 + slot * row, 22 + (slot + 0.78) * row
        middle = (top + bottom) / 2
        pen.text((18, middle), str(slot), fill=_SOFT, anchor="rm", font_size=11)
        pen.rectangle((24, top, 24 + width, bottom), fill=(34, 38, 46))
        pen.rectangle((24, top, 24 + width * value, bottom), fill=tuple(colours[slot]))
        pen.text((_BARS_WIDTH - 4, middle), f"{value:.0%}", fill=_INK, anchor="rm", font_size=11)
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")


def _joined(panels: Sequence[Tensor]) -> Tensor:
    """Panels (3,H,W) of one height side by side."""
    gap = torch.tensor(_DARK, dtype=torch.uint8)[:, None, None]
    spaced = [p for panel in panels for p in (gap.expand(3, panel.shape[-2], _GAP), panel)]
    return torch.cat(spaced[1:], dim=-1)


def _lines(recording: Recording, width: float) -> list[list[str]]:
    """What is written under each frame, in lines of at most `width` pixels."""
    total = np.cumsum(recording.rewards)
    found = []
    for t, (action, reward) in enumerate(zip(recording.actions, recording.rewards, strict=True)):
        parts = [
            f"step {t}",
            f"action: {action}",
            f"reward {reward:+.2f}",
            f"return {total[t]:.2f}",
        ]
        found.append(wrapped(parts, width, size=_TEXT_SIZE, space="   "))
    return found


def _texts(lines: Sequence[Sequence[str]], width: int) -> list[Tensor]:
    """Pictures (3,H,width) of lines, all with room for the most lines."""
    height = _TEXT_SPACE + _TEXT_LINE * max(map(len, lines))
    pictures = []
    for own in lines:
        picture = Image.new("RGB", (width, height), _DARK)
        pen = ImageDraw.Draw(picture)
        for index, line in enumerate(own):
            place = (_TEXT_SPACE, _TEXT_SPACE / 2 + (index + 0.5) * _TEXT_LINE)
            pen.text(place, line, fill=_INK, anchor="lm", font_size=_TEXT_SIZE)
        pictures.append(rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w"))
    return pictures


def write_video(
    directory: Path | str, recording: Recording, *, frames_per_second: float, num_gif_frames: int
) -> list[Path]:
    """Write `video.mp4` and `video.gif`, the latter of the last frames only.

    Args:
        directory: where to.
        recording: what to draw.
        frames_per_second: of both.
        num_gif_frames: how many frames the GIF has at most: it is much larger than the mp4.

    Raises:
        OSError: if writing fails; a file is whole or not there.
    """
    video = draw(recording)
    mp4, gif = (Path(directory) / f"video.{kind}" for kind in ("mp4", "gif"))
    write_mp4(mp4, video, frames_per_second=frames_per_second)
    write_bytes(gif, to_gif(video[-num_gif_frames:], frames_per_second=frames_per_second))
    return [mp4, gif]
