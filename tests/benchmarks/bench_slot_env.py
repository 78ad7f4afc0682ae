"""What slots as observations cost: the environments, the encoder's calls, and all around them.

python tests/benchmarks/bench_slot_env.py [--quick] [--env NAME] [--size 64] [--json PATH]

CPU milliseconds of this process for a step of E environments, which random actions play. The parts
are taken from one run: `env` in the environments' step, `encoder` in the calls of the encoder (a
second one where episodes start), `around` in all else: frames to tensors, states of episodes that
ended, slots to arrays. `share` is that of `around` in `encoder`, in percent. `alone` is the encoder
on a batch of frames that is a tensor already, with no episodes and no wrapper. The fastest of some
runs counts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

import ocrl.envs
from ocrl.checkpoint import build
from ocrl.envs.slots import SlotVectorEnv

CONFIGS = str(Path(__file__).parents[2] / "configs")
ENCODERS = {
    "located": ["+encoder=located", "+num_slots=6"],
    "savi": ["+encoder=savi", "+num_slots=6"],
    "smooth_sa": ["+encoder=smooth_sa", "+num_slots=6"],
    "slot_attention": ["+encoder=slot_attention", "+num_slots=6"],
}


class Stopwatch:
    """Counts CPU seconds in a function, as a stand-in for it."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **named):
        start = time.process_time()
        result = self.function(*arguments, **named)
        self.seconds += time.process_time() - start
        return result


def make_encoder(name, size):
    options = [*ENCODERS[name], "+slot_dim=64", f"+image_size=[{size},{size}]"]
    with initialize_config_dir(CONFIGS, version_base=None):
        config = compose(overrides=[*options, "backbone@encoder.backbone=cnn_small"])
    torch.manual_seed(0)
    return build(config)["encoder"].eval()


def seconds_alone(encoder, frames, num_steps):
    """The encoder's call on frames that are a tensor already."""
    video = torch.tensor(frames).permute(0, 3, 1, 2).float().contiguous() / 255
    with torch.no_grad():
        is_first = torch.ones(len(video), dtype=torch.bool)
        _, state = encoder.step(video, encoder.initial_state(len(video)), is_first)
        start = time.process_time()
        for _ in range(num_steps):
            _, state = encoder.step(video, state, ~is_first)
        return (time.process_time() - start) / num_steps


def play(envs, encoder, num_steps, *, has_geometry):
    """CPU seconds a step in the environments, in the encoder and around, and episodes a step."""
    slots = SlotVectorEnv(envs, encoder, has_geometry=has_geometry)
    slots.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=(num_steps, envs.num_envs))
    step = encoder.step
    in_envs, in_encoder = Stopwatch(envs.step), Stopwatch(step)
    envs.step, encoder.step = in_envs, in_encoder
    num_ended, start = 0, time.process_time()
    for action in actions:
        _, _, terminated, truncated, _ = slots.step(action)
        num_ended += int((terminated | truncated).sum())
    total = time.process_time() - start
    del envs.step
    encoder.step = step
    around = total - in_envs.seconds - in_encoder.seconds
    return np.array([in_envs.seconds, in_encoder.seconds, around, num_ended]) / num_steps


def measure(name, encoder_name, *, num_envs, size, num_steps, repeats, has_geometry):
    encoder = make_encoder(encoder_name, size)
    envs = ocrl.envs.make_vec(name, num_envs, size=size)
    frames, _ = envs.reset(seed=0)
    runs, alone = [], []
    for _ in range(repeats):
        alone.append(seconds_alone(encoder, frames, num_steps // 4))
        runs.append(play(envs, encoder, num_steps, has_geometry=has_geometry))
    env, inside, around, ended = min(runs, key=lambda run: run[:3].sum())
    return {
        "env_ms": 1e3 * env,
        "alone_ms": 1e3 * min(alone),
        "encoder_ms": 1e3 * inside,
        "around_ms": 1e3 * around,
        "share_percent": 100 * around / inside,
        "episodes_per_step": ended,
        "steps_per_cpu_second": num_envs / (env + inside + around),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--env", default="sprites-object_goal")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    num_steps, repeats = (100, 3) if options.quick else (400, 5)
    columns = ("env", "alone", "encoder", "around", "share", "ends/step", "steps/s")
    heading = f"{options.env}, {options.size} px, CPU ms a step"
    print(f"{heading:48}" + "".join(f"{column:>10}" for column in columns))
    results = {}
    for encoder_name in ENCODERS:
        for num_envs in (8, 16):
            for has_geometry in (False, True):
                label = f"{encoder_name}, E = {num_envs}{', geometry' * has_geometry}"
                row = measure(
                    options.env,
                    encoder_name,
                    num_envs=num_envs,
                    size=options.size,
                    num_steps=num_steps,
                    repeats=repeats,
                    has_geometry=has_geometry,
                )
                results[label] = row
                print(f"{label:48}" + "".join(f"{value:10.2f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
