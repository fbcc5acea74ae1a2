"""microsoft: operators of the domain com.microsoft that ONNX Runtime's optimizer leaves in the files it writes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..node import Call, Value


def _gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0))


def _bias_gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0) + call.tensor(1))


def _fast_gelu(call: Call) -> Value:
    value, bias = call.tensor(0), call.optional(1)
    return F.gelu(value if bias is None else value + bias, approximate="tanh")


def _quick_gelu(call: Call) -> Value:
    value = call.tensor(0)
    return value * torch.sigmoid(value * call.get("alpha", 1.702))


def _fused_matmul(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.error("transBatchA and transBatchB are not supported")
    a, b = a.mT if call.get("transA", 0) else a, b.mT if call.get("transB", 0) else b
    alpha = call.get("alpha", 1.0)
    product = torch.matmul(a, b)
    return product if alpha == 1 else product * alpha


def _skip_layer_norm(call: Call) -> Value:
    if any(call.node.outputs[1:3]):
        raise call.error("its mean and deviation outputs are for training and are not supported")
    total = call.tensor(0) + call.tensor(1)
    bias = call.optional(4)
    total = total if bias is None else total + bias
    result = F.layer_norm(total, total.shape[-1:], call.tensor(2), call.optional(3), call.get("epsilon", 1e-5))
    return (result, None, None, total)[: len(call.node.outputs)] if len(call.node.outputs) > 1 else result


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Gelu": _gelu,
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "SkipLayerNormalization": _skip_layer_norm,
}
