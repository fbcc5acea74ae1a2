"""torchkiln::squeeze_excite: the gate of a squeeze-and-excite block, from pooled means."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate
from .define import define


def squeeze_excite(
    mean: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    activation: str,
    gate: str,
) -> torch.Tensor:
    """gate(activation(mean @ weight1.T + bias1) @ weight2.T + bias2), in the weights' dtype.

    Source: Hu et al., Squeeze-and-Excitation Networks, 2018.

    Args:
        mean: float32 [N, C].
        weight1: [R, C]; weight2: [C, R].
    """
    hidden = activate(F.linear(mean, weight1.float(), None if bias1 is None else bias1.float()), activation)
    gated = activate(F.linear(hidden, weight2.float(), None if bias2 is None else bias2.float()), gate)
    return gated.to(weight1.dtype)


define(
    "squeeze_excite(Tensor mean, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, str activation, str gate) -> Tensor",
    squeeze_excite,
)
