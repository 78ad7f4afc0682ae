import pytest
import torch
from torch import nn

from ocrl.distributed import (
    World,
    find_device,
    join_world,
    load_optimizer_state,
    optimizer_state,
    parallelize,
)


def test_alone_there_is_nothing_to_exchange():
    with join_world("cpu") as world:
        assert world == World(0, 1, torch.device("cpu")) and world.is_first
        assert world.largest(1.0, 2.0) == [1.0, 2.0]
        assert world.mean(torch.tensor(3.0)) == 3.0
        world.wait()
        model = nn.Linear(1, 1)
        assert parallelize(model, world, "ddp") is model


def test_an_unknown_way_to_share_is_refused():
    with pytest.raises(ValueError, match="'ddp' or 'fsdp', got 'dp'"):
        parallelize(nn.Linear(1, 1), World(0, 1, torch.device("cpu")), "dp")


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert find_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    assert find_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(ValueError, match="one of the 2 CUDA devices"):
        find_device("auto", local_rank=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("name", "sentence"), [("gpu", "auto, cpu or"), ("cuda", "the 0 CUDA")])
def test_devices_that_are_not_there_are_refused(monkeypatch, name, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        find_device(name)


def test_the_optimizers_state_comes_back():
    def trained(steps):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        return optimizer

    source, target = trained(3), trained(0)
    load_optimizer_state(target, optimizer_state(source))
    for one, other in zip(source.state.values(), target.state.values(), strict=True):
        assert one["step"] == other["step"] == 3
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
