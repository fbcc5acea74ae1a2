"""convolution: convolutions and pooling, with ONNX's ways to pad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..node import Call, Value

_CONV: list[Any] = [None, F.conv1d, F.conv2d, F.conv3d]
_CONV_TRANSPOSE: list[Any] = [None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
_MAX_POOL: list[Any] = [None, F.max_pool1d, F.max_pool2d, F.max_pool3d]
_AVERAGE_POOL: list[Any] = [None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


def _check_rank(call: Call, value: torch.Tensor) -> int:
    """The number of spatial dimensions, 1 to 3. Raises ModelSourceError."""
    rank = value.dim() - 2
    if not 1 <= rank <= 3:
        raise call.error(f"expected an input of 3 to 5 dimensions (batch, channels, 1 to 3 sizes), got {value.dim()}")
    return rank


def _pads(call: Call, sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """What is added before and after each spatial dimension."""
    rank = len(kernel)
    mode = call.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            out = (size + stride - 1) // stride
            total = torch.sym_max((out - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            less = total // 2
            before.append(less if mode == "SAME_UPPER" else total - less)
            after.append(total - less if mode == "SAME_UPPER" else less)
        return before, after
    pads = call.get("pads") or [0] * (2 * rank)
    return pads[:rank], pads[rank:]


def _pad(value: torch.Tensor, before: Sequence[Any], after: Sequence[Any], fill: float = 0.0) -> torch.Tensor:
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(value, flat, value=fill) if any(not isinstance(p, int) or p for p in flat) else value


def convolve(call: Call, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Conv, with the attributes of ``call``'s node."""
    rank = _check_rank(call, value)
    kernel = list(weight.shape[2:])
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = _pads(call, value.shape[2:], kernel, strides, dilations)
    if all(isinstance(b, int) and b == a for b, a in zip(before, after, strict=True)):
        return _CONV[rank](value, weight, bias, strides, before, dilations, call.get("group", 1))
    return _CONV[rank](_pad(value, before, after), weight, bias, strides, 0, dilations, call.get("group", 1))


def _conv(call: Call) -> Value:
    return convolve(call, call.tensor(0), call.tensor(1), call.optional(2))


def _conv_transpose(call: Call) -> Value:
    value, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = _check_rank(call, value)
    kernel = list(weight.shape[2:])
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    extra = call.get("output_padding") or [0] * rank
    shape = call.get("output_shape")
    mode = call.get("auto_pad", "NOTSET")
    if shape is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for d in range(rank):
            full = (value.shape[2 + d] - 1) * strides[d] + extra[d] + (kernel[d] - 1) * dilations[d] + 1
            total = full - (shape[d] if shape is not None else value.shape[2 + d] * strides[d])
            less = total // 2
            before.append(total - less if mode != "SAME_UPPER" else less)
            after.append(less if mode != "SAME_UPPER" else total - less)
    else:
        pads = call.get("pads") if mode != "VALID" else None
        before, after = (pads[:rank], pads[rank:]) if pads else ([0] * rank, [0] * rank)
    groups = call.get("group", 1)
    same = all(isinstance(b, int) and isinstance(a, int) and b == a >= 0 for b, a in zip(before, after, strict=True))
    if same and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return _CONV_TRANSPOSE[rank](value, weight, bias, strides, before, extra, groups, dilations)
    # torch pads both ends alike and less than a stride: compute the whole and cut (or extend) it.
    result = _CONV_TRANSPOSE[rank](value, weight, bias, strides, 0, 0, groups, dilations)
    if bias is None or all(e <= a for e, a in zip(extra, after, strict=True)):
        return _pad(result, [-b for b in before], [e - a for e, a in zip(extra, after, strict=True)])
    bare = _pad(
        _CONV_TRANSPOSE[rank](value, weight, None, strides, 0, 0, groups, dilations),
        [-b for b in before],
        [e - a for e, a in zip(extra, after, strict=True)],
    )
    return bare + bias.reshape(-1, *[1] * rank)


def _max_pool(call: Call) -> Value:
    value = call.tensor(0)
    rank = _check_rank(call, value)
    kernel = call.get("kernel_shape")
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = _pads(call, value.shape[2:], kernel, strides, dilations)
    ceil = bool(call.get("ceil_mode", 0))
    wants_indices = len([name for name in call.node.outputs if name]) > 1
    even = all(isinstance(b, int) and b == a and b * 2 <= k for b, a, k in zip(before, after, kernel, strict=True))
    if wants_indices:
        return _max_pool_with_indices(call, value, kernel, strides, before, dilations, ceil, even)
    if even:
        return _MAX_POOL[rank](value, kernel, strides, before, dilations, ceil)
    lowest = -math.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
    return _MAX_POOL[rank](_pad(value, before, after, lowest), kernel, strides, 0, dilations, ceil)


def _max_pool_with_indices(
    call: Call, value: torch.Tensor, kernel: list[int], strides: list[int], pads: list[Any], dilations: list[int], ceil: bool, even: bool
) -> Value:
    if not even or call.get("storage_order", 0):
        raise call.error("the indices of a maximum are supported for equal padding and storage_order 0 only")
    rank = len(kernel)
    result, within = _MAX_POOL[rank](value, kernel, strides, pads, dilations, ceil, return_indices=True)
    # torch counts within one channel, ONNX from the tensor's start.
    planes = value.shape[0] * value.shape[1]
    size = math.prod(value.shape[2:])
    offset = torch.arange(planes, device=value.device).reshape(value.shape[0], value.shape[1], *[1] * rank) * size
    return result, within + offset


def _average_pool(call: Call) -> Value:
    value = call.tensor(0)
    rank = _check_rank(call, value)
    kernel = call.get("kernel_shape")
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = _pads(call, value.shape[2:], kernel, strides, dilations)
    ceil, count_pads = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    even = all(isinstance(b, int) and b == a and b * 2 <= k for b, a, k in zip(before, after, kernel, strict=True))
    if any(d != 1 for d in dilations):
        if ceil:
            raise call.error("dilations together with ceil_mode are not supported")
        return _dilated_average(value, kernel, strides, before, after, dilations, count_pads)
    if even:
        return _AVERAGE_POOL[rank](value, kernel, strides, before, ceil, count_pads)
    total = _AVERAGE_POOL[rank](_pad(value, before, after), kernel, strides, 0, ceil, True)
    if count_pads:
        return total
    share = _AVERAGE_POOL[rank](_pad(torch.ones_like(value[:1, :1]), before, after), kernel, strides, 0, ceil, True)
    return total / share


def _dilated_average(
    value: torch.Tensor, kernel: list[int], strides: list[int], before: list[Any], after: list[Any], dilations: list[int], count_pads: bool
) -> torch.Tensor:
    channels = value.shape[1]
    ones = torch.ones(channels, 1, *kernel, dtype=value.dtype, device=value.device)
    conv = _CONV[len(kernel)]
    total = conv(_pad(value, before, after), ones, None, strides, 0, dilations, channels)
    if count_pads:
        return total / math.prod(kernel)
    count = conv(_pad(torch.ones_like(value[:1, :1]), before, after), ones[:1], None, strides, 0, dilations)
    return total / count


def _lp_pool(call: Call) -> Value:
    value = call.tensor(0)
    rank = _check_rank(call, value)
    kernel, power = call.get("kernel_shape"), call.get("p", 2)
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    if call.get("ceil_mode", 0):
        raise call.error("ceil_mode is not supported")
    before, after = _pads(call, value.shape[2:], kernel, strides, dilations)
    ones = torch.ones(value.shape[1], 1, *kernel, dtype=value.dtype, device=value.device)
    total = _CONV[rank](_pad(value.abs().pow(power), before, after), ones, None, strides, 0, dilations, value.shape[1])
    return total.pow(1 / power)


def _spatial(value: torch.Tensor) -> list[int]:
    return list(range(2, value.dim()))


def _global_average_pool(call: Call) -> Value:
    value = call.tensor(0)
    return F.adaptive_avg_pool2d(value, 1) if value.dim() == 4 else value.mean(_spatial(value), keepdim=True)


def _global_max_pool(call: Call) -> Value:
    value = call.tensor(0)
    return torch.amax(value, _spatial(value), keepdim=True)


def _global_lp_pool(call: Call) -> Value:
    value, power = call.tensor(0), call.get("p", 2)
    return value.abs().pow(power).sum(_spatial(value), keepdim=True).pow(1 / power)


def _col2im(call: Call) -> Value:
    image, block = tuple(call.known(1, "image shape")), tuple(call.known(2, "block shape"))
    rank = len(block)
    pads = call.get("pads") or [0] * (2 * rank)
    if rank != 2 or pads[:2] != pads[2:]:
        raise call.error(f"expected 2 spatial dimensions with equal padding, got {rank} and {pads}")
    dilations, strides = tuple(call.get("dilations") or (1, 1)), tuple(call.get("strides") or (1, 1))
    return F.fold(call.tensor(0), image, block, dilations, tuple(pads[:2]), strides)


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "GlobalLpPool": _global_lp_pool,
    "Col2Im": _col2im,
}
