"""Where tensors live, and in which precision they are computed."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["32", "bf16-mixed"]
"""Float32, or autocast to bfloat16."""


def find_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: if there is no such device.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected device to be auto, cpu or cuda, got {name!r}") from error
    if device.type != "cuda":
        return device
    number = local_rank if device.index is None else device.index
    if not has_cuda or number >= torch.cuda.device_count():
        raise ValueError(
            f"expected one of the {torch.cuda.device_count() if has_cuda else 0} CUDA devices "
            f"here, got {name!r} for local process {local_rank}; use device=cpu or fewer processes"
        )
    return torch.device("cuda", number)
