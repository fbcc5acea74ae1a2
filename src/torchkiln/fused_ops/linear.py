"""torchkiln::linear and its kin: a matrix product with bias, residual and activation, and the layer norm between two of them taken apart.

A layer norm between two linear layers needs no kernel of its own: the first gives the moments of its rows as a by-product (``linear_moments``), the
second applies them to its result (``linear_normalized``), because a product with normalized rows is a product with the rows, shifted and scaled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate
from .define import define

#: Channels that one pair of moments covers.
MOMENTS_PART = 32


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str, alpha: float
) -> torch.Tensor:
    """activation(x @ weight.T + bias + residual), in x's dtype. x: [..., K], weight: [N, K], residual: [..., N]."""
    y = F.linear(x, weight, bias)
    return activate(y if residual is None else y + residual, activation, alpha)


def linear_moments(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``linear`` and the moments of its rows. N is a multiple of MOMENTS_PART.

    Returns:
        y: [..., N].
        moments: float32 [..., 2 * N / MOMENTS_PART]: the means of each MOMENTS_PART channels of y, then the sums of squared deviations from them.
    """
    y = linear(x, weight, bias, residual, activation, alpha)
    parts = y.float().unflatten(-1, (-1, MOMENTS_PART))
    mean = parts.mean(-1)
    return y, torch.cat([mean, (parts - mean.unsqueeze(-1)).square().sum(-1)], -1)


def linear_normalized(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    moments: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    activation: str,
    alpha: float,
) -> torch.Tensor:
    """``linear`` of layer_norm(x) over the last dimension, the moments of which are given.

    Args:
        x: [..., K].
        moments: float32 [..., 2 * K / MOMENTS_PART], of ``linear_moments``.
        norm_weight, norm_bias: [K].
    """
    means, squares = moments.chunk(2, -1)
    mean = means.mean(-1, keepdim=True)
    variance = (squares.sum(-1, keepdim=True) + MOMENTS_PART * (means - mean).square().sum(-1, keepdim=True)) / x.shape[-1]
    y = (x.float() - mean) * torch.rsqrt(variance + eps)
    if norm_weight is not None:
        y = y * norm_weight.float()
    if norm_bias is not None:
        y = y + norm_bias.float()
    return linear(y.to(x.dtype), weight, bias, residual, activation, alpha)


_PRODUCT = "Tensor x, Tensor weight, Tensor? bias, Tensor? residual"
define(f"linear({_PRODUCT}, str activation, float alpha) -> Tensor", linear)
define(f"linear_moments({_PRODUCT}, str activation, float alpha) -> (Tensor, Tensor)", linear_moments)
define(
    f"linear_normalized({_PRODUCT}, Tensor moments, Tensor? norm_weight, Tensor? norm_bias, float eps, str activation, float alpha) -> Tensor",
    linear_normalized,
)
