"""Problems to check tactics on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides


def nhwc(shape: Sequence[int], dtype: torch.dtype) -> TensorSpec:
    """Channels innermost."""
    return TensorSpec(tuple(shape), channels_last_strides(shape), dtype)


def conv_problem(
    x: Sequence[int],
    weight: Sequence[int],
    dtype: torch.dtype = torch.float16,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
    alpha: float = 0.0,
    bias: bool = True,
    residual: bool = False,
    scale: bool = False,
    channels_last: bool = True,
    transposed: bool = False,
    output_padding: int = 0,
    op: str = "conv",
    capability: int = 80,
    math: str = "ieee",
    x_dtype: torch.dtype | None = None,
) -> Problem:
    """A convolution of one to three dimensions with the same stride, padding and dilation in each."""
    rank = len(x) - 2
    geometry = {"stride": [stride] * rank, "padding": [padding] * rank, "dilation": [dilation] * rank}
    meta = torch.ops.aten.convolution.default(
        torch.empty(x, device="meta"),
        torch.empty(weight, device="meta"),
        None,
        *geometry.values(),
        transposed,
        [output_padding] * rank,
        groups,
    )
    lay = nhwc if channels_last else TensorSpec.contiguous
    y = lay(meta.shape, dtype)
    optional = [
        TensorSpec.contiguous((meta.shape[1],), dtype) if bias else None,
        lay(meta.shape, dtype) if residual else None,
        TensorSpec.contiguous((x[0], x[1], *[1] * rank), dtype) if scale else None,
    ]
    attributes = {**geometry, "groups": groups, "activation": activation, "alpha": alpha}
    inputs = (lay(x, x_dtype or dtype), TensorSpec.contiguous(weight, dtype), *optional)
    if op == "conv_pooled":
        outputs = (y, TensorSpec.contiguous((x[0], meta.shape[1]), torch.float32))
        return Problem(op, inputs[:3], outputs, attributes, (False, True, True), math, capability)
    attributes |= {"transposed": transposed, "output_padding": [output_padding] * rank}
    return Problem(op, inputs, (y,), attributes, (False, True, True, False, False), math, capability)


def linear_problem(
    x: Sequence[int],
    features: int,
    dtype: torch.dtype = torch.float16,
    *,
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    capability: int = 80,
    math: str = "ieee",
) -> Problem:
    """x: [..., K] times a weight [features, K]."""
    y = TensorSpec.contiguous((*x[:-1], features), dtype)
    inputs = (
        TensorSpec.contiguous(x, dtype),
        TensorSpec.contiguous((features, x[-1]), dtype),
        TensorSpec.contiguous((features,), dtype) if bias else None,
        y if residual else None,
    )
    return Problem("linear", inputs, (y,), {"activation": activation, "alpha": 0.0}, (False, True, True, False), math, capability)
