"""torchkiln::conv_excite: a convolution, and the gates of the squeeze-and-excite block after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conv import conv_pooled
from .define import define
from .squeeze_excite import squeeze_excite


def conv_excite(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    alpha: float,
    hidden_activation: str,
    gate: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``conv_pooled``, and ``squeeze_excite`` of its means: ([N, Cout, *spatial], gates [N, Cout] in the dtype of weight1)."""
    y, mean = conv_pooled(x, weight, bias, stride, padding, dilation, groups, activation, alpha)
    return y, squeeze_excite(mean, weight1, bias1, weight2, bias2, hidden_activation, gate)


define(
    "conv_excite(Tensor x, Tensor weight, Tensor? bias, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, str activation, float alpha, str hidden_activation, str gate) -> (Tensor, Tensor)",
    conv_excite,
)
