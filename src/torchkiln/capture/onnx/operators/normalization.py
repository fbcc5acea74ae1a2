"""normalization: batch, instance, layer, group, RMS and response normalization, as at inference."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..node import Call, Value


def _batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0) or len([name for name in call.node.outputs if name]) > 1:
        raise call.error("it is in training mode: export the model in eval mode")
    value, scale, bias, mean, variance = (call.tensor(i) for i in range(5))
    return F.batch_norm(value, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


def _instance_norm(call: Call) -> Value:
    return F.instance_norm(call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.get("epsilon", 1e-5))


def _single_output(call: Call) -> None:
    if len([name for name in call.node.outputs if name]) > 1:
        raise call.error("its mean and deviation outputs are for training and are not supported: export the model in eval mode")


def _layer_norm(call: Call) -> Value:
    _single_output(call)
    value, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    shape = value.shape[call.get("axis", -1) % value.dim() :]
    epsilon = call.get("epsilon", 1e-5)
    if tuple(scale.shape) == tuple(shape) and (bias is None or tuple(bias.shape) == tuple(shape)):
        return F.layer_norm(value, shape, scale, bias, epsilon)
    result = F.layer_norm(value, shape, eps=epsilon) * scale
    return result if bias is None else result + bias


def _rms_norm(call: Call) -> Value:
    value, scale = call.tensor(0), call.tensor(1)
    wide = value.to(call.dtype(call.get("stash_type", 1)))
    axes = list(range(call.get("axis", -1) % value.dim(), value.dim()))
    normal = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return normal.to(value.dtype) * scale


def _group_norm(call: Call) -> Value:
    value, scale, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    groups = call.get("num_groups")
    if call.opset < 21:
        # Opset 18 has one scale for a group, opset 21 one for a channel.
        repeats = value.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(value, groups, scale, bias, call.get("epsilon", 1e-5))


def _lp_norm(call: Call) -> Value:
    value, axis, power = call.tensor(0), call.get("axis", -1), call.get("p", 2)
    norm = torch.linalg.vector_norm(value, power, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(value), value / norm)


def _mean_variance_norm(call: Call) -> Value:
    value, axes = call.tensor(0), call.get("axes") or [0, 2, 3]
    centred = value - value.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _local_response_norm(call: Call) -> Value:
    value, size = call.tensor(0), call.get("size")
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    # ONNX has the larger half of an even window after the channel, torch before it.
    before, after = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    squares = value.square().flatten(2).unsqueeze(1)
    mean = F.avg_pool2d(F.pad(squares, (0, 0, before, after)), (size, 1), stride=1).squeeze(1).reshape(value.shape)
    return value / (mean * alpha + bias).pow(beta)


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
    "LRN": _local_response_norm,
}
