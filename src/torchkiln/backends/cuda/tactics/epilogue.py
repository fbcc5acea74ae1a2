"""epilogue: the launch that adds bias, residual and activation to a library's result, and how such rows of channels lie in memory."""

from __future__ import annotations

from ..recipe import FLOATS, Config, Kernel, Launch, Problem, TensorSpec, channels_last_strides
from .conv_geometry import row_stride, uniform_rows

#: Offsets are 32-bit, and the last block reaches past the end.
MAX_SPAN = 2**31 - 2**16
_BLOCKS = (512, 1024, 2048, 4096)


def dense_channels_last(spec: TensorSpec) -> bool:
    """Whether [N, C, *spatial] lies densely with the channels innermost; strides of dimensions of one element do not matter."""
    return all(n == 1 or a == b for n, a, b in zip(spec.shape, spec.strides, channels_last_strides(spec.shape), strict=True))


def rows_of(spec: TensorSpec, op: str) -> TensorSpec:
    """As rows of channels: [N, C, *spatial] of a "conv" with its channels last, the tensor of a "linear" as it is."""
    if op == "linear":
        return spec
    order = (0, *range(2, len(spec.shape)), 1)
    return TensorSpec(tuple(spec.shape[i] for i in order), tuple(spec.strides[i] for i in order), spec.dtype)


def walks_by_rows(rows: TensorSpec) -> bool:
    """Whether one stride goes from row to row and the channels of a row are next to each other."""
    return uniform_rows(rows) and (rows.strides[-1] == 1 or rows.shape[-1] == 1)


def flat_rows(spec: TensorSpec, op: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(shape, strides) of a tensor for which ``walks_by_rows`` as [rows, channels]."""
    rows = rows_of(spec, op)
    return (rows.numel // rows.shape[-1], rows.shape[-1]), (row_stride(rows), 1)


def epilogue_reject(problem: Problem) -> str:
    """Why ``epilogue_launch`` cannot finish the problem; "" when it can."""
    bias, residual = problem.inputs[2:4]
    y = problem.outputs[0]
    for name, spec in (("the residual", residual), ("the output", y)):
        if spec is None:
            continue
        if spec.dtype not in FLOATS:
            return f"{name} is {spec.dtype}: expected fp16, bf16 or fp32"
        if spec.span > MAX_SPAN:
            return f"{name} has {spec.span} elements from first to last: offsets are 32-bit"
        if not walks_by_rows(rows_of(spec, problem.op)):
            return f"{name}: strides {spec.strides} are not rows of channels"
    if residual is not None and residual.shape != y.shape:
        return f"the residual is {residual.shape}, the output {y.shape}"
    if bias is not None and (bias.dtype not in FLOATS or (bias.strides[0] != 1 and bias.shape[0] != 1)):
        return f"the bias is {bias.dtype} with stride {bias.strides[0]}: expected a dense fp16, bf16 or fp32"
    return ""


def epilogue_blocks(problem: Problem) -> list[int]:
    """Elements of a program, best guess first: the most that still gives every multiprocessor two programs of four warps each."""
    elements = problem.outputs[0].numel
    fitting = [block for block in _BLOCKS if elements // block >= 2 * problem.multiprocessors]
    best = fitting[-1] if fitting else _BLOCKS[0]
    return [best, *sorted((block for block in _BLOCKS if block != best), key=lambda block: abs(block.bit_length() - best.bit_length()))]


def epilogue_launch(problem: Problem, config: Config, operand: str, spec: TensorSpec) -> Launch:
    """y0 = activation(operand + bias + residual). ``operand`` (laid out as ``spec``) may be "y0": in place.

    Args:
        config: ``block``: one of ``epilogue_blocks``.
    """
    bias, residual = problem.inputs[2:4]
    y = problem.outputs[0]
    (rows, channels), (y_stride, _) = flat_rows(y, problem.op)
    constants = {
        "N": rows * channels,
        "C": channels,
        "XR": flat_rows(spec, problem.op)[1][0],
        "RR": channels if residual is None else flat_rows(residual, problem.op)[1][0],
        "YR": y_stride,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": problem.attributes["activation"],
        "ALPHA": float(problem.attributes["alpha"]),
        "BLOCK": config["block"],
        "PDL": problem.capability >= 90,
    }
    pointers = (spec.dtype, spec.dtype if bias is None else bias.dtype, spec.dtype if residual is None else residual.dtype, y.dtype)
    kernel = Kernel("epilogue:bias_residual_activation", pointers, tuple(constants.items()), num_warps=4 if config["block"] > 512 else 2)
    operands = (operand, operand if bias is None else "x2", operand if residual is None else "x3", "y0")
    return Launch(kernel, (-(-rows * channels // config["block"]), 1, 1), operands)
