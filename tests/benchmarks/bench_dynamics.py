"""Imagination in slot space: ours beside SOLD and SlotFormer as their authors run them.

Every row imagines `--horizon` steps from a context, with actions where there are any; without
gradient, and with the backward pass through all steps. Float32, one process, rounds of the rows
of a table interleaved, the best of each kept.
- `sold`: OCVP-Seq of d 256, 4 layers, 8 heads with an action token, context 3. The textbook form
  reads its growing history again at each step; `ours` has the same layers, of which each frame is
  read once.
- `slotformer`: joint attention of d 128, 4 layers, 8 heads over 6 frames. The textbook form reads
  all 6 again at each step; ours keeps keys and values.
- `others`: the configured dynamics at their own sizes.

Memory is what autograd keeps for the backward pass (on CUDA: the peak above what was allocated).

    python tests/benchmarks/bench_dynamics.py [--quick] [--json PATH] [--device cuda]
        [--tables sold slotformer others] [--batch-size 32] [--num-slots 7] [--horizon 15]
"""

import argparse
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from ocrl.checkpoint import build
from ocrl.dynamics.transformer import TransformerDynamics
from ocrl.interfaces import SlotDynamics

ROOT = Path(__file__).parents[2]
TEXTBOOK = runpy.run_path(str(ROOT / "tests/ocrl/dynamics/textbook_dynamics.py"))
MEASURE = runpy.run_path(str(ROOT / "tests/benchmarks/bench_video_encoders.py"))
SLOT_DIM, ACTION_DIM = 128, 4
Run = Callable[[], Tensor]


def ours(dynamics: SlotDynamics, slots: Tensor, action: Tensor | None, horizon: int) -> Run:
    """Read a context (B,T,K,D) in parallel, but for its last frame, and imagine from that."""
    batch_size, num_context = slots.shape[:2]
    is_first = torch.zeros(batch_size, num_context - 1, dtype=torch.bool, device=slots.device)
    done = None if action is None else action[:, : num_context - 1]
    rest = None if action is None else action[:, num_context - 1 :]

    def run() -> Tensor:
        state = dynamics.initial_state(batch_size)
        if num_context > 1:
            _, state = dynamics.observe(slots[:, :-1], done, state, is_first)
        return dynamics.imagine(slots[:, -1], state, rest, horizon).slots

    return run


def transformer(window: int, **sizes: Any) -> TransformerDynamics:
    return TransformerDynamics(
        SLOT_DIM, num_actions=0, action_binding="token", num_heads=8, window=window, **sizes
    )


def draw(options: argparse.Namespace, num_context: int) -> tuple[Tensor, Tensor]:
    shape = (options.batch_size, num_context, options.num_slots, SLOT_DIM)
    num_actions = num_context + options.horizon - 1
    action = torch.randn(options.batch_size, num_actions, ACTION_DIM)
    return torch.randn(shape).to(options.device), action.to(options.device)


def sold(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Run]]:
    slots, action = draw(options, 3)
    book = TEXTBOOK["Sold"](SLOT_DIM, action_dim=ACTION_DIM, dim=256, num_layers=4, num_heads=8).to(
        options.device
    )
    sizes = {"action_dim": ACTION_DIM, "dim": 256, "num_layers": 4, "mlp_dim": 512}
    window = 3 + options.horizon
    model = transformer(window, interaction="object_then_time", is_residual=True, **sizes)
    model.to(options.device)
    return {
        "sold textbook": (book, lambda: book.imagine(slots, action, options.horizon)),
        "ours": (model, ours(model, slots, action, options.horizon)),
    }


def slotformer(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Run]]:
    slots, _ = draw(options, 6)
    book = TEXTBOOK["SlotFormer"](SLOT_DIM, dim=128, num_layers=4, num_heads=8, window=6)
    book.to(options.device)
    sizes = {"action_dim": 0, "dim": 128, "num_layers": 4, "mlp_dim": 512}
    model = transformer(6, interaction="joint", is_residual=False, **sizes).to(options.device)
    return {
        "slotformer textbook": (book, lambda: book.imagine(slots, options.horizon)),
        "ours": (model, ours(model, slots, None, options.horizon)),
    }


def others(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Run]]:
    slots, action = draw(options, 6)
    overrides = [f"+slot_dim={SLOT_DIM}", "+num_actions=0", f"+action_dim={ACTION_DIM}"]
    rows = {}
    for path in sorted((ROOT / "configs/dynamics").glob("*.yaml")):
        choice = [f"+dynamics={path.stem}", *overrides, "+code_sizes=[8,8,8,8]"]
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            model = build(compose(overrides=choice))["dynamics"].to(options.device)
        rows[path.stem] = (model, ours(model, slots, action, options.horizon))
    return rows


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per model of a table; speed is against the first."""
    torch.manual_seed(0)
    models = {"sold": sold, "slotformer": slotformer, "others": others}[name](options)

    def without_gradient(run: Run) -> Callable[[], None]:
        def inner() -> None:
            with torch.no_grad():
                run()

        return inner

    def with_gradient(run: Run) -> Run:
        return lambda: run().square().mean()

    rounds = 1 if options.quick else 4
    forward = {key: without_gradient(run) for key, (_, run) in models.items()}
    both = {
        key: lambda run=run: with_gradient(run)().backward() for key, (_, run) in models.items()
    }
    forward_ms = MEASURE["best_times"](forward, rounds, options.device)
    both_ms = MEASURE["best_times"](both, rounds, options.device)
    first, rows = next(iter(models)), []
    for key, (model, run) in models.items():
        kept = MEASURE["kept_bytes"](with_gradient(run), model, options.device)
        row = {"table": name, "model": key, "ms": forward_ms[key], "backward_ms": both_ms[key]}
        row["speed"] = forward_ms[first] / forward_ms[key]
        row["backward_speed"] = both_ms[first] / both_ms[key]
        row["steps_per_second"] = 1e3 * options.batch_size * options.horizon / forward_ms[key]
        row["megabytes"] = kept / 1e6
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure imagination in slot space.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tables", nargs="+", default=["sold", "slotformer", "others"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--horizon", type=int, default=15)
    options = parser.parse_args()
    print(
        f"{'table':12}{'model':24}{'ms':>9}{'+ backward':>12}{'speed':>8}{'':>8}{'MB':>9}{'/s':>9}"
    )
    rows = []
    for name in options.tables:
        for row in measure(name, options):
            rows.append(row)
            print(
                f"{row['table']:12}{row['model']:24}{row['ms']:9.0f}{row['backward_ms']:12.0f}"
                f"{row['speed']:7.2f}x{row['backward_speed']:7.2f}x{row['megabytes']:9.0f}"
                f"{row['steps_per_second']:9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
