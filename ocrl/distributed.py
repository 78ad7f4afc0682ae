"""Several processes that train one model: plain torch under `torchrun`, on one or more machines.

torchrun --nproc-per-node=4 scripts/pretrain_slots.py env=crafter
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from ocrl.device import find_device

Parallel = Literal["ddp", "fsdp"]
_TIMEOUT = timedelta(hours=4)
"""Long: while the first process collects data or evaluates, the others wait."""


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: number of this process; the first one writes and reports.
        size: how many there are.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        largest: list[float] = tensor.tolist()
        return largest

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started; alone where there is none.

    Args:
        device: "auto", or what `torch.device` knows.

    Raises:
        ValueError: if there is no such device.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found = find_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, found)
        return
    backend = "gloo"
    if found.type == "cuda":
        torch.cuda.set_device(found)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield World(rank, size, found)
    finally:
        dist.destroy_process_group()


def parallelize(model: nn.Module, world: World, parallel: Parallel) -> nn.Module:
    """Share a model among processes: replicate it ("ddp") or its shards ("fsdp").

    Raises:
        ValueError: if `parallel` is neither.
    """
    if parallel not in ("ddp", "fsdp"):
        raise ValueError(f"expected parallel to be 'ddp' or 'fsdp', got {parallel!r}")
    if world.size == 1:
        return model
    if parallel == "fsdp":
        fully_shard(model)  # changes the class of the module itself
        return model
    # Which parts of a model get a gradient may change during training (detach schedules).
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without shards; every process must ask for it."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in state.items()
    }


def shard_like(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state, sharded and placed as another of the same names is."""
    placed = {}
    for name, other in like.items():
        tensor = state[name].to(other.device)
        if isinstance(other, DTensor):
            tensor = distribute_tensor(tensor, other.device_mesh, other.placements)
        placed[name] = tensor
    return placed


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's state without shards; every process must ask for it."""
    state: dict[str, Any] = tree_map_only(DTensor, DTensor.full_tensor, optimizer.state_dict())
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over what `optimizer_state` gave, sharded as the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # torch numbers the states of parameters in the order of the groups.
    placed = {
        number: {
            name: shard_like({name: value}, {name: parameters[number]})[name]
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})
