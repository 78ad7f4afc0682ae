"""Decoders of rays: a training step in our form and in OSRT's, and radiance fields beside them.

Forward and backward of the decoder alone, float32, rounds interleaved, the best of each kept, with
equal rays, slots and widths; memory is the peak of what torch holds during a step above what it
held before it. `textbook` has the same weights as the row above it and multiplies in the order of
the paper: every map of the attention, and the first layer of the drawing, on every ray.

    python tests/benchmarks/bench_views.py [--quick] [--json PATH] [--num-rays 1024]
        [--tables small osrt rays] [--device cpu]
"""

import argparse
import json
import runpy
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from ocrl.checkpoint import build

ROOT = Path(__file__).parents[2]
TEXTBOOK = runpy.run_path(str(ROOT / "tests/ocrl/decoders/textbook_osrt.py"))
NUM_FRAMES, NUM_SLOTS = 4, 6
NERF = ["decoder.num_intervals=32", "decoder.num_finer=0"]
TABLES: dict[str, tuple[int, dict[str, list[str]]]] = {
    "small": (
        64,
        {
            "ray_mixer": [],
            "light_field": [],
            "nerf": [*NERF, "decoder.chunk_size=256"],
        },
    ),
    "osrt": (1536, {"ray_mixer_osrt": [], "light_field_osrt": []}),
}
"""Name to the size of slots, and decoders with their options."""
Run = Callable[[], Any]


def make_decoder(name: str, slot_dim: int, options: list[str]) -> Any:
    """A decoder as the configurations compose it."""
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose(overrides=[f"+decoder={name}", f"+slot_dim={slot_dim}", *options])
    torch.manual_seed(0)
    return build(config)["decoder"].train()


def make_inputs(slot_dim: int, num_rays: int, device: str) -> tuple[Tensor, Tensor]:
    """Slots (M,1,K,D) and rays (M,1,1,P,6) from above."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(NUM_FRAMES, 1, NUM_SLOTS, slot_dim, generator=generator)
    directions = torch.randn(NUM_FRAMES, 1, 1, num_rays, 3, generator=generator)
    directions = torch.nn.functional.normalize(directions - 5.0, dim=-1)
    rays = torch.cat([-11.0 * directions, directions], dim=-1)
    return slots.to(device).requires_grad_(), rays.to(device)


def forget(decoder: Any, slots: Tensor) -> None:
    """Let gradients go, so that every step begins with as much memory."""
    decoder.zero_grad(set_to_none=True)
    slots.grad = None


def ours(decoder: Any, slots: Tensor, rays: Tensor) -> Run:
    """A step in our form."""

    def step() -> None:
        decoder(slots, rays).recon.square().mean().backward()
        forget(decoder, slots)

    return step


def textbook(decoder: Any, slots: Tensor, rays: Tensor) -> Run:
    """A step in the order of the paper."""
    paint = TEXTBOOK["mix" if decoder.__class__.__name__ == "RayMixerDecoder" else "broadcast"]

    def step() -> None:
        paint(decoder, slots[:, 0], rays[:, 0, 0])[0].square().mean().backward()
        forget(decoder, slots)

    return step


def peak_megabytes(step: Run, device: str) -> float:
    """The most memory that torch holds during a step above what it held before."""
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    result = recorded.profiler.kineto_results if recorded.profiler else None
    assert result is not None
    changes = [event for event in result.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(changes, key=lambda e: e.start_ns()))
    return max(held) / 1e6


def measure(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, float]:
    """The best seconds of each, in turns."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(3 if options.quick else 8):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure_decoders(table: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our decoders at one size, each beside OSRT's form where it has one."""
    slot_dim, decoders = TABLES[table]
    slots, rays = make_inputs(slot_dim, options.num_rays, options.device)
    runs: dict[str, Run] = {}
    for name, own in decoders.items():
        decoder = make_decoder(name, slot_dim, own).to(options.device)
        runs[name] = ours(decoder, slots, rays)
        if not name.startswith("nerf"):
            runs[f"{name}, textbook"] = textbook(decoder, slots, rays)
    return rows_of(table, runs, options, num_rays=options.num_rays)


def measure_rays(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Radiance fields with more and more rays, in chunks and at once: memory and time."""
    rows = []
    few = ["decoder.num_intervals=16", "decoder.num_finer=0"]
    for num_rays in (64, 256, 1024):
        slots, rays = make_inputs(64, num_rays, options.device)
        runs = {}
        sizes = {"in chunks of 256": 256, "at once": 1 << 30}
        if num_rays > 256 and options.device == "cpu":
            sizes.pop("at once")  # Several gigabytes.
        for kind, size in sizes.items():
            decoder = make_decoder("nerf", 64, [*few, f"decoder.chunk_size={size}"])
            runs[f"nerf, {num_rays} rays a frame, {kind}"] = ours(
                decoder.to(options.device), slots, rays
            )
        rows += rows_of("rays", runs, options, num_rays=num_rays)
    return rows


def rows_of(
    table: str, runs: dict[str, Run], options: argparse.Namespace, *, num_rays: int
) -> list[dict[str, Any]]:
    """What was measured of each run."""
    seconds = measure(runs, options)
    return [
        {
            "table": table,
            "row": name,
            "ms": 1e3 * seconds[name],
            "rays_per_second": NUM_FRAMES * num_rays / seconds[name],
            "megabytes": peak_megabytes(run, options.device),
        }
        for name, run in runs.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows; a textbook's with the ratios of ours to it."""
    before: dict[str, Any] = {}
    for row in rows:
        more = ""
        if row["row"].endswith("textbook"):
            row["speed"] = row["ms"] / before["ms"]
            row["memory"] = before["megabytes"] / row["megabytes"]
            more = f"ours {row['speed']:.2f}x, memory {row['memory']:.2f}"
        sys.stdout.write(
            f"{row['table']:6} {row['row']:44} {row['ms']:8.1f} ms "
            f"{row['rays_per_second']:9.0f} rays/s {row['megabytes']:8.1f} MB {more}\n"
        )
        sys.stdout.flush()
        before = row


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--num-rays", type=int, default=1024, help="of each of the 4 frames")
    tables = [*TABLES, "rays"]
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    for table in options.tables:
        own = measure_rays(options) if table == "rays" else measure_decoders(table, options)
        show(own)
        rows += own
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
