"""Views a second of the scenes of three dimensions, with masks, depth and tables.

python tests/benchmarks/bench_scenes3d.py [--quick] [--json PATH] [--processes 2] [--device cuda]

Episodes are played step by step as rollouts are; with a device other than the processor many are
drawn together. Times are those of one thread's CPU on a processor, so that what else runs there
counts little, and of the clock on other devices and for several processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import torch

import ocrl.envs
from ocrl.envs.scenes3d_clips import scene_clips

NAMES = ("scenes3d", "scenes3d_ring", "scenes3d_ego")


def play(env, num_episodes):
    """Whole episodes with everything that rollouts keep; how many views there were."""
    num_views = 0
    for seed in range(num_episodes):
        env.reset(seed=seed)
        is_over = False
        while True:
            env.segmentation("entities"), env.segmentation("scene"), env.objects(), env.extras()
            num_views += env.num_views
            if is_over:
                break
            is_over = env.step(0)[3]
    return num_views


def rate(function, clock, repeats):
    """What a function counts, a second: the best of several rounds."""
    function()
    best = 0.0
    for _ in range(repeats):
        start = clock()
        best = max(best, function() / (clock() - start))
    return best


def drawn(env, moments):
    env.caster.draw(env.stage(moments))
    return len(moments) * env.num_views


def cast(env, moments):
    env.caster.cast(env.stage(moments))
    return len(moments) * env.num_views


def simulated(env, num_episodes, num_frames):
    for seed in range(num_episodes):
        env.simulate(seed, num_frames=num_frames)
    return num_episodes * num_frames * env.num_views


def measure(name, size, num_episodes, repeats):
    env = ocrl.envs.make(name, size=size)
    moments = [m for seed in range(2) for m in env.simulate(seed, num_frames=12)]
    clock = time.thread_time
    return {
        "rollouts": rate(lambda: play(env, num_episodes), clock, repeats),
        "pictures": rate(lambda: drawn(env, moments), clock, repeats),
        "masks": rate(lambda: cast(env, moments), clock, repeats),
        "physics": rate(lambda: simulated(env, 2, 12), clock, repeats),
    }


def worker(name, size, num_episodes, barrier):
    torch.set_num_threads(1)
    env = ocrl.envs.make(name, size=size)
    play(env, 1)
    barrier.wait()
    play(env, num_episodes)


def together(name, size, num_episodes, num_processes):
    """Views a second of several processes by the clock."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_processes + 1)
    arguments = (name, size, num_episodes, barrier)
    workers = [context.Process(target=worker, args=arguments) for _ in range(num_processes)]
    for process in workers:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in workers:
        process.join()
    took = time.perf_counter() - start
    env = ocrl.envs.make(name, size=size)
    return num_processes * num_episodes * (env._max_steps + 1) * env.num_views / took


def on_device(name, size, device, num_seeds):
    """Clips drawn together: with the physics, and pictures alone."""
    env = ocrl.envs.make(name, size=size, device=device)

    def clips():
        clip = scene_clips(env, range(num_seeds), num_frames=16)
        torch.cuda.synchronize()
        return clip.video[..., 0, 0, 0].numel()

    moments = [m for seed in range(num_seeds) for m in env.simulate(seed, num_frames=16)]
    stage = env.stage(moments)

    def pictures():
        env.caster.draw(stage)
        torch.cuda.synchronize()
        return len(moments) * env.num_views

    found = {"clips": clips, "pictures": pictures}
    return {column: rate(function, time.perf_counter, 3) for column, function in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in NAMES[:1] if options.quick else NAMES:
        if options.device != "cpu":
            results[name] = on_device(name, 64, options.device, 16 if options.quick else 64)
        elif options.processes > 1:
            rates = together(name, 64, 2 if options.quick else 6, options.processes)
            results[name] = {f"{options.processes} processes": rates}
        else:
            results[name] = measure(name, 64, 1 if options.quick else 3, 2 if options.quick else 4)
        row = ", ".join(f"{column} {value:.0f}" for column, value in results[name].items())
        print(f"{name}, 64 px, views a second: {row}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
