"""int8_samples: random operands of int8 operators whose results are spread over the integers, not clipped: random scales would clip nearly all."""

from __future__ import annotations

from math import prod

import torch

#: Of integers drawn evenly from -128 to 127.
_DEVIATION = 74.0
#: How many integers stand for 1.
_SPREAD = 40.0


def fill_integers(tensor: torch.Tensor, generator: torch.Generator, dtype: torch.dtype = torch.int8) -> None:
    """All integers of ``dtype`` (of 8 bits), evenly, in a tensor of any dtype."""
    low = torch.iinfo(dtype).min
    tensor.copy_(torch.randint(low, low + 256, tensor.shape, generator=generator, device=generator.device))


def sample_operands(op: str, operands: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Set those of the random operands "x0", ... of ``op`` (such as "torchkiln.int8_conv.default") that decide over the size of its integers.

    Scales become such that sums over a weight's inputs are values of about 1, which a result has ``_SPREAD`` integers for; a bias and a floating
    residual, random already, are of that size too, and so is what an int8 residual stands for. Operands of other operators stay.
    """
    if op.startswith("torchkiln.int8_layer_norm"):
        operands["x3"].fill_(_SPREAD)
    if op not in ("torchkiln.int8_conv.default", "torchkiln.int8_linear.default"):
        return
    for name in ("x0", "x1", "x4"):
        if name in operands and operands[name].dtype is torch.int8:
            fill_integers(operands[name], generator)
    operands["x2"].abs_().add_(0.5).div_(_DEVIATION**2 * prod(operands["x1"].shape[1:]) ** 0.5)
    if "x5" in operands:
        operands["x5"].fill_(1 / _DEVIATION)
    if "x6" in operands:
        operands["x6"].fill_(_SPREAD)
