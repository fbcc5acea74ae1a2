"""moments: the launches that make the moments of a "conv_moments" problem: of parts of its result, and of these together."""

from __future__ import annotations

from math import isqrt

import torch

from ..recipe import Kernel, Launch, Problem, TensorSpec
from .reduce import Dims, collapse, power_of_two

#: Elements of a tile of parts and channels: few registers, so that many loads are in flight.
_TILE = 2048


def combine_launch(problem: Problem, parts: int, scratch: dict[str, TensorSpec]) -> tuple[Launch, int]:
    """The launch from "scratch.parts" [N, parts, 3, C] to "y1", whose buffers are added to ``scratch``, and how many counters it takes."""
    batch, channels = problem.outputs[0].shape[:2]
    block_c = min(power_of_two(channels), 32)
    block_s = min(max(_TILE // block_c, 1), power_of_two(parts))
    # As many parts to a program as there are programs, about; a few tiles in all are not worth a second step.
    chunk = parts if parts <= 2 * block_s else block_s * -(-isqrt(parts) // block_s)
    chunks, blocks = -(-parts // chunk), -(-channels // block_c)
    operands = ["scratch.parts", "scratch.parts", "scratch.parts", "y1"]
    types = [torch.float32] * 4
    if chunks > 1:
        scratch["chunks"] = TensorSpec.contiguous((batch, chunks, 3, channels), torch.float32)
        operands[1:3] = ["scratch.chunks", "counters"]
        types[2] = torch.int32
    constants = (
        ("C", channels),
        ("PARTS", parts),
        ("CHUNK", chunk),
        ("BLOCK_S", block_s),
        ("BLOCK_C", block_c),
        ("PDL", problem.capability >= 90),
    )
    kernel = Kernel("moments:combine_moments", tuple(types), constants, num_warps=4)
    return Launch(kernel, (chunks, blocks, batch), tuple(operands)), batch * blocks if chunks > 1 else 0


def partial_launch(problem: Problem, scratch: dict[str, TensorSpec]) -> tuple[Launch, int]:
    """The launch that reads "y0" for "scratch.parts", which is added to ``scratch``, and the number of parts of an image."""
    y = problem.outputs[0]
    batch, channels = y.shape[:2]
    dims: Dims = collapse(y.shape[2:], y.strides[2:])
    block_c = min(power_of_two(channels), 64) if y.strides[1] == 1 else 1
    block_p = min(max(4096 // block_c, 1), power_of_two(dims.numel))
    parts = -(-dims.numel // block_p)
    scratch["parts"] = TensorSpec.contiguous((batch, parts, 3, channels), torch.float32)
    constants = (
        ("C", channels),
        ("P", dims.numel),
        ("XN", y.strides[0]),
        ("XC", y.strides[1]),
        *dims.constants("D", "XS"),
        ("BLOCK_P", block_p),
        ("BLOCK_C", block_c),
        ("PDL", problem.capability >= 90),
    )
    kernel = Kernel("moments:partial_moments", (y.dtype, torch.float32), constants, num_warps=4)
    return Launch(kernel, (parts, -(-channels // block_c), batch), ("y0", "scratch.parts")), parts
