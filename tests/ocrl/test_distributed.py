import pytest
import torch
from torch import nn

from ocrl.distributed import (
    World,
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
