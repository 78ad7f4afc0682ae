"""E and M steps of a Gaussian mixture, squares multiplied out against a (B,K,N,D) tensor.

Three steps, float32, one process, rounds of the forms interleaved, the best of each kept; without
and with the backward pass. Memory is what autograd keeps for the backward pass, every storage
counted once.

    python tests/benchmarks/bench_slot_mixture.py [--quick] [--json PATH] [--device cuda]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ocrl.nn.mixture import EPS, log_deviation, log_joint, moments

SIZES = ((8, 1024, 64, 10), (16, 256, 64, 7), (8, 4096, 64, 8))
"""B, N, D, K."""
NUM_ITERATIONS = 3

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def naive(keys: Tensor, values: Tensor, mean: Tensor, log_std: Tensor, weight: Tensor) -> Tensor:
    """As the equations stand: every token's distance to every component, number by number."""
    log_weight = weight.log()
    for _ in range(NUM_ITERATIONS):
        distance = (keys[:, None] - mean[:, :, None]).square() * torch.exp(-2 * log_std)[:, :, None]
        logits = -0.5 * distance.sum(-1) - log_std.sum(-1, keepdim=True) + log_weight
        owned = logits.softmax(dim=1) + EPS
        total = owned.sum(-1, keepdim=True)
        share = (owned / total)[..., None]
        mean = (share * values[:, None]).sum(2)
        log_std = 0.5 * (share * (values[:, None] - mean[:, :, None]).square()).sum(2).log()
        log_weight = torch.log(total / total.sum(1, keepdim=True))
    return torch.cat([mean, log_std, log_weight], dim=-1)


def ours(keys: Tensor, values: Tensor, mean: Tensor, log_std: Tensor, weight: Tensor) -> Tensor:
    """With the squares of keys and values made once, as `MixtureCorrector` does."""
    log_weight, keys_squared, values_squared = weight.log(), keys.square(), values.square()
    for _ in range(NUM_ITERATIONS):
        logits = log_joint(
            keys,
            keys_squared,
            mean=mean,
            log_std=log_std,
            log_weight=log_weight,
            likelihood_power=1.0,
        )
        mean, square, log_weight = moments(logits.softmax(dim=1), values, values_squared)
        log_std = log_deviation(mean, square, mean)
    return torch.cat([mean, log_std, log_weight], dim=-1)


FORMS: dict[str, Form] = {"naive": naive, "ocrl": ours}


def kept_bytes(form: Form, inputs: list[Tensor]) -> int:
    """Bytes of the storages that autograd keeps."""
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = form(*inputs)
    del output
    return sum(kept.values())


def seconds(form: Form, inputs: list[Tensor], *, is_trained: bool) -> float:
    """Of one call."""
    is_cuda = inputs[0].is_cuda
    start = time.perf_counter()
    with torch.set_grad_enabled(is_trained):
        output = form(*inputs)
    if is_trained:
        torch.autograd.grad(output.square().mean(), inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: tuple[int, int, int, int], rounds: int, device: str) -> list[dict[str, float]]:
    """One row per form."""
    batch_size, num_tokens, dim, num_slots = size
    torch.manual_seed(0)
    shapes = [(num_tokens, dim), (num_tokens, dim), (num_slots, dim), (num_slots, dim)]
    inputs = [torch.randn(batch_size, *shape, device=device) for shape in shapes]
    inputs[3] = 0.1 * inputs[3]
    inputs.append(torch.rand(batch_size, num_slots, 1, device=device).softmax(1))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    torch.testing.assert_close(ours(*inputs), naive(*inputs), rtol=1e-3, atol=1e-3)
    best = {(name, is_trained): float("inf") for name in FORMS for is_trained in (False, True)}
    for _ in range(rounds):
        for (name, is_trained), least in best.items():
            took = seconds(FORMS[name], inputs, is_trained=is_trained)
            best[name, is_trained] = min(least, took)
    return [
        {
            "form": name,
            "ms": 1e3 * best[name, False],
            "ms_with_backward": 1e3 * best[name, True],
            "megabytes": kept_bytes(form, inputs) / 1e6,
        }
        for name, form in FORMS.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = []
    head = f"{'ms':>8} {'speed':>6} {'ms back':>8} {'speed':>6} {'MB kept':>8} {'less':>6}"
    print(f"{'B N D K':>16}  {'form':6} {head}")
    for size in SIZES:
        table = measure(size, 3 if arguments.quick else 20, arguments.device)
        for row in table:
            gains = {name: table[0][name] / row[name] for name in row if name != "form"}
            print(
                f"{' '.join(map(str, size)):>16}  {row['form']:6} {row['ms']:8.2f} "
                f"{gains['ms']:5.1f}x {row['ms_with_backward']:8.2f} "
                f"{gains['ms_with_backward']:5.1f}x {row['megabytes']:8.1f} "
                f"{gains['megabytes']:5.1f}x"
            )
            rows.append({"size": size, **row, "gain": gains})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
