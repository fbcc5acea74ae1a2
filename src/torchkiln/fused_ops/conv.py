"""torchkiln::conv, conv_pooled and conv_moments: a convolution with everything that fits its epilogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .activation import activate
from .define import define


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    activation: str,
    alpha: float,
) -> torch.Tensor:
    """activation(convolution(x * scale, weight, bias) + residual), in the weight's dtype.

    Args:
        x: [N, Cin, *spatial], 1 to 3 spatial dimensions; float32, or of the weight's dtype, to which it is rounded.
        weight: as ``aten.convolution`` takes it.
        residual: of the output's shape.
        scale: [N, Cin, 1, ...]: the gate of a squeeze-and-excite block.
    """
    x = x.to(weight.dtype)
    if scale is not None:
        x = x * scale
    y = torch.ops.aten.convolution.default(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    return activate(y if residual is None else y + residual, activation, alpha)


def conv_pooled(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution with activation, and the mean of its result over all spatial positions: ([N, Cout, *spatial], float32 [N, Cout])."""
    y = conv(x, weight, bias, None, None, stride, padding, dilation, False, [0] * len(stride), groups, activation, alpha)
    return y, y.float().mean(dim=list(range(2, y.dim())))


def conv_moments(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    activation: str,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``conv``, and the mean and the (biased) variance of each channel of its result over all spatial positions.

    Returns:
        [N, Cout, *spatial], and float32 [N, 2, Cout]: means, then variances.
    """
    y = conv(x, weight, bias, residual, scale, stride, padding, dilation, transposed, output_padding, groups, activation, alpha)
    variance, mean = torch.var_mean(y.float(), dim=list(range(2, y.dim())), correction=0)
    return y, torch.stack((mean, variance), 1)


_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"

_CONV = (
    f"Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? scale, {_GEOMETRY}, bool transposed, SymInt[] output_padding, "
    "SymInt groups, str activation, float alpha"
)

define(f"conv({_CONV}) -> Tensor", conv)
define(f"conv_moments({_CONV}) -> (Tensor, Tensor)", conv_moments)
define(
    f"conv_pooled(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, SymInt groups, str activation, float alpha) -> (Tensor, Tensor)",
    conv_pooled,
)
