"""graph_buckets: whether and how a batch can run as the first rows of a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .graph_capture import side_stream
from .graph_plan import Captured, Key

if TYPE_CHECKING:
    from ..backends.contract import Runner


def rows_of(key: Key) -> int | None:
    """Dimension 0, where all inputs have it and agree on it."""
    sizes = {shape[0] if shape else None for shape in key}
    return sizes.pop() if len(sizes) == 1 else None


def bucket_shapes(key: Key, bucket: int) -> Key | None:
    """The shapes with ``bucket`` rows; None for bucket 0."""
    return tuple(torch.Size((bucket, *shape[1:])) for shape in key) if bucket else None


def batched_outputs(call: Runner, captured: Captured, bucket: int, buckets: Sequence[int]) -> list[bool] | None:
    """For each output, whether dimension 0 (or the size itself) is the batch; None when the batch is anywhere else in an output.

    A dimension may have the batch's size by chance. So another bucket is tried, once, where there is one.
    """
    other = next((size for size in buckets if size != bucket), None)
    if other is None:
        return [_size_at_0(output) == bucket for output in captured.outputs]
    device = captured.inputs[0].device
    caller = torch.cuda.current_stream()
    side = side_stream(device)
    side.wait_stream(caller)
    with torch.cuda.stream(side):
        outputs = call([torch.zeros((other, *own.shape[1:]), dtype=own.dtype, device=device) for own in captured.inputs])
    caller.wait_stream(side)
    batched = []
    for one, two in zip(captured.outputs, outputs, strict=True):
        sizes, other_sizes = _sizes(one), _sizes(two)
        if sizes == other_sizes:
            batched.append(False)
        elif sizes[1:] == other_sizes[1:] and (_size_at_0(one), _size_at_0(two)) == (bucket, other):
            batched.append(True)
        else:
            return None
    return batched


def _sizes(output: Any) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else (output,)


def _size_at_0(output: Any) -> int | None:
    sizes = _sizes(output)
    return sizes[0] if sizes else None
