"""shape: operators that move elements without changing them, and those that make or read shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..node import Call, Value
from ..numbers import LARGEST, Numbers, object_array, to_tensor


def _shape(call: Call) -> Value:
    sizes = list(call.inputs[0].shape)
    return Numbers(object_array(sizes[call.get("start", 0) : call.get("end", len(sizes))]), torch.int64)


def _size(call: Call) -> Value:
    return Numbers(object_array(math.prod(call.inputs[0].shape)), torch.int64)


def _identity(call: Call) -> Value:
    return call.inputs[0]


def _constant(call: Call) -> Value:
    """Only those the reader has not replaced: lists of numbers."""
    for name, dtype in (("value_int", torch.int64), ("value_ints", torch.int64), ("value_float", torch.float32), ("value_floats", torch.float32)):
        value = call.get(name)
        if value is not None:
            return Numbers(object_array(value), dtype)
    raise call.error(f"expected a tensor or numbers, got {', '.join(call.node.attributes) or 'nothing'}")


def _numbers_or(numbers: Callable[[Call, np.ndarray], np.ndarray], tensor: Callable[[Call, torch.Tensor], Value]) -> Callable[[Call], Value]:
    """An operator on one input: the same with numpy on known numbers as with torch on a tensor."""

    def run(call: Call) -> Value:
        known = call.numbers(0)
        return tensor(call, call.tensor(0)) if known is None else Numbers(numbers(call, known.values), known.dtype)

    return run


def _target_shape(call: Call, shape: tuple[Any, ...]) -> list[Any]:
    target = list(call.known(1, "shape"))
    if not call.get("allowzero", 0):
        target = [shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(target)]
    return target


_reshape = _numbers_or(
    lambda call, values: values.reshape(tuple(_target_shape(call, values.shape))),
    lambda call, value: value.reshape(_target_shape(call, tuple(value.shape))),
)


def _flatten(call: Call) -> Value:
    value, axis = call.tensor(0), call.get("axis", 1)
    axis = axis + value.dim() if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), math.prod(value.shape[axis:])) if axis in (0, value.dim()) or axis > 1 else value.flatten(1)


def _permutation(call: Call, rank: int) -> list[int]:
    return call.get("perm") or list(reversed(range(rank)))


_transpose = _numbers_or(
    lambda call, values: values.transpose(_permutation(call, values.ndim)), lambda call, value: value.permute(_permutation(call, value.dim()))
)


def _squeeze_tensor(call: Call, value: torch.Tensor) -> Value:
    axes = call.axes(1, value.dim())
    return value.squeeze(axes) if axes is not None else value.squeeze()


def _squeeze_numbers(call: Call, values: np.ndarray) -> np.ndarray:
    axes = call.axes(1, values.ndim)
    return object_array(list(values.flat), tuple(s for i, s in enumerate(values.shape) if (s != 1 if axes is None else i not in axes)))


def _unsqueezed(call: Call, rank: int) -> list[int]:
    count = len(call.get("axes") or call.known(1, "axes"))
    return sorted(call.axes(1, rank + count) or [])


def _unsqueeze_tensor(call: Call, value: torch.Tensor) -> Value:
    for axis in _unsqueezed(call, value.dim()):
        value = value.unsqueeze(axis)
    return value


def _unsqueeze_numbers(call: Call, values: np.ndarray) -> np.ndarray:
    return np.expand_dims(values, tuple(_unsqueezed(call, values.ndim)))


def _concat(call: Call) -> Value:
    axis = call.get("axis", 1)
    numbers = call.all_numbers()
    if numbers is not None and sum(n.values.size for n in numbers) <= LARGEST:
        return Numbers(np.concatenate([n.values for n in numbers], axis), numbers[0].dtype)
    tensors = call.tensors()
    return torch.cat(tensors, axis) if len(tensors) > 1 else tensors[0]


def _split(call: Call) -> Value:
    value = call.inputs[0]
    axis = call.get("axis", 0) % len(value.shape)
    sizes = call.get("split") or (call.known(1, "sizes") if call.has(1) else None)
    if sizes is None:
        count = call.get("num_outputs") or len(call.node.outputs)
        chunk = -(-value.shape[axis] // count) if call.opset >= 18 else value.shape[axis] // count
        sizes = [chunk] * (count - 1) + [value.shape[axis] - chunk * (count - 1)]
    if isinstance(value, Numbers):
        return tuple(Numbers(part, value.dtype) for part in np.split(value.values, np.cumsum(sizes)[:-1], axis))
    return tuple(torch.split(value, sizes, axis))


def _expand(call: Call) -> Value:
    target = call.known(1, "shape")
    known = call.numbers(0)
    if known is not None and all(isinstance(size, int) for size in target):
        shape = np.broadcast_shapes(known.shape, tuple(target))
        if math.prod(shape) <= LARGEST:
            return Numbers(np.broadcast_to(known.values, shape).copy(), known.dtype)
    value = call.tensor(0)
    # A size of 1 asked for keeps the input's: ONNX broadcasts both ways.
    return value.expand(torch.broadcast_shapes(value.shape, tuple(target)))


def _tile(call: Call) -> Value:
    repeats, known = call.known(1, "repeats"), call.numbers(0)
    if known is not None and all(isinstance(r, int) for r in repeats) and known.values.size * math.prod(repeats) <= LARGEST:
        return Numbers(np.tile(known.values, repeats), known.dtype)
    return call.tensor(0).repeat(repeats)


def _constant_of_shape(call: Call) -> Value:
    shape, value = call.known(0, "shape"), call.get("value")
    dtype = torch.float32 if value is None else value.dtype
    dtype = call.setting.converted.get(dtype, dtype)
    fill = 0.0 if value is None else value.flat()[0]
    if all(isinstance(size, int) for size in shape) and len(shape) <= 1 and math.prod(shape) <= LARGEST:
        return Numbers(object_array([fill] * math.prod(shape), tuple(shape)), dtype)
    return torch.full(shape, fill, dtype=dtype, device=call.device)


def _range(call: Call) -> Value:
    start, limit, delta = (call.known(i, name)[0] for i, name in enumerate(("start", "limit", "delta")))
    numbers = call.numbers(0)
    dtype = numbers.dtype if numbers is not None else torch.float32
    if all(isinstance(v, int) for v in (start, limit, delta)) and 0 <= (limit - start) / delta <= LARGEST:
        return Numbers(object_array(list(range(start, limit, delta))), dtype)
    if all(isinstance(v, (int, float)) for v in (start, limit, delta)):
        count = max(math.ceil((limit - start) / delta), 0)
        return torch.arange(count, dtype=dtype, device=call.device) * delta + start
    return torch.arange(start, limit, delta, dtype=dtype, device=call.device)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(call: Call) -> Value:
    value = call.tensor(0)
    rank, mode = value.dim(), call.get("mode", "constant")
    if mode not in _PAD_MODES:
        raise call.error(f"mode: expected one of {', '.join(_PAD_MODES)}, got {mode!r}")
    if call.opset < 11:
        pads, fill = call.get("pads"), call.get("value", 0.0)
    else:
        pads = call.known(1, "pads")
        fill = call.known(2, "constant_value")[0] if call.has(2) else 0
    axes = [int(a) % rank for a in call.known(3, "axes")] if call.has(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    if mode == "constant":
        flat = [size for axis in reversed(range(rank)) for size in (before[axis], after[axis])]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            del flat[-2:]
        return F.pad(value, flat, value=fill)
    for axis in range(rank):
        if _is_zero(before[axis]) and _is_zero(after[axis]):
            continue
        # torch pads so only the last dimensions: each axis in turn becomes the last one of three.
        moved = value.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])
        padded = F.pad(rows, (before[axis], after[axis]), mode=_PAD_MODES[mode])
        value = padded.reshape(*moved.shape[:-1], padded.shape[-1]).movedim(-1, axis)
    return value


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


def _depth_to_space(call: Call) -> Value:
    value, block = call.tensor(0), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(value, block)
    n, c, h, w = value.shape
    return value.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Value:
    value, block = call.tensor(0), call.get("blocksize")
    n, c, h, w = value.shape
    return value.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


def _trilu(call: Call) -> Value:
    diagonal = int(call.known(1, "k")[0]) if call.has(1) else 0
    return (torch.triu if call.get("upper", 1) else torch.tril)(call.tensor(0), diagonal)


def _eye_like(call: Call) -> Value:
    value = call.inputs[0]
    dtype = call.dtype(call.get("dtype")) if call.get("dtype") else value.dtype
    rows, columns = value.shape
    row, column = torch.arange(rows, device=call.device).unsqueeze(1), torch.arange(columns, device=call.device)
    return (column - row == call.get("k", 0)).to(dtype)


def _one_hot(call: Call) -> Value:
    depth, axis = int(call.known(1, "depth")[0]), call.get("axis", -1)
    off, on = call.tensor(2).unbind(0)
    indices = call.tensor(0).long()
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    # An index out of [-depth, depth) has no place: its row is all off.
    indices = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    places = torch.arange(depth, device=indices.device).reshape([-1 if d == axis else 1 for d in range(indices.dim())])
    return torch.where(indices == places, on, off)


def _non_zero(call: Call) -> Value:
    known = call.numbers(0)
    if known is not None and known.is_concrete:
        return Numbers(object_array([int(i) for axis in np.nonzero(known.values) for i in axis]).reshape(max(known.values.ndim, 1), -1), torch.int64)
    return torch.nonzero(call.tensor(0)).t()


def _sequence(call: Call) -> Value:
    return [list(call.inputs)]


def _sequence_at(call: Call) -> Value:
    return call.inputs[0][int(call.known(1, "position")[0])]


def _sequence_length(call: Call) -> Value:
    return Numbers(object_array(len(call.inputs[0])), torch.int64)


def _split_to_sequence(call: Call) -> Value:
    value, axis = call.tensor(0), call.get("axis", 0)
    if not call.has(1):
        parts = list(value.split(1, axis))
        return [parts if call.get("keepdims", 1) else [part.squeeze(axis) for part in parts]]
    sizes = call.known(1, "sizes")
    scalar = call.inputs[1].shape == ()
    return [list(value.split(sizes[0] if scalar else sizes, axis))]


def _concat_from_sequence(call: Call) -> Value:
    tensors = [to_tensor(v, call.device) if isinstance(v, Numbers) else v for v in call.inputs[0]]
    return (torch.stack if call.get("new_axis", 0) else torch.cat)(tensors, call.get("axis"))


def _if(call: Call) -> Value:
    condition = call.numbers(0)
    if condition is None:
        raise call.error("its condition is computed from a tensor's data; only conditions that follow from shapes and constants can be built")
    assert call.run is not None
    results = call.run("then_branch" if condition.values.item() else "else_branch")
    return tuple(results)


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _numbers_or(_squeeze_numbers, _squeeze_tensor),
    "Unsqueeze": _numbers_or(_unsqueeze_numbers, _unsqueeze_tensor),
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "NonZero": _non_zero,
    "SequenceConstruct": _sequence,
    "SequenceAt": _sequence_at,
    "SequenceLength": _sequence_length,
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
    "If": _if,
}
