"""Find the module in which a loss or a gradient stops being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def find_non_finite(model: nn.Module, run: Callable[[], Tensor]) -> str:
    """Run a forward and backward pass again and name the first module that is not finite.

    Args:
        model: the modules to watch; its gradients are overwritten.
        run: gives the scalar loss.

    Returns:
        A clause: where the first value that is not finite appears.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the weights {name} are not finite"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_watch(f"{name} ({type(module).__name__})", found))
        for name, module in model.named_modules()
        if name
    ]
    try:
        loss = run()
        if not found and not _is_finite(loss):
            found.append("the loss itself is the first value that is not finite")
        if not found:
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in model.named_parameters():
        if not found and parameter.grad is not None and not _is_finite(parameter.grad):
            found.append(f"the gradient of {name} is not finite")
    return found[0] if found else "a second run of the same step was finite"


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        for tensor in _tensors(output):
            if not found and not _is_finite(tensor):
                found.append(f"the first output that is not finite is that of {name}")
            if tensor.requires_grad:
                tensor.register_hook(check_gradient)

    def check_gradient(gradient: Tensor) -> None:
        if not found and not _is_finite(gradient):
            found.append(f"the first gradient that is not finite reaches the output of {name}")

    return hook


def _tensors(output: object) -> Iterator[Tensor]:
    leaves = tree_leaves(output)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            yield leaf


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
