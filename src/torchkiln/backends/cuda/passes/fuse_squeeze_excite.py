"""fuse_squeeze_excite: the gates of squeeze-and-excite blocks become one op or by-products, and their products operands of convolutions."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import conv as _conv  # noqa: F401  (registers the operators)
from ....fused_ops import conv_excite as _conv_excite  # noqa: F401
from ....fused_ops import squeeze_excite as _squeeze_excite  # noqa: F401
from ....lower.graph_edit import call_functions, constant_of, insert_call, insert_constant
from ....lower.remove_dead_code import remove_dead_code
from ..is_matrix_product import is_matrix_product
from .emit import emit, put
from .match import FLOATS, Refused, activation_of, arguments_of, dtype_of, is_cast, reject, shape_of, widened

aten = torch.ops.aten

_CONV = torch.ops.torchkiln.conv.default
_CONV_EXCITE = torch.ops.torchkiln.conv_excite.default
_GATES = (aten.sigmoid.default, aten.hardsigmoid.default)


def fuse_squeeze_excite(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of gates, gating convolutions and scaled convolutions made.

    * mean over (2, 3) -> 1x1 convolution -> activation -> 1x1 convolution -> sigmoid or hardsigmoid becomes ``torchkiln.squeeze_excite``;
    * or, where the mean is that of a depthwise convolution, with or without activation, convolution and gate become ``torchkiln.conv_excite``;
    * the product with the gate, where a 1x1 convolution of stride 1 alone reads it, becomes the scale of ``torchkiln.conv``.

    What is refused is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    graph_module.meta.setdefault("rejects", [])
    count = 0
    for node in call_functions(graph_module, *_GATES):
        try:
            block = _match(node)
        except Refused as refused:
            reject(graph_module, node, str(refused))
            continue
        if block is not None:
            count += _rewrite(graph_module, block)
    remove_dead_code(graph_module)
    graph_module.recompile()
    return count


@dataclass
class _Block:
    """The steps from a pooled activation to its gate."""

    pooled: Node
    first: Node
    activation: str
    second: Node
    gate: Node


def _match(gate: Node) -> _Block | None:
    """The block that ends in ``gate``; None when nothing is pooled."""
    second: Any = gate.args[0]
    if not _is_on_pixel(second):
        return None
    hidden: Any = second.args[0]
    found = activation_of(hidden)
    first: Any = hidden.args[0] if found is not None else hidden
    if not _is_on_pixel(first):
        return None
    pool = first.args[0]
    if is_cast(pool):
        pool = pool.args[0]
    pooled = _pooled(pool)
    if pooled is None:
        return None
    if dtype_of(gate) not in FLOATS or any(dtype_of(node) != dtype_of(gate) for node in (first, second, pooled)):
        raise Refused(f"a gate in {dtype_of(gate)} of an activation in {dtype_of(pooled)}")
    if found is not None and found[0] == "leaky_relu":
        raise Refused("leaky_relu between the convolutions")
    if shape_of(second)[1] != shape_of(pooled)[1]:  # kernels take as many for granted
        raise Refused(f"{shape_of(second)[1]} gates of {shape_of(pooled)[1]} channels")
    for node in (first, hidden, second):
        if len(node.users) != 1:
            raise Refused(f"{node.name} has {len(node.users)} users")
    for node in (first, second):
        _check_pointwise(node)
    return _Block(pooled, first, found[0] if found is not None else "none", second, gate)


def _is_on_pixel(node: Any) -> bool:
    """A convolution of [N, C, 1, 1] to the same."""
    if not isinstance(node, Node) or node.target is not aten.convolution.default:
        return False
    return len(shape_of(node)) == 4 and shape_of(node)[2:] == (1, 1) and shape_of(node.args[0])[2:] == (1, 1)


def _pooled(pool: Any) -> Node | None:
    """What ``pool`` is the mean of over dimensions 2 and 3; None when it is no such mean."""
    if not isinstance(pool, Node) or len(shape_of(pool)) != 4:
        return None
    if pool.target is aten.adaptive_avg_pool2d.default and shape_of(pool)[2:] == (1, 1):
        return widened(pool.args[0])
    if pool.target is aten.mean.dim:
        given = arguments_of(pool)
        if given["keepdim"] and {dim % 4 for dim in given["dim"]} == {2, 3}:
            return widened(given["self"])
    return None


def _check_pointwise(node: Node) -> None:
    _, weight, bias, _, padding, _, transposed, _, groups = node.args
    if transposed or groups != 1 or shape_of(weight)[2:] != (1, 1) or any(padding):  # type: ignore[arg-type]
        raise Refused(f"{node.name} is no plain 1x1 convolution")
    if constant_of(weight) is None:
        raise Refused(f"the weight of {node.name} is computed")
    if bias is not None and len(shape_of(bias)) != 1:
        raise Refused(f"the bias of {node.name} is {list(shape_of(bias))}")


def _rewrite(graph_module: GraphModule, block: _Block) -> int:
    """Replace the block's gate, and what it can of the mean before and the products after. Returns the number of rewrites."""
    gate, first, second = block.gate, block.first, block.second
    batch, channels = shape_of(gate)[:2]
    # All before what is pooled: the convolution that makes it may take them.
    layers = tuple(read(graph_module, node, before=block.pooled) for node in (first, second) for read in (_as_matrix, _bias))
    names = (block.activation, activation_of(gate)[0])  # type: ignore[index]
    excited = _excite_in_convolution(graph_module, block.pooled, layers, names)
    in_convolution = excited is not None
    if excited is None:
        mean = insert_call(graph_module, aten.mean.dim, (block.pooled, [2, 3]), {"dtype": torch.float32}, before=gate)
        excited = insert_call(graph_module, torch.ops.torchkiln.squeeze_excite.default, (mean, *layers, *names), before=gate)
    view = insert_call(graph_module, aten.view.default, (excited, [batch, channels, 1, 1]), before=gate)
    put(graph_module, gate, view)
    return 1 + in_convolution + sum(_scale_convolution(graph_module, user, view) for user in list(view.users))


def _as_matrix(graph_module: GraphModule, conv: Node, before: Node) -> Node:
    """The weight [R, C, 1, 1] of a convolution as a constant [R, C]."""
    weight: Any = conv.args[1]
    constant = constant_of(weight)
    assert constant is not None
    return insert_constant(graph_module, f"{weight.target}_2d", constant.flatten(1), before=before)


def _bias(graph_module: GraphModule, conv: Node, before: Node) -> Any:
    """The bias of a convolution, read before a node where it is a constant; None where there is none."""
    bias: Any = conv.args[2]
    constant = constant_of(bias)
    return bias if constant is None else insert_constant(graph_module, str(bias.target), constant, before=before)


def _excite_in_convolution(graph_module: GraphModule, y: Node, layers: tuple[Any, ...], names: tuple[str, str]) -> Node | None:
    """The gates [N, C] as a by-product of the depthwise convolution that makes ``y``, itself replaced; None when none does.

    layers: weight and bias of each of the two layers; names: of the activations after them.
    """
    found = activation_of(y)
    conv: Any = y.args[0] if found is not None else y
    if not isinstance(conv, Node) or conv.target is not aten.convolution.default or (found is not None and len(conv.users) != 1):
        return None
    x, weight, bias, stride, padding, dilation, transposed, _, groups = conv.args
    if transposed or groups == 1 or not shape_of(x)[1] == shape_of(conv)[1] == groups or len(shape_of(conv)) != 4:
        return None
    if any(layer is not None and constant_of(layer) is None for layer in layers):
        reject(graph_module, y, "a bias of the gate is computed: the convolution does not wait for it")
        return None
    args = (x, weight, bias, *layers, stride, padding, dilation, groups, *(found or ("none", 0.0)), *names)
    both = insert_call(graph_module, _CONV_EXCITE, args, before=y)
    result = insert_call(graph_module, operator.getitem, (both, 0), before=y)
    gates = insert_call(graph_module, operator.getitem, (both, 1), before=y)
    put(graph_module, y, result)
    return gates


def _scale_convolution(graph_module: GraphModule, product: Node, gate: Node) -> bool:
    """Let the 1x1 convolution that alone reads ``product`` = x * gate scale its input itself."""
    if product.target is not aten.mul.Tensor:
        return False
    x = product.args[1] if product.args[0] is gate else product.args[0]
    if not isinstance(x, Node) or x is gate or shape_of(x) != shape_of(product) or not dtype_of(x) == dtype_of(product) == dtype_of(gate):
        return False
    if shape_of(gate)[1] != shape_of(x)[1]:
        return False
    if len(product.users) != 1:
        reject(graph_module, product, f"the gated activation has {len(product.users)} users")
        return False
    (conv,) = product.users
    if conv.target is not aten.convolution.default or conv.args[0] is not product:
        reject(graph_module, product, f"{conv.name} reads the gated activation: no convolution")
        return False
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = conv.args
    if not is_matrix_product(shape_of(weight), stride, padding, transposed, groups):  # type: ignore[arg-type]
        reject(graph_module, product, f"{conv.name} reads the gated activation: not 1x1 with stride 1, ungrouped")
        return False
    args = (x, weight, bias, None, gate, stride, padding, dilation, transposed, output_padding, groups, "none", 0.0)
    emit(graph_module, conv, _CONV, args)
    graph_module.graph.erase_node(product)
    return True
