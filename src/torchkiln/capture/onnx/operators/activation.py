"""activation: the activation functions, softmax and dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..node import Call, Value


def _plain(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Call], Value]:
    return lambda call: function(call.tensor(0))


def _gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


def _leaky_relu(call: Call) -> Value:
    return F.leaky_relu(call.tensor(0), call.get("alpha", 0.01))


def _elu(call: Call) -> Value:
    return F.elu(call.tensor(0), call.get("alpha", 1.0))


def _celu(call: Call) -> Value:
    return F.celu(call.tensor(0), call.get("alpha", 1.0))


def _selu(call: Call) -> Value:
    alpha, gamma = call.get("alpha", 1.6732631921768188), call.get("gamma", 1.0507010221481323)
    return F.elu(call.tensor(0), alpha) * gamma


def _prelu(call: Call) -> Value:
    value, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1 or (
        value.dim() > 1 and slope.dim() == value.dim() - 1 and slope.numel() == slope.shape[0] and value.shape[1] == slope.shape[0]
    ):
        return F.prelu(value, slope.reshape(-1))
    return torch.where(value < 0, value * slope, value)


def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * alpha + beta, 0, 1)


def _thresholded_relu(call: Call) -> Value:
    return F.threshold(call.tensor(0), call.get("alpha", 1.0), 0.0)


def _shrink(call: Call) -> Value:
    value, lambd, bias = call.tensor(0), call.get("lambd", 0.5), call.get("bias", 0.0)
    zero = torch.zeros_like(value)
    return torch.where(value < -lambd, value + bias, torch.where(value > lambd, value - bias, zero))


def _swish(call: Call) -> Value:
    value, alpha = call.tensor(0), call.get("alpha", 1.0)
    return F.silu(value) if alpha == 1.0 else value * torch.sigmoid(value * alpha)


def _softmax_of(function: Callable[..., torch.Tensor]) -> Callable[[Call], Value]:
    def run(call: Call) -> Value:
        value = call.tensor(0)
        axis = call.get("axis", 1 if call.opset < 13 else -1)
        axis = axis % max(value.dim(), 1)
        if call.opset < 13 and axis < value.dim() - 1:
            # Before opset 13 all dimensions from the axis on are one.
            return function(value.flatten(axis), dim=-1).reshape(value.shape)
        return function(value, dim=axis)

    return run


def _hardmax(value: torch.Tensor, dim: int) -> torch.Tensor:
    index = value.argmax(dim, keepdim=True)
    return torch.zeros_like(value).scatter(dim, index, 1.0)


def _dropout(call: Call) -> Value:
    if call.has(2):
        training = call.known(2, "training_mode")[0]
        if training:
            raise call.error("it drops values at random (training_mode is true): export the model in eval mode")
    value = call.tensor(0)
    return (value, torch.ones_like(value, dtype=torch.bool)) if len(call.node.outputs) > 1 else value


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "HardSwish": _plain(F.hardswish),
    "Mish": _plain(F.mish),
    "Gelu": _gelu,
    "Swish": _swish,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink,
    "Softmax": _softmax_of(torch.softmax),
    "LogSoftmax": _softmax_of(torch.log_softmax),
    "Hardmax": _softmax_of(_hardmax),
    "Dropout": _dropout,
}
