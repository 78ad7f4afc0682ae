import itertools
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ocrl import checkpoint
from ocrl.distributed import World, join_world
from ocrl.interfaces import ScheduledModule
from ocrl.train import InterruptedTraining, NonFiniteLossError, Run, Trainer
from ocrl.types import Clip

ALONE = World(0, 1, torch.device("cpu"))
ADAM = partial(torch.optim.Adam, lr=1e-2)
CONFIG = {"_target_": "torch.nn.Linear", "in_features": 12, "out_features": 2}


@dataclass
class Output:
    losses: dict
    total: torch.Tensor


class Scheduled(nn.Module, ScheduledModule):
    def __init__(self):
        super().__init__()
        self.register_buffer("progress", torch.tensor(0.0))
        self.seen = []

    def forward(self, x):
        self.seen.append(self.progress.item())
        return x


class Model(nn.Module):
    """Has randomness, a buffer, and on request a step at which it breaks."""

    def __init__(self, *, breaks_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 8)
        self.middle = nn.Sequential(nn.Dropout(0.3), nn.Identity())
        self.schedule = Scheduled()
        self.last = nn.Linear(8, 1)
        self.register_buffer("calls", torch.tensor(0))
        self.breaks_at = breaks_at

    def forward(self, clip):
        clip = clip.to_float()
        self.calls += 1
        x = self.middle(torch.tanh(self.first(clip.video.flatten(2))))
        is_broken = self.breaks_at is not None and self.schedule.progress >= self.breaks_at / 12
        loss = self.last(self.schedule(x / 0.0 if is_broken else x)).square().mean()
        return Output({"square": loss}, 2 * loss)


def clip_of(step, *, batch_size=4):
    generator = torch.Generator().manual_seed(step)
    video = torch.randint(0, 255, (batch_size, 2, 3, 2, 2), generator=generator)
    return Clip(video.to(torch.uint8), torch.zeros(batch_size, 2, dtype=torch.bool))


@contextmanager
def batches(start):
    yield (clip_of(step) for step in itertools.count(start))


def dying_at(last):
    """As `batches`, but the power goes off at a step."""

    @contextmanager
    def until(start):
        def clips():
            for step in itertools.count(start):
                if step == last:
                    raise RuntimeError("power cut")
                yield clip_of(step)

        yield clips()

    return until


def trainer_of(**changes):
    settings = {
        "max_steps": 12,
        "max_minutes": None,
        "seed": 3,
        "device": "cpu",
        "parallel": "ddp",
        "precision": 32,
        "compile": False,
        "accumulation": 1,
        "clip_norm": 1.0,
        "clip_kind": 2,
        "schedule": "cosine",
        "warmup_steps": 3,
        "final_fraction": 0.1,
        "rates": {},
        "average_decay": 0.9,
        "log_every": 2,
        "evaluate_every": 0,
        "checkpoint_every": 4,
    }
    return Trainer(**(settings | changes))


def fit(directory, *, model=None, clips=batches, evaluate=None, config=CONFIG, data="d", **changes):
    model = Model() if model is None else model
    trainer_of(**changes).fit(
        model,
        optimizer=ADAM,
        batches=clips,
        run=Run(Path(directory), config, env="sprites", fingerprint=data),
        world=ALONE,
        evaluate=evaluate,
    )
    return model


def saved_states(directory):
    weights = checkpoint.read_weights(Path(directory) / "checkpoint")
    return weights, checkpoint.read_resume(directory)


def assert_same(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, list):
        assert_same(dict(enumerate(first)), dict(enumerate(second)))
    else:
        assert first == second


@pytest.mark.parametrize("killed_at", [0, 1, 4, 6, 11])
def test_a_killed_run_ends_with_the_very_weights_of_one_that_was_not(tmp_path, killed_at):
    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "killed", clips=dying_at(killed_at))
    torch.rand(7)
    resumed = fit(tmp_path / "killed")
    assert_same(whole.state_dict(), resumed.state_dict())
    weights, resume = saved_states(tmp_path / "whole")
    other_weights, other_resume = saved_states(tmp_path / "killed")
    assert_same(weights, other_weights)
    del resume["elapsed"], other_resume["elapsed"]
    assert_same(resume, other_resume)


def test_resuming_does_not_depend_on_how_often_it_was_evaluated(tmp_path):
    def noisy(model, *, step, board):
        return {"score": torch.rand(()).item()}

    one = fit(tmp_path / "a", evaluate=noisy, evaluate_every=1)
    other = fit(tmp_path / "b", evaluate=noisy, evaluate_every=5)
    assert_same(one.state_dict(), other.state_dict())


def test_the_seed_matters(tmp_path):
    one, other = (fit(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert not torch.equal(one.first.weight, other.first.weight)


def test_a_finished_run_is_left_as_it_is_and_goes_on_with_more_steps(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    fit(tmp_path)
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns == before
    fit(tmp_path, max_steps=14)
    assert checkpoint.read_meta(tmp_path)["step"] == 14


def test_saves_the_average_and_evaluates_it(tmp_path):
    seen = {}

    def evaluate(model, *, step, board):
        assert not model.training
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"score": float(step)}

    model = fit(tmp_path, evaluate=evaluate, evaluate_every=5)
    assert sorted(seen) == [5, 10, 12]
    weights, resume = saved_states(tmp_path)
    assert_same(weights, seen[12])
    assert_same(resume["model"], model.state_dict())
    assert not torch.equal(weights["first.weight"], resume["model"]["first.weight"])
    meta = checkpoint.read_meta(tmp_path)
    assert meta["metrics"]["score"] == 12.0 and meta["env"] == "sprites"
    assert meta["metrics"]["train/frames_per_second"] > 0
    assert 10 < meta["metrics"]["train/peak_megabytes"] < 1e5


def test_without_an_average_the_weights_themselves_are_saved(tmp_path):
    model = fit(tmp_path, average_decay=None)
    assert_same(saved_states(tmp_path)[0], model.state_dict())


def test_modules_are_told_how_much_of_training_is_done(tmp_path):
    model = fit(tmp_path, max_steps=4)
    assert model.schedule.seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, pieces):
    def model():
        plain = Model()
        plain.middle = nn.Identity()
        return plain

    whole = fit(tmp_path / "whole", model=model())
    cut = fit(tmp_path / "cut", model=model(), accumulation=pieces)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "order"), [(2, 2.0), ("inf", torch.inf)])
def test_gradients_are_clipped_in_the_norm_asked_for(tmp_path, kind, order):
    norms = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            norms.append(torch.linalg.vector_norm(torch.cat(gradients), order).item())

    trainer_of(clip_kind=kind, clip_norm=1e-3).fit(
        Model(),
        optimizer=partial(Watching, lr=1.0),
        batches=batches,
        run=Run(tmp_path, CONFIG),
        world=ALONE,
    )
    assert norms == pytest.approx([1e-3] * 12, rel=1e-2)


def test_parts_learn_at_rates_of_their_own(tmp_path):
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])

    trainer_of(
        rates={"last": {"factor": 3.0, "is_constant": True}}, schedule="constant", max_steps=4
    ).fit(
        Model(),
        optimizer=partial(Watching, lr=1.0),
        batches=batches,
        run=Run(tmp_path, CONFIG),
        world=ALONE,
    )
    assert [rates[0] for rates in seen] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert [rates[-1] for rates in seen] == [3.0] * 4


def test_logs_losses_rate_norm_and_speed(tmp_path):
    fit(tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = ["learning_rate", "gradient_norm"]
    assert {f"train/{name}" for name in names} <= set(found.Tags()["scalars"])
    speeds = {"speed/clips_per_second", "speed/frames_per_second", "speed/loading_share"}
    assert speeds | {"loss/square", "loss/total"} <= set(found.Tags()["scalars"])
    square, total = (found.Scalars(f"loss/{name}") for name in ("square", "total"))
    assert [event.step for event in square] == [2, 4, 6, 8, 10, 12]
    for one, two in zip(square, total, strict=True):
        assert two.value == pytest.approx(2 * one.value, rel=1e-5)
    rates = [event.value for event in found.Scalars("train/learning_rate")]
    assert rates[0] == pytest.approx(0.01 * 2 / 3 * 0.9846, rel=1e-2)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    kinds = []
    model = Model()
    model.last.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    fit(tmp_path, model=model, precision="bf16-mixed", max_steps=1)
    assert kinds == [torch.bfloat16] and model.last.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # The compiler warns about itself.
def test_a_compiled_model_learns_what_a_plain_one_does(tmp_path):
    def model():
        plain = Model()
        plain.middle = nn.Identity()
        return plain

    plain = fit(tmp_path / "plain", model=model(), max_steps=4)
    compiled = fit(tmp_path / "compiled", model=model(), max_steps=4, compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_trains_and_resumes_on_a_gpu(tmp_path, precision):
    def on_gpu(directory, clips):
        model = Model()
        trainer_of(device="cuda", precision=precision).fit(
            model,
            optimizer=ADAM,
            batches=clips,
            run=Run(directory, CONFIG),
            world=World(0, 1, torch.device("cuda", 0)),
        )
        return model

    def moved(clips):
        @contextmanager
        def on_device(start):
            with clips(start) as source:
                yield (clip.to("cuda") for clip in source)

        return on_device

    whole = on_gpu(tmp_path / "whole", moved(batches))
    with pytest.raises(RuntimeError, match="power cut"):
        on_gpu(tmp_path / "killed", moved(dying_at(6)))
    resumed = on_gpu(tmp_path / "killed", moved(batches))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


# --- things that go wrong -----------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_names_the_module_and_keeps_the_checkpoint(tmp_path):
    model = Model(breaks_at=6)
    with pytest.raises(NonFiniteLossError) as caught:
        fit(tmp_path, model=model)
    message = str(caught.value)
    assert "step 6" in message and "schedule (Scheduled)" in message
    assert "checkpoint of step 4" in message and "optimizer.lr" in message
    weights, resume = saved_states(tmp_path)
    for tensor in [*weights.values(), *resume["model"].values(), *model.parameters()]:
        assert torch.isfinite(tensor).all()
    assert checkpoint.read_meta(tmp_path)["step"] == 4


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(NonFiniteLossError, match="no checkpoint"):
        fit(tmp_path, model=Model(breaks_at=1))


def stopping_at(last, kind="SIGINT"):
    """As `batches`, but a signal asks to stop at a step."""

    @contextmanager
    def until(start):
        def clips():
            for step in itertools.count(start):
                if step == last:
                    os.kill(os.getpid(), getattr(signal, kind))
                yield clip_of(step)

        yield clips()

    return until


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, kind):
    whole = fit(tmp_path / "whole")
    with pytest.raises(InterruptedTraining, match=r"after step 6 of 12 .* same command"):
        fit(tmp_path / "stopped", clips=stopping_at(5, kind))
    assert checkpoint.read_meta(tmp_path / "stopped")["step"] == 6
    assert_same(whole.state_dict(), fit(tmp_path / "stopped").state_dict())


def test_asked_to_stop_in_its_last_step_a_run_is_still_evaluated(tmp_path):
    fit(tmp_path, clips=stopping_at(11), evaluate=lambda model, *, step, board: {"score": step})
    meta = checkpoint.read_meta(tmp_path)
    assert meta["step"] == 12 and meta["metrics"]["score"] == 12


def test_a_checkpoint_of_another_model_or_of_other_data_is_refused(tmp_path):
    fit(tmp_path, max_steps=4)
    with pytest.raises(ValueError, match=r"out_features is 2, this run's is 3.*name="):
        fit(tmp_path, config=CONFIG | {"out_features": 3})
    with pytest.raises(ValueError, match="other data"):
        fit(tmp_path, data="other")


def test_minutes_end_a_run_and_drive_its_schedule(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("ocrl.train.time.monotonic", lambda: 5.0 * next(ticks))
    # Three readings of the clock a step: 10 s each.
    model = fit(tmp_path, max_steps=1000, max_minutes=1.0)
    assert checkpoint.read_meta(tmp_path)["step"] == 6
    assert model.schedule.seen == pytest.approx([step / 6 for step in range(6)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"max_steps": "many"},
        {"precision": 16},
        {"parallel": "dp"},
        {"schedule": "linear"},
        {"accumulation": 0},
        {"clip_kind": 1},
        {"rates": {"last": {"factor": 2.0}}},
        {"clip_norm": 0.0},
        {"max_minutes": -1},
        {"log_every": 0},
        {"checkpoint_every": 1.5},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"expected trainer\.{name} .* got"):
        trainer_of(**wrong)


# --- several processes --------------------------------------------------------------------------

TOGETHER = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location("test_train", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.share_in(sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""


def share_in(directory, parallel, steps):
    """Train as one of the processes that there are, on its part of each batch."""
    with join_world("cpu") as world:

        @contextmanager
        def part(start):
            size = 4 // world.size
            rows = slice(world.rank * size, (world.rank + 1) * size)
            clips = (clip_of(step) for step in itertools.count(start))
            yield (Clip(clip.video[rows], clip.is_first[rows]) for clip in clips)

        model = Model()
        model.middle = nn.Identity()
        trainer_of(parallel=parallel, max_steps=steps, accumulation=2).fit(
            model,
            optimizer=ADAM,
            batches=part,
            run=Run(Path(directory), CONFIG),
            world=world,
            evaluate=lambda model, step, board: {"rank": float(world.rank)},
        )


def together(tmp_path, directory, *, parallel, num_processes, steps=8):
    if num_processes == 1:
        share_in(directory, parallel, steps)
        return saved_states(directory), losses_of(directory)
    options = ["--standalone", f"--nproc-per-node={num_processes}"]
    launch(tmp_path, [options], directory, parallel, steps)
    return saved_states(directory), losses_of(directory)


def launch(tmp_path, machines, directory, parallel, steps):
    """Run `share_in` under one torchrun for each machine, with its options, and wait for all."""
    program = tmp_path / "together.py"
    program.write_text(TOGETHER)
    root = str(Path(checkpoint.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    launched = []
    try:
        for options in machines:
            command = [sys.executable, "-m", "torch.distributed.run", *options]
            command += [str(program), __file__, str(directory), parallel, str(steps)]
            launched.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        for process in launched:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in launched:
            process.kill()


def losses_of(directory):
    found = EventAccumulator(str(Path(directory) / "tensorboard")).Reload()
    return [event.value for event in found.Scalars("loss/total")]


def assert_close_states(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {"calls"}:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_give_the_loss_and_weights_of_one(tmp_path, parallel):
    (weights, resume), losses = together(
        tmp_path, tmp_path / "one", parallel=parallel, num_processes=1
    )
    (weights2, resume2), losses2 = together(
        tmp_path, tmp_path / "two", parallel=parallel, num_processes=2
    )
    assert losses2 == pytest.approx(losses, rel=1e-5) and len(losses) == 4
    assert_close_states(weights, weights2)
    assert_close_states(resume["model"], resume2["model"])
    assert checkpoint.read_meta(tmp_path / "two")["step"] == 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_machines_give_the_loss_and_weights_of_one(tmp_path, parallel):
    # Two launches that meet over TCP, as on two machines that share a disk.
    meeting = ["--nproc-per-node=1", "--nnodes=2", "--master-addr=127.0.0.1"]
    meeting += [f"--master-port={free_port()}"]
    machines = [[*meeting, f"--node-rank={rank}"] for rank in (0, 1)]
    launch(tmp_path, machines, tmp_path / "two", parallel, 8)
    (weights, resume), losses = together(
        tmp_path, tmp_path / "one", parallel=parallel, num_processes=1
    )
    (weights2, resume2), losses2 = saved_states(tmp_path / "two"), losses_of(tmp_path / "two")
    assert losses2 == pytest.approx(losses, rel=1e-5) and len(losses) == 4
    assert_close_states(weights, weights2)
    assert_close_states(resume["model"], resume2["model"])
    assert checkpoint.read_meta(tmp_path / "two")["metrics"]["rank"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_two_processes_saved_goes_on_in_one_or_two(tmp_path, parallel):
    for name, sizes in (("two", (2, 2)), ("one", (2, 1))):
        for steps, size in zip((8, 12), sizes, strict=True):
            together(tmp_path, tmp_path / name, parallel=parallel, num_processes=size, steps=steps)
    one, two = (saved_states(tmp_path / name) for name in ("one", "two"))
    assert_close_states(one[0], two[0])
    assert_close_states(one[1]["model"], two[1]["model"])
