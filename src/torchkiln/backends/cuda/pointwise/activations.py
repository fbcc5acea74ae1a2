"""activations: rules of activation functions and clamps."""

from __future__ import annotations

import torch

from .rules import HALVES, Call, Unsupported, literal, need_floating, need_number, register, register_table, unary

register_table(
    {
        "silu.default": "silu({})",
        "sigmoid.default": "sigmoid({})",
        "hardsigmoid.default": "hardsigmoid({})",
        "hardswish.default": "{0} * hardsigmoid({0})",
        "mish.default": "mish({})",
        "tanh.default": "tanh({}, {p})",
    },
    unary,
)


@register("gelu.default")
def _gelu(c: Call) -> str:
    need_floating(c)
    return f"gelu_tanh({c('self')})" if c.value("approximate") == "tanh" else f"gelu({c('self')}, {c.dtype not in HALVES})"


@register("relu.default")
def _relu(c: Call) -> str:
    return c("self") if c.dtype == torch.bool else f"larger({c('self')}, {literal(0, c.dtype)})"


@register("leaky_relu.default")
def _leaky_relu(c: Call) -> str:
    x = c("self")
    return f"tl.where({x} > 0, {x}, {x} * {literal(c.value('negative_slope'), c.dtype)})"


@register("prelu.default")
def _prelu(c: Call) -> str:
    x = c("self")
    return f"tl.where({x} > 0, {x}, {x} * {c('weight', channel=True)})"


@register("_prelu_kernel.default")
def _prelu_kernel(c: Call) -> str:
    x = c("self")
    return f"tl.where({x} > 0, {x}, {x} * {c('weight')})"


@register("elu.default")
def _elu(c: Call) -> str:
    need_floating(c)
    numbers = ", ".join(repr(float(c.value(name))) for name in ("alpha", "scale", "input_scale"))
    return f"elu({c('self')}, {numbers}, {c.dtype not in HALVES})"


@register("softplus.default")
def _softplus(c: Call) -> str:
    need_floating(c)
    return f"softplus({c('self')}, {float(c.value('beta'))!r}, {float(c.value('threshold'))!r})"


def _bounded(c: Call, low: str, high: str) -> str:
    """min(max(self, low), high); a NaN in ``self`` stays one."""
    need_number(c)
    text = c("self")
    for name, function in ((low, "larger"), (high, "smaller")):
        bound = c.value(name) if name else None
        if bound is not None:
            if isinstance(bound, float) and bound != bound:
                raise Unsupported("with a NaN as bound")
            text = f"{function}({text}, {c(name)})"
    return text


register("clamp.default clamp.Tensor")(lambda c: _bounded(c, "min", "max"))
register("hardtanh.default")(lambda c: _bounded(c, "min_val", "max_val"))
register("clamp_min.default clamp_min.Tensor")(lambda c: _bounded(c, "min", ""))
register("clamp_max.default clamp_max.Tensor")(lambda c: _bounded(c, "", "max"))
