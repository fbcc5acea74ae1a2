"""logic: rules of comparisons, logical and bitwise operators and selections."""

from __future__ import annotations

import torch

from .rules import Call, Rule, Unsupported, literal, register


def _comparison(symbol: str) -> Rule:
    def rule(c: Call) -> str:
        dtype = c.common()
        if dtype == torch.bool:  # a one-bit True is -1 to a signed comparison
            dtype = torch.int8
        return f"{c('self', dtype, exact=True)} {symbol} {c('other', dtype, exact=True)}"

    return rule


def _logical(symbol: str) -> Rule:
    return lambda c: f"{c('self', torch.bool, exact=True)} {symbol} {c('other', torch.bool, exact=True)}"


def _bitwise(symbol: str) -> Rule:
    return lambda c: f"{c('self')} {symbol} {c('other')}"


for _symbol, _name in {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}.items():
    register(f"{_name}.Tensor {_name}.Scalar")(_comparison(_symbol))
for _symbol, _name in {"&": "and", "|": "or", "^": "xor"}.items():
    register(f"logical_{_name}.default")(_logical(_symbol))
    register(f"bitwise_{_name}.Tensor bitwise_{_name}.Scalar")(_bitwise(_symbol))


@register("logical_not.default")
def _logical_not(c: Call) -> str:
    return f"{c('self', torch.bool, exact=True)} == {literal(False, torch.bool)}"


@register("bitwise_not.default")
def _bitwise_not(c: Call) -> str:
    return f"{c('self')} ^ {literal({torch.bool: 1, torch.uint8: 255}.get(c.dtype, -1), c.dtype)}"


@register("isnan.default")
def _isnan(c: Call) -> str:
    x = c("self", c.own_dtype("self"))
    return f"{x} != {x}"


@register("isinf.default")
def _isinf(c: Call) -> str:
    dtype = c.own_dtype("self")
    if not dtype.is_floating_point:
        raise Unsupported(f"of {dtype} values")
    return f"tl.abs({c('self', dtype, exact=True)}) == {literal(float('inf'), dtype)}"


@register("where.self where.ScalarOther where.ScalarSelf where.Scalar")
def _where(c: Call) -> str:
    return f"tl.where({c('condition', torch.bool)}, {c('self')}, {c('other')})"


@register("masked_fill.Scalar masked_fill.Tensor")
def _masked_fill(c: Call) -> str:
    return f"tl.where({c('mask', torch.bool)}, {c('value')}, {c('self')})"
