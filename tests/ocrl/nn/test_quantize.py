"""Quantisers against loops over groups and codes, and their codebooks over time and processes."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import normalize

import ocrl
from ocrl.distributed import join_world
from ocrl.nn.quantize import EMAQuantizer, FSQQuantizer, GumbelQuantizer

D, E = 6, 5
SIZES = [4, 2, 3]
START, END = torch.tensor(0.0), torch.tensor(1.0)


def vectors(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def gumbel(**changes: object) -> GumbelQuantizer:
    torch.manual_seed(0)
    settings = {
        "sizes": SIZES,
        "code_dim": E,
        "temperature_start": 2.0,
        "temperature_end": 0.1,
        "anneal_until": 0.5,
        "is_straight_through": False,
        "is_blockwise": False,
    }
    return GumbelQuantizer(D, **(settings | changes))  # type: ignore[arg-type]


def ema(**changes: object) -> EMAQuantizer:
    torch.manual_seed(0)
    settings = {"sizes": SIZES, "code_dim": E, "decay": 0.9, "revive_below": 0.1}
    settings["is_blockwise"] = False
    return EMAQuantizer(D, **(settings | changes))  # type: ignore[arg-type]


def fsq(levels: list[list[int]] | None = None, *, is_blockwise: bool = False) -> FSQQuantizer:
    torch.manual_seed(0)
    return FSQQuantizer(D, levels=levels or [[4, 3], [2], [5]], is_blockwise=is_blockwise)


def bilinear_logits(quantizer: GumbelQuantizer, inputs: Tensor) -> list[Tensor]:
    """s^T W^T e of each group, over its own codes."""
    maps = quantizer.to_codes.weight.split(E)
    return [
        inputs @ mapped.mT @ quantizer.codebook[g, :size].mT
        for g, (mapped, size) in enumerate(zip(maps, SIZES, strict=True))
    ]


# --- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gumbel, ema, fsq])
def test_values_in_eval_say_what_the_codes_say_and_nothing_else(make) -> None:  # type: ignore[no-untyped-def]
    quantizer = make().eval()
    inputs = vectors(7, 3)
    first, again = quantizer(inputs, progress=START), quantizer(inputs, progress=END)
    assert torch.equal(first.values, again.values) and torch.equal(first.codes, again.codes)
    assert torch.equal(first.values, quantizer.embed(first.codes))
    assert first.values.shape == (7, 3, quantizer.out_dim) and first.codes.shape == (7, 3, 3)
    assert all(cost.shape == (7, 3) for cost in first.costs.values())
    assert (first.codes < torch.tensor(quantizer.sizes)).all() and (first.codes >= 0).all()
    assert len(first.codes.flatten(0, 1).unique(dim=0)) > 3


@pytest.mark.parametrize("make", [gumbel, ema, fsq])
def test_values_are_float32_under_autocast(make) -> None:  # type: ignore[no-untyped-def]
    quantizer = make().eval()
    inputs = vectors(7, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(inputs, progress=START)
    assert mixed.values.dtype == torch.float32
    assert torch.equal(mixed.values, quantizer(inputs.float(), progress=START).values)


# --- Gumbel -------------------------------------------------------------------------------------


def test_codes_are_the_largest_bilinear_form_of_each_group() -> None:
    quantizer, inputs = gumbel().eval(), vectors(50)
    logits = bilinear_logits(quantizer, inputs)
    codes = quantizer(inputs, progress=START).codes
    assert torch.equal(codes, torch.stack([group.argmax(-1) for group in logits], dim=-1))


def test_the_divergence_is_in_nats_and_summed_over_groups() -> None:
    quantizer, inputs = gumbel().double(), vectors(50).double()
    expected = torch.zeros(50, dtype=torch.float64)
    for logits in bilinear_logits(quantizer, inputs):
        uniform = Categorical(logits=torch.zeros_like(logits))
        expected += kl_divergence(Categorical(logits=logits), uniform)
    got = quantizer(inputs, progress=START).costs["divergence"]
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), quantizer.codebook)
    assert gradient.isfinite().all() and (gradient[1, 2:] == 0).all()


def test_the_temperature_falls_along_a_cosine_and_stays() -> None:
    progress = torch.tensor([0.0, 0.25, 0.5, 1.0])
    got = gumbel().temperature(progress)
    torch.testing.assert_close(got, torch.tensor([2.0, 1.05, 0.1, 0.1]))


def test_training_mixes_codes_less_and_less() -> None:
    quantizer, inputs = gumbel().train(), vectors(500)

    def distance(progress: Tensor) -> float:
        torch.manual_seed(3)
        sample = quantizer(inputs, progress=progress)
        return (sample.values - quantizer.embed(sample.codes)).norm(dim=-1).mean().item()

    assert distance(START) > 4 * distance(END) > 0.0


def test_training_draws_codes_as_often_as_they_are_likely() -> None:
    quantizer, inputs = gumbel().train(), vectors(1).expand(20_000, -1)
    codes = quantizer(inputs, progress=START).codes
    for group, logits in enumerate(bilinear_logits(quantizer, vectors(1))):
        often = torch.bincount(codes[:, group], minlength=SIZES[group]) / len(codes)
        torch.testing.assert_close(often, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_straight_through_has_hard_values_and_the_soft_gradient() -> None:
    inputs, pull = vectors(50), torch.randn(50, 3 * E)

    def values_and_gradient(is_straight_through: bool) -> tuple[GumbelQuantizer, Tensor, Tensor]:
        quantizer = gumbel(is_straight_through=is_straight_through).train()
        torch.manual_seed(5)
        sample = quantizer(inputs, progress=START)
        loss = (sample.values * pull).sum()
        (gradient,) = torch.autograd.grad(loss, quantizer.to_codes.weight)
        hard = quantizer.embed(sample.codes)
        assert torch.allclose(sample.values, hard, atol=1e-6) == is_straight_through
        return quantizer, sample.values, gradient

    *_, hard_gradient = values_and_gradient(True)
    *_, soft_gradient = values_and_gradient(False)
    torch.testing.assert_close(hard_gradient, soft_gradient)


# --- moving averages ----------------------------------------------------------------------------


def textbook_update(quantizer: EMAQuantizer, units: Tensor) -> tuple[Tensor, Tensor]:
    """One update, code by code: their shares of the vectors and the sums over these."""
    shares, totals = quantizer.shares.clone(), quantizer.totals.clone()
    for g, size in enumerate(SIZES):
        distance = torch.cdist(units[:, g], quantizer.codebook[g, :size])
        codes = distance.argmin(-1)
        for c in range(size):
            mine = units[codes == c, g]
            shares[g, c] = 0.9 * shares[g, c] + 0.1 * len(mine) / len(units)
            totals[g, c] = 0.9 * totals[g, c] + 0.1 * mine.sum(0) / len(units)
    return shares, totals


def started(revive_below: float = 0.1) -> EMAQuantizer:
    """With codes that are all in use."""
    quantizer = ema(revive_below=revive_below).double().train()
    quantizer.shares.copy_(quantizer.is_code / quantizer.is_code.sum(-1, keepdim=True))
    quantizer.totals.copy_(quantizer.codebook * quantizer.shares[..., None])
    return quantizer


def test_an_update_is_the_moving_average_of_what_a_code_stood_for() -> None:
    quantizer, inputs = started(), vectors(40, 2).double()
    units = normalize(quantizer.to_codes(inputs).flatten(0, 1).unflatten(-1, (3, E)), dim=-1)
    shares, totals = textbook_update(quantizer, units)
    before = quantizer.codebook.clone()
    output = quantizer(inputs, progress=START)
    torch.testing.assert_close(quantizer.shares, shares)
    torch.testing.assert_close(quantizer.totals, totals)
    torch.testing.assert_close(quantizer.codebook, normalize(totals, dim=-1))
    assert not torch.allclose(quantizer.codebook, before)
    nearest = torch.stack([before[g, output.codes[..., g]] for g in range(3)], dim=-2)
    commitment = (units.view_as(nearest) - nearest).square().sum((-1, -2))
    torch.testing.assert_close(output.costs["commitment"], commitment)
    torch.testing.assert_close(output.values, nearest.flatten(-2))


def test_the_gradient_passes_straight_through_and_commitment_pulls_the_map() -> None:
    quantizer, inputs = started(), vectors(8).double()
    units = normalize(quantizer.to_codes(inputs).unflatten(-1, (3, E)), dim=-1)
    pull = torch.randn(8, 3 * E, dtype=torch.float64)
    weight = quantizer.to_codes.weight
    (expected,) = torch.autograd.grad((units.flatten(-2) * pull).sum(), weight)
    output = quantizer(inputs, progress=START)
    (got,) = torch.autograd.grad((output.values * pull).sum(), weight, retain_graph=True)
    torch.testing.assert_close(got, expected)
    (pulled,) = torch.autograd.grad(output.costs["commitment"].sum(), weight)
    with torch.no_grad():
        weight -= 0.01 * pulled
    after = quantizer.eval()(inputs, progress=START).costs["commitment"]
    assert after.mean() < output.costs["commitment"].mean()


def test_codes_start_from_the_first_batch_and_dead_ones_again() -> None:
    quantizer = ema(sizes=[8, 8], revive_below=0.5).train()
    # Vectors around four directions that no random code is near to.
    centres = torch.eye(D)[:4] * 10
    with torch.no_grad():
        quantizer.to_codes.weight.copy_(torch.randn(2 * E, D))
    for step in range(60):
        inputs = centres.repeat(8, 1) + 0.05 * vectors(32, seed=step)
        output = quantizer(inputs, progress=START)
        if step == 0:
            assert output.costs["commitment"].mean() < 1.0
    assert output.costs["commitment"].mean() < 0.02
    assert (quantizer.codebook.norm(dim=-1) - 1).abs().max() < 1e-5
    used = quantizer.eval()(centres, progress=START).codes
    assert len(used.unique(dim=0)) == 4
    # The data move: without revival, all codes would stay where nothing is.
    quantizer.train()
    for step in range(60):
        output = quantizer(-centres.repeat(8, 1) + 0.05 * vectors(32, seed=step), progress=START)
    assert output.costs["commitment"].mean() < 0.02


def test_padding_is_never_a_code() -> None:
    quantizer = ema(sizes=[2, 9]).train()
    for step in range(20):
        codes = quantizer(vectors(64, seed=step), progress=START).codes
        assert codes[:, 0].max() < 2
    assert quantizer.shares[0, 2:].eq(0).all() and quantizer.codebook[0, 2:].eq(0).all()


def test_evaluation_leaves_the_codebook_alone() -> None:
    quantizer = ema()
    quantizer.train()(vectors(30), progress=START)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(vectors(30, seed=2), progress=START)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_codebook_that_was_saved_goes_on_exactly() -> None:
    def run(quantizer: EMAQuantizer, steps: range) -> EMAQuantizer:
        for step in steps:
            torch.manual_seed(step)
            quantizer.train()(vectors(30, seed=step), progress=START)
        return quantizer

    whole = run(ema(revive_below=0.5), range(12))
    half = run(ema(revive_below=0.5), range(5))
    resumed = ema(revive_below=0.5)
    torch.nn.init.zeros_(resumed.codebook)
    resumed.load_state_dict(half.state_dict())
    run(resumed, range(5, 12))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


TOGETHER = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location("test_quantize", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.share_in(sys.argv[2])
"""


def share_in(directory: str) -> None:
    """Update codebooks as one of the processes that there are, on its part of each batch."""
    with join_world("cpu") as world:
        plain, revived = started(revive_below=1e-6), ema(revive_below=0.5).train()
        for step in range(5):
            torch.manual_seed(1000 * world.rank + step)
            rows = vectors(40, seed=step).chunk(world.size)[world.rank]
            plain(rows.double(), progress=START)
            revived(rows, progress=START)
        state = {"plain": plain.state_dict(), "revived": revived.state_dict()}
        torch.save(state, Path(directory) / f"{world.size}-{world.rank}.pt")


def test_two_processes_have_one_codebook_that_of_the_whole_batch(tmp_path: Path) -> None:
    share_in(str(tmp_path))
    program = tmp_path / "together.py"
    program.write_text(TOGETHER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(ocrl.__file__).parents[1])}
    done = subprocess.run(
        [*launcher, str(program), __file__, str(tmp_path)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    torch.testing.assert_close(first["plain"], alone["plain"])
    for kind, name in itertools.product(first, ("codebook", "shares", "totals")):
        assert torch.equal(first[kind][name], second[kind][name]), (kind, name)


# --- finite scalars -----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_bins_are_of_equal_width_and_all_in_reach(levels: int) -> None:
    quantizer = fsq([[levels]]).eval()
    with torch.no_grad():
        quantizer.to_codes.weight.zero_()[0, 0] = 1.0
        quantizer.to_codes.bias.zero_()
    bounded = torch.linspace(-0.999, 0.999, 24 * levels)
    inputs = torch.zeros(len(bounded), D)
    inputs[:, 0] = bounded.atanh()
    output = quantizer(inputs, progress=START)
    assert output.codes.flatten().bincount().tolist() == [24] * levels
    assert (output.values[:, 0] - bounded).abs().max() <= 1 / levels + 1e-5
    # The ends of the range, where tanh is 1 in float32.
    inputs[0, 0], inputs[1, 0] = 100.0, -100.0
    assert quantizer(inputs, progress=START).codes[:2, 0].tolist() == [levels - 1, 0]


def test_codes_count_through_all_levels_of_a_group() -> None:
    quantizer = fsq([[4, 3], [2], [5]])
    assert quantizer.sizes == (12, 2, 5) and quantizer.out_dim == 4
    every = torch.tensor(list(itertools.product(range(12), range(2), range(5))))
    values = quantizer.embed(every)
    assert len(values.unique(dim=0)) == math.prod(quantizer.sizes)
    assert values[:, 0].unique().tolist() == [-0.75, -0.25, 0.25, 0.75]
    with torch.no_grad():
        quantizer.to_codes.weight.copy_(torch.eye(4, D))
        quantizer.to_codes.bias.zero_()
    inputs = torch.cat([values.atanh(), torch.zeros(len(values), 2)], dim=-1)
    assert torch.equal(quantizer.eval()(inputs, progress=START).codes, every)


def test_the_gradient_of_rounding_is_that_of_tanh() -> None:
    quantizer, inputs = fsq().train(), vectors(9)
    output = quantizer(inputs, progress=START)
    torch.testing.assert_close(output.values, quantizer.embed(output.codes))
    pull = torch.randn_like(output.values)
    weight = quantizer.to_codes.weight
    (got,) = torch.autograd.grad((output.values * pull).sum(), weight)
    bounded = quantizer.to_codes(inputs).tanh()
    (expected,) = torch.autograd.grad((bounded * pull).sum(), weight)
    torch.testing.assert_close(got, expected)
    assert output.costs == {}


@pytest.mark.parametrize(
    ("make", "changes", "sentence"),
    [
        (gumbel, {"sizes": []}, "at least 2 codes each"),
        (gumbel, {"sizes": [4, 1]}, "at least 2 codes each, got"),
        (gumbel, {"temperature_end": 3.0}, "got 3.0 and 2.0"),
        (gumbel, {"anneal_until": 0.0}, r"in \(0,1\], got 0.0"),
        (ema, {"sizes": [0]}, "at least 2 codes each"),
        (ema, {"code_dim": 1}, "at least 2 on a sphere, got 1"),
        (ema, {"decay": 1.0}, r"decay must be in \[0,1\), got 1.0"),
        (ema, {"revive_below": 1.0}, r"revive_below must be in \(0,1\), got 1.0"),
        (fsq, {"levels": [[4], []]}, "at least 2 levels"),
        (fsq, {"levels": [[4, 1]]}, "at least 2 levels"),
    ],
)
def test_bad_arguments_are_refused(make, changes, sentence) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=sentence):
        make(**changes)
