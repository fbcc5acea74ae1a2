"""convert_affine: weights as torchao's ``quantize_`` leaves them, as integers with a dequantize.

Two forms: ``torchao::dequantize_affine`` of constants (IntxWeightOnlyConfig, 1 to 8 bits, by channel or by group), and a product with integers that
are cast, whose result is scaled (Int8WeightOnlyConfig). A constant that becomes a dequantize here stays in its few bits: fold_constants, which
runs later, would make it floating. Raises UserError for a ``dequantize_affine`` that no dequantize of the dialect says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from ..errors import UserError
from ..quantized_ops import register_quantized_ops
from .graph_edit import constant_of, insert_call, insert_constant, is_same_size, replace

aten = torch.ops.aten
#: What a product with cast integers computes in to become a layer with scales in float32: in others the numbers would not be the same.
_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)


def convert_affine(graph_module: GraphModule) -> int:
    """Returns the number of weights converted."""
    converted = 0
    for node in list(graph_module.graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._schema.name == "torchao::dequantize_affine":
            _convert_dequantize(graph_module, node)
            converted += 1
        elif node.target is aten.mul.Tensor and len(node.args) == 2:
            converted += _convert_scaled_product(graph_module, node)
    if converted:
        graph_module.recompile()
    return converted


def _convert_dequantize(graph_module: GraphModule, node: Node) -> None:
    given: dict[str, Any] = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    integers, scale, zero = constant_of(given["input"]), constant_of(given["scale"]), constant_of(given.get("zero_point"))
    low, high = given.get("quant_min"), given.get("quant_max")
    block = list(given["block_size"])
    where = f"node {node.name}: torchao::dequantize_affine"
    if integers is None or scale is None or (given.get("zero_point") is not None and zero is None):
        raise UserError(f"{where}: expected a weight and scales that are constants, got computed ones: activations are quantized with torchao's PT2E")
    info = torch.iinfo(torch.int8)
    if integers.dtype is not torch.int8 or not isinstance(low, int) or not isinstance(high, int) or low < info.min or high > info.max:
        raise UserError(f"{where}: expected integers of at most 8 bits in int8, got {integers.dtype} from {low} to {high}: leave this layer floating")
    if zero is not None and not bool((zero == zero.round()).all()):
        raise UserError(f"{where}: expected zero points that are integers, got floating ones: say a mapping type with integer zero points")
    if integers.dim() != 2 or len(block) != 2 or block[0] != 1 or integers.shape[1] % block[1]:
        raise UserError(f"{where}: expected a matrix with a scale for each row, or for each group of a row, got blocks of {block}")
    ops, dtype = register_quantized_ops(), node.meta["val"].dtype
    rows, name = integers.shape[0], str(given["input"].target)
    zeros = (zero if zero is not None else torch.zeros_like(scale)).to(torch.int64)
    if block[1] == integers.shape[1]:
        parts = [_constant(graph_module, node, f"{name}_{part}", value.reshape(rows)) for part, value in (("scales", scale), ("zeros", zeros))]
        kwargs = {} if dtype is torch.float32 else {"out_dtype": dtype}
        floats = insert_call(
            graph_module, ops.dequantize_per_channel.default, (given["input"], *parts, 0, low, high, torch.int8), kwargs, before=node
        )
    else:
        spread = _constant(graph_module, node, f"{name}_scales", scale.reshape(rows, -1))
        shift = _constant(graph_module, node, f"{name}_zeros", zeros.reshape(rows, -1)) if bool((zeros != 0).any()) else None
        arguments = (given["input"], spread, shift, low, high, torch.int8, block[1], dtype)
        floats = insert_call(graph_module, ops.dequantize_per_channel_group.default, arguments, before=node)
    replace(node, floats)


def _convert_scaled_product(graph_module: GraphModule, node: Node) -> bool:
    """``mm(x, cast(t(integers))) * scales`` as a linear layer of the dequantized weight."""
    product, spread = node.args
    if not isinstance(product, Node) or product.target is not aten.mm.default or len(product.users) != 1 or not isinstance(spread, Node):
        return False
    cast = product.args[1]
    turned = cast.args[0] if isinstance(cast, Node) and cast.target is aten._to_copy.default else None
    if not isinstance(turned, Node) or turned.target not in (aten.t.default, aten.permute.default, aten.transpose.int):
        return False
    weight, scales = turned.args[0], _constant_behind_views(spread)
    integers = constant_of(weight)
    if integers is None or scales is None or integers.dtype is not torch.int8 or integers.dim() != 2 or scales.numel() != integers.shape[0]:
        return False
    result = node.meta["val"]
    dtype = product.meta["val"].dtype
    if dtype not in _COMPUTED:
        return False
    if spread.meta["val"].dim() != 1 or dtype is not result.dtype or not is_same_size(result.shape[-1], integers.shape[0]):
        return False
    assert isinstance(weight, Node)
    parts = [
        _constant(graph_module, node, f"{weight.target}_{name}", value)
        for name, value in (("scales", scales.reshape(-1).float()), ("zeros", torch.zeros(scales.numel(), dtype=torch.int64, device=scales.device)))
    ]
    kwargs = {} if dtype is torch.float32 else {"out_dtype": dtype}
    ops = register_quantized_ops()
    floats = insert_call(graph_module, ops.dequantize_per_channel.default, (weight, *parts, 0, -128, 127, torch.int8), kwargs, before=node)
    replace(node, insert_call(graph_module, aten.linear.default, (product.args[0], floats), before=node))
    return True


def _constant_behind_views(node: Node) -> torch.Tensor | None:
    while isinstance(node.target, OpOverload) and (node.target.is_view or node.target is aten._to_copy.default):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return constant_of(node)


def _constant(graph_module: GraphModule, node: Node, name: str, value: torch.Tensor) -> Node:
    return insert_constant(graph_module, name, value.contiguous(), before=node)
