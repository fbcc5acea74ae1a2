"""torchkiln::layer_norm, group_norm and softmax: statistics in float32, whatever comes in and goes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .activation import activate
from .define import define


def layer_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """``torch.layer_norm`` of x, in ``dtype``."""
    return F.layer_norm(x.float(), list(normalized_shape), _float(weight), _float(bias), eps).to(dtype)


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    activation: str,
    alpha: float,
    dtype: torch.dtype,
    moments: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(group_norm(x) + residual), in ``dtype``. x: [N, C, *spatial]; with groups == C it is the instance norm.

    Args:
        moments: float32 [N, 2, C], the mean and the variance of each channel of x, from ``conv_moments``; without it x is read for them.
    """
    if moments is None:
        y = F.group_norm(x.float(), groups, _float(weight), _float(bias), eps)
    else:
        y = _normalized(x.float(), groups, _float(weight), _float(bias), eps, moments)
    return activate(y if residual is None else y + residual.float(), activation, alpha).to(dtype)


def _normalized(
    x: torch.Tensor, groups: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, moments: torch.Tensor
) -> torch.Tensor:
    """``F.group_norm`` with the mean and the variance of each channel given."""
    means, variances = moments.unflatten(2, (groups, -1)).unbind(1)  # each [N, groups, channels of a group]
    mean = means.mean(2, keepdim=True)
    # Moments that are no moments (kernels are compared on random numbers) give finite results too.
    variance = (variances + (means - mean) ** 2).mean(2, keepdim=True).clamp_min(0)
    shape = (*x.shape[:2], *[1] * (x.dim() - 2))
    scale = (variance + eps).rsqrt().expand_as(means).reshape(shape)
    y = (x - mean.expand_as(means).reshape(shape)) * scale
    if weight is not None:
        y = y * weight.reshape(shape[1:])
    return y if bias is None else y + bias.reshape(shape[1:])


def softmax(x: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """``torch.softmax`` of x over ``dim``, in ``dtype``."""
    return x.float().softmax(dim).to(dtype)


def _float(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.float()


define("layer_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) -> Tensor", layer_norm)
define(
    "group_norm(Tensor x, SymInt groups, Tensor? weight, Tensor? bias, Tensor? residual, float eps, str activation, float alpha, ScalarType dtype, "
    "Tensor? moments=None) -> Tensor",
    group_norm,
)
define("softmax(Tensor x, int dim, ScalarType dtype) -> Tensor", softmax)
