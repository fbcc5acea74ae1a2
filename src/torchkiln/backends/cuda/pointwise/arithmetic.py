"""arithmetic: rules of sums, products, quotients, roundings, powers, exponentials and logarithms."""

from __future__ import annotations

import torch

from .rules import HALVES, Call, Rule, Unsupported, literal, need_floating, need_number, precise, register, register_table, unary


def _scaled(c: Call, name: str) -> str:
    alpha = c.value("alpha")
    return c(name) if alpha == 1 else f"{c(name)} * {literal(alpha, c.dtype)}"


@register("add.Tensor add.Scalar")
def _add(c: Call) -> str:
    if c.dtype == torch.bool:
        if c.value("alpha") != 1:
            raise Unsupported("of booleans with alpha")
        return f"{c('self')} | {c('other')}"
    return f"{c('self')} + {_scaled(c, 'other')}"


@register("sub.Tensor sub.Scalar")
def _sub(c: Call) -> str:
    need_number(c)
    return f"{c('self')} - {_scaled(c, 'other')}"


@register("rsub.Tensor rsub.Scalar")
def _rsub(c: Call) -> str:
    need_number(c)
    return f"{c('other')} - {_scaled(c, 'self')}"


@register("mul.Tensor mul.Scalar")
def _mul(c: Call) -> str:
    return f"{c('self')} {'&' if c.dtype == torch.bool else '*'} {c('other')}"


@register("div.Tensor div.Scalar true_divide.Tensor true_divide.Scalar")
def _div(c: Call) -> str:
    need_floating(c)
    other = c.value("other")
    if isinstance(other, (int, float)) and c.dtype in HALVES and 1e-30 < abs(other) < 1e30:
        return f"{c('self')} * {literal(1.0 / other, c.dtype)}"
    return f"divide({c('self')}, {c('other')}, {precise(c)})"


def _integer_division(form: str) -> Rule:
    def rule(c: Call) -> str:
        if c.dtype.is_floating_point or c.dtype == torch.bool:
            raise Unsupported(f"of {c.dtype} values")  # of floats it is exact only by a loop over the quotient's bits
        return form.format(c("self"), c("other"))

    return rule


@register("div.Tensor_mode div.Scalar_mode")
def _div_mode(c: Call) -> str:
    mode = c.value("rounding_mode")
    return _div(c) if mode is None else _integer_division("floor_divide({}, {})" if mode == "floor" else "{} // {}")(c)


register_table(
    {
        "floor_divide.default floor_divide.Scalar": "floor_divide({}, {})",
        "remainder.Tensor remainder.Scalar": "remainder({}, {})",
        "fmod.Tensor fmod.Scalar": "{} % {}",
    },
    _integer_division,
)


@register("neg.default")
def _neg(c: Call) -> str:
    need_number(c)
    return f"-{c('self')}"


@register("abs.default")
def _abs(c: Call) -> str:
    return c("self") if c.dtype in (torch.bool, torch.uint8) else f"tl.abs({c('self')})"


@register("sign.default")
def _sign(c: Call) -> str:
    if c.dtype == torch.bool:
        return c("self")
    x, zero, one = c("self", exact=True), literal(0, c.dtype), literal(1, c.dtype)
    return f"tl.where({x} > {zero}, {one}, {zero}) - tl.where({x} < {zero}, {one}, {zero})"


@register("clone.default _to_copy.default lift_fresh_copy.default")
def _copy(c: Call) -> str:
    return c("self", exact=not c.dtype.is_floating_point)


register_table(
    {
        "exp.default": "tl.exp({})",
        "exp2.default": "tl.exp2({})",
        "expm1.default": "expm1({})",
        "log.default": "tl.log({})",
        "log2.default": "tl.log2({})",
        "log1p.default": "log1p({})",
        "sqrt.default": "square_root({}, {p})",
        "rsqrt.default": "tl.rsqrt({})",
        "reciprocal.default": "divide(1.0, {}, {p})",
        "erf.default": "tl.erf({})",
        "sin.default": "tl.sin({})",
        "cos.default": "tl.cos({})",
    },
    unary,
)


def _rounding(form: str) -> Rule:
    return lambda c: form.format(c("self", exact=True)) if c.dtype.is_floating_point else c("self")


register_table(
    {
        "floor.default": "tl.floor({})",
        "ceil.default": "tl.ceil({})",
        "trunc.default": "truncate({})",
        "round.default": "round_to_even({})",
    },
    _rounding,
)


@register("pow.Tensor_Scalar")
def _pow(c: Call) -> str:
    need_number(c)
    x, exponent = c("self"), float(c.value("exponent"))
    if exponent == 0:
        return f"tl.where({x} == {x}, {literal(1, c.dtype)}, {literal(1, c.dtype)})"  # of x's shape; a NaN's power is 1 too
    if exponent.is_integer() and abs(exponent) <= 8 and (exponent > 0 or c.dtype.is_floating_point):
        power = " * ".join([x] * int(abs(exponent)))
        return power if exponent > 0 else f"divide(1.0, {power}, {precise(c)})"
    if exponent in (0.5, -0.5) and c.dtype.is_floating_point:
        return f"square_root({x}, {precise(c)})" if exponent > 0 else f"tl.rsqrt({x})"
    raise Unsupported(f"with the exponent {exponent}")


@register("square.default")
def _square(c: Call) -> str:
    need_number(c)
    return f"{c('self')} * {c('self')}"


@register("maximum.default")
def _maximum(c: Call) -> str:
    return f"{c('self')} | {c('other')}" if c.dtype == torch.bool else f"larger({c('self')}, {c('other')})"


@register("minimum.default")
def _minimum(c: Call) -> str:
    return f"{c('self')} & {c('other')}" if c.dtype == torch.bool else f"smaller({c('self')}, {c('other')})"
