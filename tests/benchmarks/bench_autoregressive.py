"""The autoregressive decoder against its textbook form: training steps and generation.

SLATE's decoder for 64 pixels: 256 tokens of 1024, 4 layers of 192 with 4 heads, no dropout,
float32, one process. The textbook form (tests/ocrl/decoders/textbook_autoregressive.py) has one-hot
vectors for tokens and targets, whole attention maps, and for generation the whole beginning of the
sequence again for every token. Both forms are checked to agree; the rounds are interleaved and the
best of each is kept.

    python tests/benchmarks/bench_autoregressive.py [--quick] [--json PATH] [--device cuda]
"""

import argparse
import json
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ocrl.decoders.autoregressive import AutoregressiveDecoder
from ocrl.interfaces import Tokenizer

TEXTBOOK = Path(__file__).parents[1] / "ocrl" / "decoders" / "textbook_autoregressive.py"
NUM_SLOTS, SLOT_DIM, VOCABULARY, GRID = 7, 192, 1024, (16, 16)
TRAINING_BATCHES, GENERATION_BATCHES = (8,), (2, 16)


class Given(Tokenizer):
    """Frames that are tokens already: the benchmark is of the decoder alone."""

    vocabulary_size, image_size, grid = VOCABULARY, GRID, GRID

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (M,N) of 'frames' (M,1,h,w)."""
        return frames.flatten(1).long(), frames

    def decode(self, tokens: Tensor) -> Tensor:
        """'Frames' (M,1,h,w) of tokens (M,N)."""
        return tokens.unflatten(1, GRID)[:, None].float()


def make_decoder(device: str) -> AutoregressiveDecoder:
    """SLATE's, with a head that is not zero."""
    torch.manual_seed(0)
    decoder = AutoregressiveDecoder(
        SLOT_DIM,
        target=Given(),
        orders=[0],
        has_position=True,
        dim=192,
        num_layers=4,
        num_heads=4,
        mlp_dim=768,
        dropout=0.0,
    )
    nn.init.xavier_uniform_(decoder.head.weight)
    return decoder.to(device)


def training_forms(
    decoder: AutoregressiveDecoder, textbook: Any, batch_size: int, device: str
) -> dict[str, Callable[[], Tensor]]:
    """The loss of one step, each way."""
    frames = torch.randint(VOCABULARY, (1, batch_size, 1, *GRID), device=device).float()
    slots = torch.randn(1, batch_size, NUM_SLOTS, SLOT_DIM, device=device, requires_grad=True)

    def ours() -> Tensor:
        output = decoder(slots, frames)
        logits, tokens = output.recon.flatten(0, 2), output.aux["target"].flatten()
        return nn.functional.cross_entropy(logits, tokens, reduction="sum") / batch_size

    def theirs() -> Tensor:
        tokens = frames[0].flatten(1).long()
        logits, _ = textbook.foretell(decoder, tokens, slots[0])
        loss: Tensor = textbook.cross_entropy(decoder, logits, tokens)
        return loss

    return {"textbook": theirs, "ocrl": ours}


def generation_forms(
    decoder: AutoregressiveDecoder, textbook: Any, batch_size: int, device: str
) -> dict[str, Callable[[], Tensor]]:
    """The tokens of a batch of frames, each way."""
    slots = torch.randn(batch_size, NUM_SLOTS, SLOT_DIM, device=device)
    return {
        "textbook": lambda: textbook.generate(decoder, slots),
        "ocrl": lambda: decoder.generate(slots[None])[0],
    }


def measure(
    forms: dict[str, Callable[[], Tensor]], *, rounds: int, is_trained: bool, device: str
) -> dict[str, float]:
    """The best seconds of each form."""
    expected, got = forms["textbook"](), forms["ocrl"]()
    if is_trained:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)
    else:
        # Near ties may fall otherwise in float32, and everything after them.
        share = (got == expected).double().mean().item()
        assert share > 0.5, f"only {share:.0%} of the tokens agree"
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.perf_counter()
            value = form()
            if is_trained:
                value.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    textbook = SimpleNamespace(**runpy.run_path(str(TEXTBOOK)))
    decoder = make_decoder(arguments.device)
    rows = []
    print(f"{'what':>12} {'batch':>6}  {'form':10} {'ms':>9} {'speed':>7}")
    for kind, make, batches, rounds in (
        ("training", training_forms, TRAINING_BATCHES, 12),
        ("generation", generation_forms, GENERATION_BATCHES, 3),
    ):
        for batch_size in batches:
            best = measure(
                make(decoder, textbook, batch_size, arguments.device),
                rounds=2 if arguments.quick else rounds,
                is_trained=kind == "training",
                device=arguments.device,
            )
            for name, seconds in best.items():
                speed = best["textbook"] / seconds
                print(f"{kind:>12} {batch_size:6}  {name:10} {1e3 * seconds:9.1f} {speed:6.2f}x")
                rows.append(
                    {
                        "what": kind,
                        "batch": batch_size,
                        "form": name,
                        "ms": 1e3 * seconds,
                        "speed": speed,
                    }
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
