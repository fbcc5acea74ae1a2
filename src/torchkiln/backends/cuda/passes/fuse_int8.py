"""fuse_int8: convolutions and products of quantized tensors with int8 weights become ``torchkiln::int8_conv`` and ``int8_linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import int8 as _int8  # noqa: F401  (registers the operators)
from ....lower.graph_edit import call_functions, constant_of, insert_constant
from ....lower.remove_dead_code import remove_dead_code
from ....quantized_ops import is_dequantize as is_torch_dequantize
from ....quantized_ops import read_quantization
from .emit import emit
from .match import FLOATS, Refused, arguments_of, dtype_of, is_cast, reject, shape_of
from .quantization import grid_of, insert_read, is_dequantize

aten = torch.ops.aten

INT8_CONV = torch.ops.torchkiln.int8_conv.default
INT8_LINEAR = torch.ops.torchkiln.int8_linear.default

#: How the reason begins of a layer that its weight says is int8, and that is not.
NOT_INT8 = "not in int8: "

#: Sums of more products than this may not fit 32 bits: each is up to 2**14.
MAX_PRODUCTS = 2**17 - 1

_PRODUCTS = (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)
_TURNS = (aten.t.default, aten.transpose.int, aten.permute.default)


def fuse_int8(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of layers.

    A layer computes in int8 when its input is dequantized by one scale, its weight is a constant of int8 with a scale for each output channel (or
    one), and all zero points are 0. The scales are multiplied, in float32, and the weight is kept in 8 bits. What takes part in the result after
    the sums comes later: see fuse_int8_epilogues.

    A layer with a quantized weight that is refused stays as it is, and (node, reason) is appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for node in call_functions(graph_module, aten.convolution.default, *_PRODUCTS):
        weight = _weight_of(node)
        if _source(weight) is None:
            continue
        try:
            if node.target is aten.convolution.default:
                _fuse_conv(graph_module, node)
            else:
                _fuse_product(graph_module, node)
        except Refused as refused:
            reject(graph_module, node, f"{NOT_INT8}{refused}")
            continue
        count += 1
    if count:
        remove_dead_code(graph_module)
        graph_module.recompile()
    return count


def _fuse_conv(graph_module: GraphModule, node: Node) -> None:
    given = arguments_of(node)
    if given["transposed"]:
        raise Refused("a transposed convolution")
    if given["groups"] != 1:
        raise Refused(f"a convolution in {given['groups']} groups")
    if len(shape_of(node)) not in (3, 4, 5):
        raise Refused(f"x has {len(shape_of(node))} dimensions: expected 3, 4 or 5, with the batch")
    integers, scale = _input(node, given["input"])
    bias = _bias(given["bias"])
    weight, scales = _weight(graph_module, node, given["weight"], scale, axis=0)
    geometry = [given[name] for name in ("stride", "padding", "dilation")]
    emit(graph_module, node, INT8_CONV, (integers, weight, scales, bias, None, None, None, *geometry, "none", 0.0, -128, 127, dtype_of(node)))


def _fuse_product(graph_module: GraphModule, node: Node) -> None:
    given = arguments_of(node)
    bias: Any = given.get("bias")
    if node.target is aten.addmm.default:
        if given["beta"] != 1 or given["alpha"] != 1:
            raise Refused(f"factors beta {given['beta']}, alpha {given['alpha']}")
        bias = given["self"]
        if shape_of(bias) != shape_of(node)[1:]:
            raise Refused(f"it adds {list(shape_of(bias))} to {list(shape_of(node))}")
    x = given["mat1"] if node.target is aten.addmm.default else given["input" if node.target is aten.linear.default else "self"]
    if len(shape_of(x)) < 2 or len(shape_of(_weight_of(node))) != 2:
        raise Refused(f"a product of {len(shape_of(x))} and {len(shape_of(_weight_of(node)))} dimensions: expected a matrix as its weight")
    integers, scale = _input(node, x)
    bias = _bias(bias)
    weight, scales = _weight(graph_module, node, _weight_of(node), scale, axis=0 if node.target is aten.linear.default else 1)
    emit(graph_module, node, INT8_LINEAR, (integers, weight, scales, bias, None, None, None, "none", 0.0, -128, 127, dtype_of(node)))


def _weight_of(node: Node) -> Any:
    given = arguments_of(node)
    return given[next(name for name in ("weight", "mat2", "other") if name in given)]


def _source(weight: Any) -> Node | None:
    """The dequantize of a constant that ``weight`` is, behind a cast and transpositions; None for anything else."""
    while isinstance(weight, Node) and (is_cast(weight) or weight.target in _TURNS):
        weight = weight.args[0]
    return weight if is_torch_dequantize(weight) and constant_of(read_quantization(weight).source) is not None else None


def _input(node: Node, x: Any) -> tuple[Node, float]:
    """(integers, scale) of the layer's input."""
    grid = grid_of(x)
    if not is_dequantize(x) or grid is None:
        raise Refused("its input is not quantized")
    if not grid.is_symmetric:
        raise Refused(f"its input is {grid.dtype} with the zero point {grid.zero_point}: kernels take torch.int8 with 0")
    if dtype_of(node) not in FLOATS:
        raise Refused(f"it computes in {dtype_of(node)}")
    return x.args[0], grid.number


def _bias(bias: Any) -> Any:
    if bias is not None and (dtype_of(bias) not in FLOATS or len(shape_of(bias)) != 1):
        raise Refused(f"a bias of {dtype_of(bias)}, {list(shape_of(bias))}")
    return bias


def _weight(graph_module: GraphModule, node: Node, weight: Any, input_scale: float, axis: int) -> tuple[Node, Node]:
    """The weight as int8 [out, in, *kernel], and float32 [out]: the scale of its channel times that of the input.

    Args:
        axis: the dimension of ``weight`` that is the output channel.
    """
    source = _source(weight)
    assert source is not None
    grid = read_quantization(source)
    integers = constant_of(grid.source)
    assert integers is not None
    if integers.dtype is not torch.int8:
        raise Refused(f"its weight is {integers.dtype}, not torch.int8")
    if grid.group_size is not None:
        raise Refused(f"its weight has a scale for every {grid.group_size} inputs")
    scale, zero_point = _values(grid.scale), _values(grid.zero_point)
    if scale is None or zero_point is None or bool((zero_point != 0).any()):
        raise Refused("its weight has zero points other than 0, or scales that are computed")
    if _is_turned(weight):
        axis = 1 - axis
    if integers.numel() > MAX_PRODUCTS * integers.shape[axis]:
        raise Refused(f"sums of {integers.numel() // integers.shape[axis]} products, which may not fit 32 bits")
    if grid.axis is not None and grid.axis % integers.dim() != axis:
        raise Refused(f"its weight has a scale for each index of dimension {grid.axis}, not of the output channels")
    name = str(grid.source.target)
    if axis == 0:
        kept = insert_read(graph_module, name, before=node)
    else:
        kept = insert_constant(graph_module, f"{name}_transposed", integers.t().contiguous(), before=node)
    scales = torch.tensor(input_scale, dtype=torch.float32, device=integers.device) * scale.to(integers.device, torch.float32)
    scales = scales.expand(integers.shape[axis]).contiguous()
    return kept, insert_constant(graph_module, f"{name}_factors", scales, before=node)


def _values(part: Any) -> torch.Tensor | None:
    """A scale or zero point, a number or a constant, as a tensor; None for one that is computed."""
    return torch.tensor(part) if isinstance(part, (int, float)) else constant_of(part)


def _is_turned(weight: Any) -> bool:
    """Whether transpositions between the constant and the layer exchange its two dimensions."""
    turned = False
    while isinstance(weight, Node) and (is_cast(weight) or weight.target in _TURNS):
        if weight.target in _TURNS:
            if len(shape_of(weight)) != 2:
                raise Refused("its weight is transposed in the graph")
            turned ^= weight.target is not aten.permute.default or [int(d) % 2 for d in weight.args[1]] == [1, 0]  # type: ignore[arg-type, union-attr]
        weight = weight.args[0]
    return turned
