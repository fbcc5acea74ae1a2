"""mask: a weight's zeros, held while it is trained.

A parametrization of torch.nn.utils.parametrize: the module computes with the masked weight, the optimizer sees the parameter behind it, whose pruned
elements get no gradient and no influence. torch.ao.pruning's WeightNormSparsifier, which works in the same way, groups along the last two dimensions,
which are the kernel's in a convolution, and leaves its masks out of the state dict.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from .pattern import choose_pruned


class TwoOfFourMask(nn.Module):
    """weight -> the weight with zeros where ``pruned`` (bool, the weight's shape) says so."""

    pruned: torch.Tensor

    def __init__(self, pruned: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("pruned", pruned)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        # Not a product: what is infinite or no number would not become zero. Nor masked_fill: its result is contiguous, channels last or not.
        return torch.where(self.pruned, 0.0, weight)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Of a weight that is assigned to the module: itself."""
        return weight


def put_mask(module: nn.Module, parameter: str) -> None:
    """Prune a parameter to 2:4 by its magnitudes now, and hold the zeros. It stays the same Parameter object, so optimizers keep it."""
    weight = getattr(module, parameter)
    pruned = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(choose_pruned(weight))  # in the weight's memory format
    parametrize.register_parametrization(module, parameter, TwoOfFourMask(pruned))


def has_mask(module: nn.Module, parameter: str) -> bool:
    """Whether ``put_mask`` was called for it."""
    if not parametrize.is_parametrized(module, parameter):
        return False
    return any(isinstance(one, TwoOfFourMask) for one in module.parametrizations[parameter])  # type: ignore[index]


def remove_mask(module: nn.Module, parameter: str) -> None:
    """Make the masked weight the parameter itself. It stays the same Parameter object, and comes first in the module again, where it was."""
    # torch takes the property off the class that it made for the module, which the module's deep copies share: they would be left without a weight.
    shared = type(module)
    own_namespace = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own_namespace)
    parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)
    own = module._parameters
    own.update({name: own.pop(name) for name in list(own) if name != parameter})
