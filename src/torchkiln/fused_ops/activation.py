"""activation: the activations that fused operators apply, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

#: Name -> function of a tensor and ``alpha`` (the slope of leaky_relu; others do not read it).
ACTIVATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "none": lambda x, alpha: x,
    "relu": lambda x, alpha: F.relu(x),
    "relu6": lambda x, alpha: F.relu6(x),
    "silu": lambda x, alpha: F.silu(x),
    "gelu": lambda x, alpha: F.gelu(x),
    "gelu_tanh": lambda x, alpha: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x, alpha: F.hardswish(x),
    "hardsigmoid": lambda x, alpha: F.hardsigmoid(x),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "tanh": lambda x, alpha: torch.tanh(x),
}


def activate(x: torch.Tensor, activation: str, alpha: float = 0.0) -> torch.Tensor:
    """``x`` through the activation of that name. Raises KeyError for an unknown one."""
    return ACTIVATIONS[activation](x, alpha)
