"""resize: Resize and Upsample with each of ONNX's coordinate rules, and sampling on grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ..node import Call, Value

_LINEAR = ["", "", "", "linear", "bilinear", "trilinear"]


def _upsample(call: Call) -> Value:
    value = call.tensor(0)
    scales = call.get("scales") or call.known(1, "scales")
    return _resize_axes(call, value, list(range(value.dim())), scales, None, "asymmetric", "floor")


def _resize(call: Call) -> Value:
    value = call.tensor(0)
    if call.opset < 11:
        return _resize_axes(call, value, list(range(value.dim())), call.known(1, "scales"), None, "asymmetric", "floor")
    axes = [a % value.dim() for a in call.get("axes") or range(value.dim())]
    scales = (call.known(2, "scales") or None) if call.has(2) else None
    sizes = (call.known(3, "sizes") or None) if call.has(3) else None
    if sizes is not None:
        scales = None
        sizes = _kept_ratio(call, [value.shape[a] for a in axes], sizes)
    elif scales is None:
        raise call.error("expected scales or sizes, got neither")
    coordinates = call.get("coordinate_transformation_mode", "half_pixel")
    return _resize_axes(call, value, axes, scales, sizes, coordinates, call.get("nearest_mode", "round_prefer_floor"))


def _kept_ratio(call: Call, inputs: list[Any], sizes: list[Any]) -> list[Any]:
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes
    ratios = [out / size for out, size in zip(sizes, inputs, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(size * ratio + 0.5) for size in inputs]


def _resize_axes(
    call: Call, value: torch.Tensor, axes: list[int], scales: list[Any] | None, sizes: list[Any] | None, coordinates: str, rounding: str
) -> torch.Tensor:
    mode = call.get("mode", "nearest")
    if coordinates == "tf_crop_and_resize":
        raise call.error("coordinate_transformation_mode tf_crop_and_resize is not supported")
    outs = sizes if sizes is not None else [math.floor(value.shape[a] * s) for a, s in zip(axes, scales or [], strict=True)]
    ratios = scales if scales is not None else [out / value.shape[a] for a, out in zip(axes, outs, strict=True)]
    changed = [i for i in range(len(axes)) if not _same(outs[i], value.shape[axes[i]], ratios[i])]
    if not changed:
        return value
    axes, outs, ratios = ([items[i] for i in changed] for items in (axes, outs, ratios))
    whole = _interpolate(call, value, axes, outs, ratios if scales is not None else None, mode, coordinates, rounding)
    if whole is not None:
        return whole
    if call.get("antialias", 0):
        raise call.error(f"antialias: expected an image, mode linear, half_pixel coordinates and exclude_outside=1, got {mode}, {coordinates}")
    for axis, out, ratio in zip(axes, outs, ratios, strict=True):
        value = _resize_axis(call, value, axis, out, ratio, mode, coordinates, rounding)
    return value


def _same(out: Any, size: Any, ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and ratio == 1 and (not isinstance(out, int) or not isinstance(size, int) or out == size)


def _interpolate(
    call: Call, value: torch.Tensor, axes: list[int], outs: list[Any], ratios: list[Any] | None, mode: str, coordinates: str, rounding: str
) -> torch.Tensor | None:
    """torch's own resize, where it has the same rule; else None."""
    spatial = list(range(2, value.dim()))
    if not 3 <= value.dim() <= 5 or any(a not in spatial for a in axes):
        return None
    shape, factors = list(value.shape[2:]), [1.0] * len(spatial)
    for i, axis in enumerate(axes):
        shape[axis - 2] = outs[i]
        factors[axis - 2] = ratios[i] if ratios is not None else 1.0
    target: dict[str, Any] = {"size": shape} if ratios is None else {"scale_factor": factors}
    half = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and not any(_is(out, 1) for out in outs))
    antialias = bool(call.get("antialias", 0))
    if antialias and not call.get("exclude_outside", 0):
        return None  # torch leaves out what lies outside; the other rule repeats the edge
    if mode == "nearest" and coordinates == "asymmetric" and rounding == "floor":
        return F.interpolate(value, mode="nearest", **target)
    if mode == "nearest" and half and rounding == "round_prefer_ceil":
        return F.interpolate(value, mode="nearest-exact", **target)
    if mode == "linear" and half and not (antialias and value.dim() != 4):
        return F.interpolate(value, mode=_LINEAR[value.dim()], align_corners=False, antialias=antialias, **target)
    if mode == "linear" and coordinates == "align_corners" and not antialias:
        return F.interpolate(value, size=shape, mode=_LINEAR[value.dim()], align_corners=True)
    usual = call.get("cubic_coeff_a", -0.75) == -0.75 and not call.get("exclude_outside", 0) and not antialias
    if mode == "cubic" and value.dim() == 4 and usual and (half or coordinates == "align_corners"):
        if half:
            return F.interpolate(value, mode="bicubic", align_corners=False, **target)
        return F.interpolate(value, size=shape, mode="bicubic", align_corners=True)
    return None


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _source(call: Call, value: torch.Tensor, axis: int, out: Any, ratio: Any, coordinates: str) -> torch.Tensor:
    """Where each element of the result lies on the input's axis."""
    size = value.shape[axis]
    x = torch.arange(out, dtype=torch.float32, device=value.device)
    half = (x + 0.5) / ratio - 0.5
    match coordinates:
        case "half_pixel":
            return half
        case "pytorch_half_pixel":
            return x * 0 if _is(out, 1) else half
        case "align_corners":
            return x * 0 if _is(out, 1) else x * ((size - 1) / (out - 1))
        case "asymmetric":
            return x / ratio
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / ratio
        case "half_pixel_symmetric":
            return half + size / 2 * (1 - out / (ratio * size))
    raise call.error(f"coordinate_transformation_mode {coordinates!r} is not supported")


_ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _resize_axis(call: Call, value: torch.Tensor, axis: int, out: Any, ratio: Any, mode: str, coordinates: str, rounding: str) -> torch.Tensor:
    last = value.shape[axis] - 1
    x = _source(call, value, axis, out, ratio, coordinates)

    def take(index: torch.Tensor) -> torch.Tensor:
        return value.index_select(axis, index.clamp(0, last).long())

    def spread(weight: torch.Tensor) -> torch.Tensor:
        return weight.to(value.dtype).reshape([-1 if d == axis else 1 for d in range(value.dim())])

    if mode == "nearest":
        return take(_ROUNDINGS[rounding](x))
    low = torch.floor(x)
    if mode == "linear":
        x = x.clamp(0, last)
        low = torch.floor(x)
        return take(low) * spread(1 - (x - low)) + take(low + 1) * spread(x - low)
    if mode != "cubic":
        raise call.error(f"mode: expected nearest, linear or cubic, got {mode!r}")
    a = call.get("cubic_coeff_a", -0.75)
    weights = []
    for tap in range(-1, 3):
        d = (x - low - tap).abs()
        weights.append(torch.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a))
    if call.get("exclude_outside", 0):
        weights = [torch.where((low + t < 0) | (low + t > last), 0.0, w) for t, w in zip(range(-1, 3), weights, strict=True)]
        total = weights[0] + weights[1] + weights[2] + weights[3]
        weights = [w / total for w in weights]
    terms = [take(low + t) * spread(w) for t, w in zip(range(-1, 3), weights, strict=True)]
    return terms[0] + terms[1] + terms[2] + terms[3]


_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(call: Call) -> Value:
    mode = call.get("mode", "bilinear" if call.opset < 20 else "linear")
    padding, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), _GRID_MODES.get(mode, mode), padding, corners)


def _affine_grid(call: Call) -> Value:
    return F.affine_grid(call.tensor(0), call.known(1, "size"), bool(call.get("align_corners", 0)))


OPERATORS: dict[str, Callable[[Call], Value]] = {"Resize": _resize, "Upsample": _upsample, "GridSample": _grid_sample, "AffineGrid": _affine_grid}
