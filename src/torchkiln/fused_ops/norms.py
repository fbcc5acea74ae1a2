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
) -> torch.Tensor:
    """activation(group_norm(x) + residual), in ``dtype``. x: [N, C, *spatial]; with groups == C it is the instance norm."""
    y = F.group_norm(x.float(), groups, _float(weight), _float(bias), eps)
    return activate(y if residual is None else y + residual.float(), activation, alpha).to(dtype)


def softmax(x: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """``torch.softmax`` of x over ``dim``, in ``dtype``."""
    return x.float().softmax(dim).to(dtype)


def _float(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.float()


define("layer_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) -> Tensor", layer_norm)
define(
    "group_norm(Tensor x, SymInt groups, Tensor? weight, Tensor? bias, Tensor? residual, float eps, str activation, float alpha, ScalarType dtype)"
    " -> Tensor",
    group_norm,
)
define("softmax(Tensor x, int dim, ScalarType dtype) -> Tensor", softmax)
