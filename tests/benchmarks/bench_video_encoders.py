"""Video encoders over clips of growing length: time and memory, beside the textbook PSB.

Three tables, float32 unless --dtype says otherwise, one process, rounds of the encoders
interleaved, the best of each kept:
- binding: forward and backward from given tokens to slots, three blocks or two iterations.
  `psb textbook` is the reference of the tests, with whole maps over pairs of frames; the speed
  and the share of memory of the others are against it. `psb` is the same maths; `recency` adds the
  weights after the competition; `current` reads the present frame only. `savi textbook` makes keys
  and values, of all frames first as STEVE does, or frame by frame as SOLD does; its maths is
  `savi`'s.
- streaming: a forward pass over the clip without gradient, in parallel and frame by frame; memory
  is the state carried from frame to frame.
- training: a whole step of the configured encoder with its backbone, a mixer decoder,
  reconstruction and AdamW, on 64 px frames.

On the CPU memory is what autograd keeps for the backward pass, every storage counted once,
parameters left out; on a CUDA device it is the peak above what was allocated before.

    python tests/benchmarks/bench_video_encoders.py [--quick] [--json PATH] [--device cuda]
        [--dtype bfloat16] [--compile] [--tables binding streaming training]
"""

import argparse
import contextlib
import json
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ocrl.checkpoint import build
from ocrl.interfaces import Backbone, SlotEncoder
from ocrl.model import SlotModel
from ocrl.objectives.reconstruction import Reconstruction
from ocrl.types import Camera, Clip

ROOT = Path(__file__).parents[2]
TEXTBOOK = runpy.run_path(str(ROOT / "tests/ocrl/encoders/textbook_psb.py"))["encode"]
TEXTBOOK_SAVI = runpy.run_path(str(ROOT / "tests/ocrl/encoders/textbook_savi.py"))["encode"]
SIZES = ((2, 256, 64, 7), (1, 1024, 192, 11), (1, 4096, 64, 7))
"""B, N, F = D, K."""
LENGTHS = (6, 12, 24, 48)
MAX_TEXTBOOK_ENTRIES = 2.5e8
"""Entries of one map over pairs of frames beyond which the textbook form is left out."""
ENCODERS = {
    "psb": ["encoder=psb", "encoder.bottom_up_bias=logits"],
    "psb recency": ["encoder=psb"],
    "psb current": ["encoder=psb", "encoder.bottom_up_window=1", "encoder.bottom_up_bias=none"],
    "slot_ssm": ["encoder=slot_ssm"],
    "savi": ["encoder=savi", "encoder.num_iterations_first=2", "encoder.num_iterations_rest=2"],
    "smooth_sa": ["encoder=smooth_sa"],
}
Run = Callable[[], Any]


class Tokens(Backbone):
    """Gives the tokens (1,B*T,N,F) that it was handed as a video, and learns nothing."""

    def __init__(self, num_tokens: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim, self.grid, self.image_size = out_dim, (1, num_tokens), (1, num_tokens)

    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        return frames


def make_encoder(name: str, num_slots: int, slot_dim: int, num_frames: int) -> SlotEncoder:
    """An encoder of the configurations whose windows cover the clip."""
    overrides = [f"+{ENCODERS[name][0]}", *ENCODERS[name][1:]]
    sizes = ["+image_size=[64,64]", f"+num_slots={num_slots}", f"+slot_dim={slot_dim}"]
    if name.startswith("psb"):
        overrides.insert(1, f"encoder.max_distance={num_frames}")
        overrides.insert(1, f"encoder.bottom_up_window={num_frames}")
        overrides += [
            f"encoder.time_mixer.{key}={num_frames}" for key in ("window", "max_distance")
        ]
    overrides.append(f"encoder.backbone.out_dim={slot_dim}")
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose(overrides=[*sizes, *overrides])
    torch.manual_seed(0)
    return build(config)["encoder"]


def kept_bytes(run: Run, module: nn.Module, device: str) -> int:
    """Memory of a forward pass for the backward pass; see the top of the file."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run().backward()
        return torch.cuda.max_memory_allocated() - before
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        loss = run()
    del loss
    return sum(kept.values())


def best_times(runs: dict[str, Run], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of the best round of each, after one round that is not counted."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if number:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def autocast(options: argparse.Namespace) -> Any:
    """The precision asked for."""
    if options.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(options.device, dtype=getattr(torch, options.dtype))


def state_bytes(state: Any) -> int:
    """Memory of the tensors in a state."""
    leaves = tree_leaves(state)
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def token_encoders(
    size: tuple[int, int, int, int], num_frames: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Encoders on given tokens, by name."""
    _, num_tokens, dim, num_slots = size
    encoders = {}
    for name in ENCODERS:
        encoder = make_encoder(name, num_slots, dim, num_frames)
        encoder.backbone = Tokens(num_tokens, dim)
        encoders[name] = encoder.to(options.device)
        if options.compile:
            encoder.compile()
    return encoders


def measure_binding(
    size: tuple[int, int, int, int], num_frames: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Forward and backward, one row per encoder."""
    batch_size, num_tokens, dim, num_slots = size
    tokens = torch.randn(
        batch_size, num_frames, num_tokens, dim, device=options.device, requires_grad=True
    )
    is_first = torch.zeros(batch_size, num_frames, dtype=torch.bool, device=options.device)
    encoders = token_encoders(size, num_frames, options)
    forwards: dict[str, Run] = {}

    def loss(slots: Tensor) -> Tensor:
        tokens.grad = None
        return slots.square().mean()

    def textbook() -> Tensor:
        with autocast(options):
            return loss(TEXTBOOK(encoders["psb"], tokens, is_first)[0])

    if batch_size * num_frames**2 * num_slots * num_tokens <= MAX_TEXTBOOK_ENTRIES:
        forwards["psb textbook"] = textbook
    for name, encoder in encoders.items():

        def forward(encoder: SlotEncoder = encoder) -> Tensor:
            with autocast(options):
                return loss(encoder(tokens, is_first).slots)

        forwards[name] = forward
    for layout in ("frames first", "frame by frame"):

        def textbook_savi(layout: str = layout) -> Tensor:
            with autocast(options):
                return loss(TEXTBOOK_SAVI(encoders["savi"], tokens, layout=layout))

        forwards[f"savi textbook, {layout}"] = textbook_savi
    modules = dict.fromkeys(forwards, encoders["savi"]) | encoders
    modules["psb textbook"] = encoders["psb"]
    runs = {
        name: lambda forward=forward: forward().backward() for name, forward in forwards.items()
    }
    best = best_times(runs, 2 if options.quick else 5, options.device)
    rows = []
    for name, forward in forwards.items():
        kept = kept_bytes(forward, modules[name], options.device)
        rows.append({"encoder": name, "ms": best[name], "megabytes": kept / 1e6})
    return rows


def measure_streaming(
    size: tuple[int, int, int, int], num_frames: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Clips without gradient, whole and frame by frame."""
    batch_size, num_tokens, dim, _ = size
    tokens = torch.randn(batch_size, num_frames, num_tokens, dim, device=options.device)
    is_first = torch.zeros(batch_size, num_frames, dtype=torch.bool, device=options.device)
    runs: dict[str, Run] = {}
    carried: dict[str, float] = {}
    for name, encoder in token_encoders(size, num_frames, options).items():
        encoder.eval()

        def parallel(encoder: SlotEncoder = encoder) -> None:
            with torch.no_grad(), autocast(options):
                encoder(tokens, is_first)

        def stream(encoder: SlotEncoder = encoder) -> None:
            state = encoder.initial_state(batch_size)
            with torch.no_grad(), autocast(options):
                for frame, first in zip(tokens.unbind(1), is_first.unbind(1), strict=True):
                    _, state = encoder.step(frame, state, first)

        runs[f"{name}, whole clip"], runs[f"{name}, streamed"] = parallel, stream
        carried[f"{name}, streamed"] = state_bytes(encoder.initial_state(batch_size)) / 1e6
    best = best_times(runs, 2 if options.quick else 5, options.device)
    return [
        {"encoder": name, "ms": value, "megabytes": carried.get(name)}
        for name, value in best.items()
    ]


def measure_training(num_frames: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole training steps on 64 px frames, 4 clips at a time."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(4, num_frames, 3, 64, 64, generator=generator).to(options.device)
    is_first = torch.zeros(4, num_frames, dtype=torch.bool, device=options.device)
    clip = Clip(video, is_first)
    losses: dict[str, Run] = {}
    runs: dict[str, Run] = {}
    models = {}
    for name in ENCODERS:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            config = compose(
                overrides=["+image_size=[64,64]", "+num_slots=8", "+slot_dim=64", "+decoder=mixer"]
            )
        model = SlotModel(
            make_encoder(name, 8, 64, num_frames),
            decoder=build(config)["decoder"],
            objectives={"reconstruction": Reconstruction(None)},
            weights={"reconstruction": 1.0},
            is_conditioned=False,
        ).to(options.device)
        if options.compile:
            model.compile()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4
        )

        def loss(model: SlotModel = model) -> Tensor:
            with autocast(options):
                return model(clip).total

        def step(loss: Run = loss, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        losses[name], runs[name], models[name] = loss, step, model
    best = best_times(runs, 1 if options.quick else 4, options.device)
    return [
        {
            "encoder": name,
            "ms": best[name],
            "megabytes": kept_bytes(losses[name], models[name], options.device) / 1e6,
        }
        for name in runs
    ]


def show(table: str, size: tuple[int, ...], num_frames: int, rows: list[dict[str, Any]]) -> None:
    """Print rows with their ratio to the first, and put the ratios into them."""
    for row in rows:
        row |= {"table": table, "size": size, "num_frames": num_frames}
        row["frames_per_second"] = 1e3 * size[0] * num_frames / row["ms"]
        row["speed"] = rows[0]["ms"] / row["ms"]
        memory = "      -      -"
        if row["megabytes"] is not None:
            memory = f"{row['megabytes']:7.1f}      -"
        if row["megabytes"] is not None and rows[0]["megabytes"]:
            row["share"] = row["megabytes"] / rows[0]["megabytes"]
            memory = f"{row['megabytes']:7.1f} {row['share']:6.2f}"
        print(
            f"{table:10} {' '.join(map(str, size)):>14} {num_frames:3}  {row['encoder']:30} "
            f"{row['ms']:8.1f} {row['frames_per_second']:8.0f} {row['speed']:6.2f}x {memory}",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ("binding", "streaming", "training")
    parser.add_argument("--quick", action="store_true", help="few rounds, two lengths, one size")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile what is measured")
    parser.add_argument("--tables", nargs="+", default=tables, choices=tables)
    options = parser.parse_args()
    sizes, lengths = (SIZES[:1], LENGTHS[::2]) if options.quick else (SIZES, LENGTHS)
    print(
        f"{'table':10} {'B N D K':>14}   T  {'encoder':30} {'ms':>8} {'frames/s':>8} "
        f"{'speed':>7} {'MB':>7} {'share':>6}"
    )
    rows = []
    for table in options.tables:
        for size in sizes if table != "training" else ((4, 256, 64, 8),):
            for num_frames in lengths:
                if table == "training":
                    measured = measure_training(num_frames, options)
                else:
                    measure = measure_binding if table == "binding" else measure_streaming
                    measured = measure(size, num_frames, options)
                show(table, size, num_frames, measured)
                rows += measured
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
