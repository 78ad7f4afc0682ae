"""Pictures a second of the scenes of solids, with masks, and of the same ray casting with arrays.

python tests/benchmarks/bench_scenes.py [--quick] [--json PATH]

Times are those of one thread's CPU, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import ocrl.envs
from ocrl.envs.scenes_geometry import CYLINDER, SPHERE, cast
from ocrl.envs.scenes_render import LIGHTS, draw, light_pattern


def rate(function, num_calls, repeats):
    """Calls a second, the best of several rounds."""
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        for _ in range(num_calls):
            function()
        best = min(best, time.thread_time() - start)
    return num_calls / best


def textbook_cast(ids, depth, bodies, intrinsics, extrinsics):
    """Every ray against every body, with whole arrays."""
    size = len(ids)
    row, column = np.mgrid[:size, :size] + 0.5
    pixels = np.stack([column, row, np.ones_like(row)], axis=-1)
    rays = pixels @ (extrinsics[:3, :3] @ np.linalg.inv(intrinsics)).T
    origin = extrinsics[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth[:] = np.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], np.inf)
        ids[:] = 0
        for index, body in enumerate(bodies):
            turn = np.array([[body[4], body[5], 0.0], [-body[5], body[4], 0.0], [0.0, 0.0, 1.0]])
            start, ray, half = turn @ (origin - body[1:4]), rays @ turn.T, body[6]
            if body[0] == SPHERE:
                first, last = span(start, ray, half)
            else:
                low, high = (-half - start) / ray, (half - start) / ray
                near, far = np.minimum(low, high), np.maximum(low, high)
                if body[0] == CYLINDER:
                    first, last = span(start[:2], ray[..., :2], half)
                    first = np.maximum(first, near[..., 2])
                    last = np.minimum(last, far[..., 2])
                else:
                    first, last = near.max(-1), far.min(-1)
            is_met = (first <= last) & (first > 0) & (first < depth)
            ids[is_met], depth[is_met] = index + 1, first[is_met]


def span(start, ray, radius):
    """Where rays enter and leave a ball or a disc around the origin."""
    square, along = (ray**2).sum(-1), ray @ start
    root = np.sqrt(along**2 - square * (start @ start - radius**2))
    return (-along - root) / square, (-along + root) / square


def measure(size, num_objects, num_calls, repeats):
    env = ocrl.envs.make("scenes", size=size, num_objects=num_objects, max_steps=10**9)
    env.reset(seed=0)
    bodies, intrinsics, extrinsics = env._bodies(), env.intrinsics()[0], env.extrinsics()[0]
    frame = np.empty((size, size, 3), np.uint8)
    ids, depth = np.empty((size, size), np.uint16), np.empty((size, size))
    others, far = ids.copy(), depth.copy()

    def picture(supersampling):
        pattern = light_pattern(supersampling)
        arguments = (bodies, LIGHTS, intrinsics, extrinsics, pattern, supersampling)
        return lambda: draw(frame, ids, depth, *arguments)

    def step():
        env.step(0)
        env.segmentation()
        env.objects()

    camera = (bodies, intrinsics, extrinsics)
    results = {
        "steps": rate(step, num_calls, repeats),
        "smooth": rate(picture(2), num_calls, repeats),
        "rough": rate(picture(1), num_calls, repeats),
        "masks": rate(lambda: cast(ids, depth, *camera), num_calls, repeats),
        "arrays": rate(lambda: textbook_cast(others, far, *camera), num_calls // 2, repeats),
    }
    # The backdrop is the only thing that the textbook leaves out.
    assert np.array_equal(ids, others)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_calls, repeats = (10, 3) if options.quick else (50, 10)
    columns = {
        "steps": "steps",
        "smooth": "2 x 2",
        "rough": "1 x 1",
        "masks": "masks",
        "arrays": "masks, arrays",
    }
    print("a second: steps with masks and table; pictures with masks by samples; masks alone")
    print(f"{'':24}" + "".join(f"{title:>15}" for title in columns.values()))
    results = {}
    for size in (64, 128, 256):
        for num_objects in (3, 6):
            found = measure(size, num_objects, num_calls, repeats)
            results[f"{size}_{num_objects}"] = found
            row = "".join(f"{found[column]:15.0f}" for column in columns)
            print(f"{f'{size} px, {num_objects} objects':24}{row}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
