"""Frames a second of the sprites world, with the same drawing written with whole arrays beside it.

python tests/benchmarks/bench_sprites.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

import ocrl.envs
from ocrl.envs.sprites_render import COLORS, SHAPES, draw, outline_table


def steps_per_second(env, num_steps, *, with_masks):
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=num_steps)
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if with_masks:
            env.segmentation()
            env.objects()
        if terminated or truncated:
            env.reset()
    return num_steps / (time.perf_counter() - start)


def textbook_draw(frame, background, positions, radii, outlines, colors):
    """Every shape's coverage of every pixel, blended over the whole frame."""
    size = len(frame)
    y, x = np.mgrid[:size, :size] + 0.5
    canvas = np.broadcast_to(background, frame.shape).astype(float)
    for index in range(len(radii) - 1, -1, -1):
        across, down = x - positions[index, 0] * size, y - positions[index, 1] * size
        radius, distance = radii[index] * size, np.hypot(across, down)
        count, start, normal_x, normal_y = outlines[index]
        if count == 0:
            edge = distance - radius
        else:
            sector = 2 * math.pi / count
            angle = np.arctan2(down, across) - start
            angle -= sector * np.floor(angle / sector + 0.5)
            edge = (distance * np.cos(angle) - radius) * normal_x
            edge += distance * np.abs(np.sin(angle)) * normal_y
        coverage = np.clip(0.5 - edge, 0.0, 1.0)[..., None]
        canvas += (colors[index] - canvas) * coverage
    frame[:] = canvas + 0.5


def frames_per_second(draw_once, num_frames):
    draw_once()
    start = time.perf_counter()
    for _ in range(num_frames):
        draw_once()
    return num_frames / (time.perf_counter() - start)


def compare_drawing(size, num_shapes, num_frames, repeats):
    rng = np.random.default_rng(0)
    arguments = (
        np.array([24, 24, 28], dtype=np.uint8),
        rng.uniform(0.15, 0.85, (num_shapes, 2)),
        rng.uniform(0.09, 0.14, num_shapes),
        outline_table()[rng.integers(len(SHAPES), size=num_shapes)],
        np.array(list(COLORS.values()), dtype=np.uint8)[:num_shapes],
    )
    ours = np.empty((size, size, 3), dtype=np.uint8)
    theirs, ids = ours.copy(), np.empty((size, size), dtype=np.uint16)
    fast, slow = 0.0, 0.0
    for _ in range(repeats):
        slow = max(
            slow, frames_per_second(lambda: textbook_draw(theirs, *arguments), num_frames // 20)
        )
        fast = max(fast, frames_per_second(lambda: draw(ours, ids, *arguments), num_frames))
    # Rounding after each shape, not once: a pixel may differ by one or two.
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    return fast, slow


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_steps, repeats = (1000, 2) if options.quick else (5000, 5)
    results = {}
    print(
        f"{'environment steps a second (episodes, resets included)':56}{'plain':>10}{'masks':>10}"
    )
    for name in [name for name in ocrl.envs.names() if name.split("-")[0] == "sprites"]:
        env = ocrl.envs.make(name, action_kind="discrete")
        plain = masks = 0.0
        for _ in range(repeats):
            plain = max(plain, steps_per_second(env, num_steps, with_masks=False))
            masks = max(masks, steps_per_second(env, num_steps, with_masks=True))
        results[name] = {"plain": plain, "masks": masks}
        print(f"{name + f', {env.size} px':56}{plain:10.0f}{masks:10.0f}")
    print(f"{'drawing, 6 shapes, frames a second':46}{'arrays':>10}{'ours':>10}{'ratio':>10}")
    for size in (64, 128):
        fast, slow = compare_drawing(size, 6, num_steps, repeats)
        results[f"draw_{size}"] = {"arrays": slow, "ours": fast, "ratio": fast / slow}
        print(f"{f'{size} px':46}{slow:10.0f}{fast:10.0f}{fast / slow:10.1f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
