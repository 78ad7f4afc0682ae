"""Slot attention against the textbook form and a common mistake: time and memory.

Forward and backward of three iterations with GRU and MLP, float32, one process, rounds of the
forms interleaved, the best of each kept. Memory is what autograd keeps for the backward pass,
every storage counted once, parameters left out.

    python tests/benchmarks/bench_slot_attention.py [--quick] [--json PATH] [--device cuda]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.nn.slot_attention import Corrector

SIZES = ((16, 1024, 64, 7), (16, 256, 192, 7), (16, 1024, 192, 7))
"""B, N, F = D, K."""
NUM_ITERATIONS = 3

Form = Callable[[Tensor, Tensor], Tensor]


def textbook(corrector: Corrector, *, is_projected_inside: bool) -> Form:
    """Keys and values made once per frame, or in each iteration with the norm."""
    attention = corrector.attention

    def project(tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = attention.norm_inputs(tokens)
        return attention.to_k(tokens), attention.to_v(tokens)

    def forward(queries: Tensor, tokens: Tensor) -> Tensor:
        slots = queries
        key, value = project(tokens)
        for iteration in range(NUM_ITERATIONS):
            if is_projected_inside and iteration:
                key, value = project(tokens)
            query = attention.to_q(corrector.norm_slots(slots)) * slots.shape[-1] ** -0.5
            attn = torch.einsum("bnd,bkd->bnk", key, query).softmax(dim=-1) + 1e-8
            attn = attn / attn.sum(dim=1, keepdim=True)
            updates = torch.einsum("bnk,bnd->bkd", attn, value)
            slots = corrector.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            assert corrector.mlp is not None
            slots = slots + corrector.mlp(slots)
        return slots

    return forward


def kept_bytes(form: Form, queries: Tensor, tokens: Tensor, module: nn.Module) -> int:
    """Bytes of the storages that autograd keeps, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = form(queries, tokens)
    del output
    return sum(kept.values())


def measure(size: tuple[int, int, int, int], rounds: int, device: str) -> list[dict[str, float]]:
    """One row per form."""
    batch_size, num_tokens, dim, num_slots = size
    torch.manual_seed(0)
    corrector = Corrector(
        dim, slot_dim=dim, mlp_dim=2 * dim, gradient="full", eps_placement="attn"
    ).to(device)
    tokens = torch.randn(batch_size, num_tokens, dim, device=device, requires_grad=True)
    queries = torch.randn(batch_size, num_slots, dim, device=device, requires_grad=True)

    def ours(queries: Tensor, tokens: Tensor) -> Tensor:
        slots, _ = corrector(queries, tokens, num_iterations=NUM_ITERATIONS)
        return slots

    forms: dict[str, Form] = {
        "textbook": textbook(corrector, is_projected_inside=False),
        "norm, k, v in the loop": textbook(corrector, is_projected_inside=True),
        "ocrl": ours,
    }
    expected = forms["textbook"](queries, tokens)
    torch.testing.assert_close(ours(queries, tokens), expected, rtol=1e-3, atol=1e-4)
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, form in forms.items():
            corrector.zero_grad()
            tokens.grad = queries.grad = None
            start = time.perf_counter()
            functional.mse_loss(form(queries, tokens), torch.zeros_like(queries)).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return [
        {
            "form": name,
            "ms": 1e3 * best[name],
            "megabytes": kept_bytes(form, queries, tokens, corrector) / 1e6,
        }
        for name, form in forms.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = []
    print(f"{'B N D K':>16}  {'form':24} {'ms':>8} {'speed':>6} {'MB kept':>8} {'share':>6}")
    for size in SIZES:
        table = measure(size, 5 if arguments.quick else 40, arguments.device)
        for row in table:
            speed, share = table[0]["ms"] / row["ms"], row["megabytes"] / table[0]["megabytes"]
            print(
                f"{' '.join(map(str, size)):>16}  {row['form']:24} {row['ms']:8.1f} "
                f"{speed:5.2f}x {row['megabytes']:8.1f} {share:6.2f}"
            )
            rows.append({"size": size, **row, "speed": speed, "share": share})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
