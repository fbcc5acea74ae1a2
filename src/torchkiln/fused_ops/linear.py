"""torchkiln::linear: a matrix product with bias, residual and activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate
from .define import define


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str, alpha: float
) -> torch.Tensor:
    """activation(x @ weight.T + bias + residual), in x's dtype. x: [..., K], weight: [N, K], residual: [..., N]."""
    y = F.linear(x, weight, bias)
    return activate(y if residual is None else y + residual, activation, alpha)


define("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, float alpha) -> Tensor", linear)
