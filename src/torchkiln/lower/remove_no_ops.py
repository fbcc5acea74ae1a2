"""remove_no_ops: operators that return what they were given, and assertions that the captured types already prove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .graph_edit import constant_of, is_same_size, is_same_sizes, replace, users_of_output

aten = torch.ops.aten


def remove_no_ops(graph_module: GraphModule) -> int:
    """Returns the number of operators removed."""
    removed = 0
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if _is_proven(node):
            graph_module.graph.erase_node(node)
            removed += 1
            continue
        source = _source_of_no_op(node)
        if source is not None:
            replace(node, source)
            removed += 1
    if removed:
        graph_module.recompile()
    return removed


def _source_of_no_op(node: Node) -> Node | None:
    """The node that ``node`` is equal to, or None."""
    rule = _RULES.get(node.target)
    if rule is None or not rule(node):
        return None
    source = node.args[0]
    if isinstance(source, (list, tuple)):  # cat
        source = source[0]
    if not isinstance(source, Node) or (users_of_output(node) and source.op in ("placeholder", "get_attr")):
        return None  # without the operator, the caller would get a tensor of ours, or the one it passed
    return source


def _always(node: Node) -> bool:
    return True


def _is_copy_of_same(node: Node) -> bool:
    """The copy has its source's type and layout. A copy that the caller gets stays: it is what makes the output the caller's own."""
    return _has_same_layout(node) and not users_of_output(node)


def _has_same_layout(node: Node) -> bool:
    """Same dtype, device, sizes and strides as the first argument."""
    return _has_same_type(node) and is_same_sizes(_value(node).stride(), _value(node.args[0]).stride())


def _has_same_type(node: Node) -> bool:
    """Same dtype, device and sizes as the first argument."""
    if not isinstance(node.args[0], Node):
        return False
    after, before = _value(node), _value(node.args[0])
    return after.dtype == before.dtype and after.device == before.device and is_same_sizes(after.shape, before.shape)


def _is_eval_dropout(node: Node) -> bool:
    probability: Any = node.args[1]
    training: Any = node.args[2]
    return training is False or probability == 0


def _is_identity_permute(node: Node) -> bool:
    rank = _value(node).dim()
    dims: Any = node.args[1]
    return [d % max(rank, 1) for d in dims] == list(range(rank))


def _is_whole_slice(node: Node) -> bool:
    step: Any = node.args[4] if len(node.args) > 4 else 1
    return step == 1 and _has_same_type(node)


def _adds_zero(node: Node) -> bool:
    return _has_same_type(node) and _number(node.args[1]) == 0


def _multiplies_by_one(node: Node) -> bool:
    return _number(node.args[1]) == 1 and _has_same_type(node)


def _divides_by_one(node: Node) -> bool:
    return _number(node.args[1]) == 1 and _has_same_type(node) and not node.kwargs.get("rounding_mode")


def _pads_nothing(node: Node) -> bool:
    amounts: Any = node.args[1]
    return all(isinstance(a, int) and a == 0 for a in amounts)


def _rolls_nothing(node: Node) -> bool:
    shifts: Any = node.args[1]
    return all(isinstance(s, int) and s == 0 for s in ([shifts] if isinstance(shifts, int) else shifts))


def _joins_one(node: Node) -> bool:
    tensors: Any = node.args[0]
    return len(tensors) == 1


def _number(value: Any) -> float | None:
    """``value`` if it is a number, or the one element of a constant."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    constant = constant_of(value)
    if constant is None or constant.numel() != 1 or constant.is_complex():
        return None
    return constant.item()


def _value(node: Any) -> Any:
    return node.meta["val"]


#: Operator -> whether a call of it returns its first argument.
_RULES: dict[Any, Callable[[Node], bool]] = {
    aten.alias.default: _always,
    aten.detach.default: _always,
    aten.detach_.default: _always,
    aten.lift_fresh_copy.default: _always,
    aten.lift.default: _always,
    aten.dropout.default: _is_eval_dropout,
    aten.feature_dropout.default: _is_eval_dropout,
    aten.alpha_dropout.default: _is_eval_dropout,
    aten.clone.default: _is_copy_of_same,
    aten.contiguous.default: _has_same_layout,
    aten._to_copy.default: _is_copy_of_same,
    aten.view.default: _has_same_type,
    aten._unsafe_view.default: _has_same_type,
    aten.reshape.default: _has_same_type,
    aten.expand.default: _has_same_type,
    aten.squeeze.dims: _has_same_type,
    aten.squeeze.dim: _has_same_type,
    aten.squeeze.default: _has_same_type,
    aten.permute.default: _is_identity_permute,
    aten.slice.Tensor: _is_whole_slice,
    aten.repeat.default: _is_copy_of_same,
    aten.cat.default: _joins_one,
    aten.constant_pad_nd.default: _pads_nothing,
    aten.pad.default: _pads_nothing,
    aten.roll.default: _rolls_nothing,
    # Adaptive pooling to the size that is already there: each window is one element.
    aten.adaptive_avg_pool1d.default: _has_same_type,
    aten.adaptive_avg_pool2d.default: _has_same_type,
    aten._adaptive_avg_pool2d.default: _has_same_type,
    aten._adaptive_avg_pool3d.default: _has_same_type,
    aten.add.Tensor: _adds_zero,
    aten.add.Scalar: _adds_zero,
    aten.sub.Tensor: _adds_zero,
    aten.sub.Scalar: _adds_zero,
    aten.mul.Tensor: _multiplies_by_one,
    aten.mul.Scalar: _multiplies_by_one,
    aten.div.Tensor: _divides_by_one,
    aten.div.Scalar: _divides_by_one,
    aten.pow.Tensor_Scalar: _divides_by_one,
}


def _is_proven(node: Node) -> bool:
    """Whether ``node`` asserts what the captured values already say."""
    if node.target is aten._assert_scalar.default:
        return _is_true(node.args[0])
    if node.target is aten._assert_tensor_metadata.default:
        return _fits_metadata(node)
    return False


def _is_true(condition: Any) -> bool:
    value = condition.meta["val"] if isinstance(condition, Node) else condition
    return is_same_size(value, True) if isinstance(value, (bool, torch.SymBool)) else False


def _fits_metadata(node: Node) -> bool:
    names = ("a", "size", "stride", "dtype", "device", "layout")
    stated: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    value = _value(stated["a"])
    for sizes, actual in ((stated.get("size"), value.shape), (stated.get("stride"), value.stride())):
        if sizes is not None and not is_same_sizes([_value(s) if isinstance(s, Node) else s for s in sizes], actual):
            return False
    if stated.get("dtype") not in (None, value.dtype) or stated.get("layout") not in (None, value.layout):
        return False
    return stated.get("device") is None or torch.device(stated["device"]) == value.device
