"""Auto-encoder steps at 64 px: the textbook form, the decoders, the allocator, the Crafter recipe.

Float32, rounds interleaved, the best of each kept. Three tables:
- model: forward and backward of Slot Attention's auto-encoder for small images (four layers of 32
  channels at full resolution, 7 slots, a full-resolution broadcast decoder of 32 channels) and
  its twin in the textbook's form with the same weights, each in a process of its own in turns;
  memory is the peak of what torch holds during a step above what it held before it, and in
  brackets the peak of the process, libraries and fragments included.
- decoders: a step of the default encoder with each decoder, and the decoder's share of it.
- recipe: the trained frames per second of `env=crafter` as `scripts/pretrain_slots.py` composes
  it, on frames of noise, with the settings of memory and threads that the scripts make and with
  others, alone and beside a process that wants a core.

    python tests/benchmarks/bench_autoencoder.py [--quick] [--json PATH] [--batch-size 16]
        [--tables model decoders recipe]
"""

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL_IMAGES = [
    "encoder=slot_attention",
    "decoder=broadcast",
    "num_slots=7",
    "encoder.backbone.channels=[32,32,32,32]",
    "encoder.backbone.strides=[1,1,1,1]",
    "decoder.channels=[32,32,32]",
    "decoder.strides=[1,1,1]",
]
DECODERS = {
    "broadcast": [],
    "broadcast_coarse": [],
    "mixer": [],
    "content_mixer": ["decoder.patch_size=4"],
    "mlp": ["decoder.patch_size=4"],
    "palette": ["decoder.patch_size=4"],
}
"""Decoders and options: where the encoder's attention is read, its grid of 16 x 16 tokens."""
BUSY = "while True: pass"
"""A process that wants a core."""
Run = Callable[[], Any]


def make_model(overrides: list[str]) -> Any:
    """A model as the configurations compose it, and its optimiser."""
    import hydra
    import torch
    from hydra import compose, initialize_config_dir

    from ocrl import checkpoint

    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("pretrain", overrides=[*overrides, "name=bench"])
    settings = checkpoint.plain(config)
    torch.manual_seed(0)
    names = ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    model = checkpoint.build(
        {"_target_": "ocrl.model.SlotModel"} | {name: settings[name] for name in names}
    )
    optimizer = hydra.utils.instantiate(config.optimizer, _convert_="all")
    return model, optimizer(model.parameters()), settings


def make_clip(batch_size: int, num_frames: int, image_size: list[int]) -> Any:
    """Frames of noise."""
    import torch

    from ocrl.types import Clip

    generator = torch.Generator().manual_seed(0)
    video = torch.rand(batch_size, num_frames, 3, *image_size, generator=generator)
    return Clip(video, torch.zeros(batch_size, num_frames, dtype=torch.bool))


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def peak_of_allocations(step: Run) -> float:
    """The most memory, in megabytes, that torch holds during a step above what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    result = recorded.profiler.kineto_results if recorded.profiler else None
    assert result is not None
    changes = [event for event in result.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(changes, key=lambda e: e.start_ns()))
    return max(held) / 1e6


def step_of(kind: str, batch_size: int) -> Run:
    """One step of the model for small images, in our form or the textbook's."""
    model, optimizer, _ = make_model(SMALL_IMAGES)
    clip = make_clip(batch_size, 1, [64, 64])
    textbook = runpy.run_path(str(ROOT / "tests/ocrl/textbook_autoencoder.py"))["reconstruct"]
    images = clip.video.flatten(0, 1)

    def step() -> None:
        optimizer.zero_grad()
        if kind == "ours":
            loss = model(clip).total
        else:
            queries = model.encoder.initializer(images.new_zeros(batch_size, 1, 1))
            loss = (textbook(model, images, queries)[0] - images).square().mean()
        loss.backward()
        optimizer.step()

    return step


def serve(kind: str, batch_size: int) -> None:
    """Answer lines on the standard input: "step" with its seconds, "memory" with both peaks."""
    step = step_of(kind, batch_size)
    before = peak_megabytes()
    for line in sys.stdin:
        start = time.perf_counter()
        step()
        answer: Any = time.perf_counter() - start
        if line.strip() == "memory":
            process = peak_megabytes() - before
            answer = [peak_of_allocations(step), process]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def measure_model(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of both forms in turns, each in a process of its own."""
    servers = {
        kind: subprocess.Popen(
            [sys.executable, __file__, "--serve", kind, "--batch-size", str(options.batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in ("textbook", "ours")
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in servers}
    for _ in range(3 if options.quick else 7):
        for kind, server in servers.items():
            seconds[kind].append(ask(server, "step"))
    memory = {kind: ask(server, "memory") for kind, server in servers.items()}
    for server in servers.values():
        server.communicate()
    return [
        {
            "table": "model",
            "row": kind,
            "ms": 1e3 * min(steps[1:]),
            "frames": options.batch_size,
            "megabytes": memory[kind][0],
            "process_megabytes": memory[kind][1],
        }
        for kind, steps in seconds.items()
    ]


def ask(server: subprocess.Popen[str], question: str) -> Any:
    """The answer of a process that runs `serve`."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(question + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def measure_decoders(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of the default encoder with each decoder in turns."""
    runs: dict[str, Run] = {}
    clip = make_clip(8, 1, [64, 64])
    decoding: dict[str, float] = dict.fromkeys(DECODERS, float("inf"))
    for name, own in DECODERS.items():
        model, optimizer, _ = make_model(["encoder=slot_attention", f"decoder={name}", *own])

        def step(model: Any = model, optimizer: Any = optimizer, name: str = name) -> None:
            optimizer.zero_grad()
            encoded = model.encode(clip)
            start = time.perf_counter()
            slots = encoded.slots.detach().requires_grad_()
            recon = model.decoder(slots, clip.video, attn=encoded.attn.detach()).recon
            recon.square().mean().backward()
            decoding[name] = min(decoding[name], time.perf_counter() - start)
            encoded.slots.backward(slots.grad)
            optimizer.step()

        runs[name] = step
    best = dict.fromkeys(runs, float("inf"))
    for number in range(3 if options.quick else 8):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return [
        {
            "table": "decoders",
            "row": name,
            "ms": 1e3 * seconds,
            "frames": 8,
            "share": decoding[name] / seconds,
        }
        for name, seconds in best.items()
    ]


def train_recipe(num_steps: int) -> None:
    """Print the seconds of a step of the Crafter recipe: the median of half of the steps."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import launch

    launch.keep_freed_memory()
    launch.set_num_threads()
    model, optimizer, settings = make_model(["rollouts=crafter", "experiment=crafter"])
    data = settings["data"]
    clip = make_clip(data["batch_size"], data["clip_length"], settings["image_size"])
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        model(clip).total.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    late = sorted(seconds[num_steps // 2 :])
    frames = data["batch_size"] * data["clip_length"]
    sys.stdout.write(json.dumps([late[len(late) // 2], frames]) + "\n")


def measure_recipe(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The recipe with the scripts' settings and others, in turns, alone and beside busy work."""
    settings: dict[str, dict[str, str]] = {
        "as the scripts set it": {},
        "allocator left alone": {"OCRL_KEEP_ALLOCATOR": "1"},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "threads wait passively": {"OMP_WAIT_POLICY": "passive"},
        "threads spin 10000 times": {"GOMP_SPINCOUNT": "10000"},
    }
    kinds = [(name, busy) for busy in (0, 1) for name in settings]
    best = dict.fromkeys(kinds, float("inf"))
    frames = 0
    for _ in range(1 if options.quick else 3):
        for name, num_busy in kinds:
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
            inherited = dict(os.environ)
            inherited.pop("OMP_NUM_THREADS", None)
            try:
                done = subprocess.run(
                    [sys.executable, __file__, "--train", "12" if options.quick else "30"],
                    env=inherited | settings[name],
                    check=True,
                    capture_output=True,
                    text=True,
                )
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            seconds, frames = json.loads(done.stdout.splitlines()[-1])
            best[name, num_busy] = min(best[name, num_busy], seconds)
    return [
        {
            "table": "recipe",
            "row": f"{name}, beside work" if num_busy else name,
            "ms": 1e3 * seconds,
            "frames": frames,
        }
        for (name, num_busy), seconds in best.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows with their ratios to the first."""
    for row in rows:
        row["frames_per_second"] = 1e3 * row["frames"] / row["ms"]
        row["speed"] = rows[0]["ms"] / row["ms"]
        more = f"decoder {row['share']:4.0%}" if "share" in row else ""
        if "megabytes" in row:
            row["memory"] = row["megabytes"] / rows[0]["megabytes"]
            row["process_memory"] = row["process_megabytes"] / rows[0]["process_megabytes"]
            more = (
                f"{row['megabytes']:6.0f} MB {row['memory']:4.2f} "
                f"({row['process_megabytes']:.0f} MB {row['process_memory']:.2f})"
            )
        sys.stdout.write(
            f"{row['table']:9} {row['row']:38} {row['ms']:8.1f} ms "
            f"{row['frames_per_second']:7.1f} frames/s {row['speed']:5.2f}x {more}\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = {"model": measure_model, "decoders": measure_decoders, "recipe": measure_recipe}
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--batch-size", type=int, default=16, help="images of the first table")
    parser.add_argument("--tables", nargs="+", default=list(measures), choices=list(measures))
    parser.add_argument("--serve", choices=("textbook", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.batch_size)
        return
    if options.train:
        train_recipe(options.train)
        return
    rows = []
    for table in options.tables:
        measured = measures[table](options)
        show(measured)
        rows += measured
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
