"""precision_rules: in which precision each operator of a float32 graph computes when the engine may use fp16 or bf16.

Three kinds of operator:

* LOW: the matrix multiplications and convolutions. They hold the time, and accumulate in float32 by themselves.
* WIDE: float32 islands. Their results would overflow, or lose too much, in low precision.
* FOLLOW: everything else goes where its inputs are.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves


class Rule(Enum):
    LOW = "low"
    WIDE = "wide"
    FOLLOW = "follow"


_LOW = {
    "convolution",
    "linear",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "matmul",
    "mv",
    "dot",
    "embedding",
    "scaled_dot_product_attention",  # its kernels keep scores and softmax in float32
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "lstm",
    "gru",
}

#: Reductions: they sum many values, and give few, so that keeping the result in float32 costs nothing.
REDUCTIONS = {
    "sum",
    "mean",
    "prod",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
}

_WIDE = REDUCTIONS | {
    # Softmax and norms: sums of exponentials and of squares.
    "softmax",
    "_softmax",
    "_safe_softmax",
    "log_softmax",
    "_log_softmax",
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "native_group_norm",
    "instance_norm",
    "rms_norm",
    "_fused_rms_norm",
    "batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    # Running sums.
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "_cdist_forward",
    "cdist",
    # Functions whose result leaves the range of fp16 for ordinary arguments.
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "pow",
    "reciprocal",
    "rsqrt",
    "sinh",
    "cosh",
    "tan",
    "erfinv",
    "lgamma",
    "digamma",
    # Sampling coordinates: half a pixel is lost beyond a thousand.
    "grid_sampler_2d",
    "grid_sampler_3d",
    "_grid_sampler_2d_cpu_fallback",
    "affine_grid_generator",
}
_WIDE_PREFIXES = ("linalg_", "_linalg_", "_fft_", "fft_")

#: Operators that make a tensor of one number; it takes the precision of what it meets.
_FILLS = {"full", "full_like", "new_full", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "scalar_tensor"}


def rule_of(node: Node) -> Rule:
    """The rule for a ``call_function`` node. Operators of other libraries, and higher-order ones, are WIDE: what they take is not known."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return Rule.WIDE
    name = _name_of(target)
    if states_dtype(node) or _touches_other_floats(node):
        return Rule.WIDE
    if name in _LOW:
        return Rule.LOW
    if name in _WIDE or name.startswith(_WIDE_PREFIXES) or _is_quotient(node, name):
        return Rule.WIDE
    return Rule.FOLLOW


def _is_quotient(node: Node, name: str) -> bool:
    """A division by a tensor that is computed: like the reciprocal. By a number, or a constant, it is a factor."""
    return name in ("div", "true_divide") and isinstance(node.args[1], Node) and node.args[1].op != "get_attr"


def is_reduction(node: Node) -> bool:
    return _name_of(node.target) in REDUCTIONS


def is_fill(node: Node) -> bool:
    return _name_of(node.target) in _FILLS


def _name_of(target: Any) -> str:
    """``aten.add.Tensor`` -> ``"add"``; empty for what is no operator of a library."""
    return target._schema.name.split("::")[1] if isinstance(target, OpOverload) else ""


def states_dtype(node: Node) -> bool:
    """Whether the model itself says what dtype the result has: a cast, or a ``dtype=`` argument."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == "dtype":
            value = node.args[position] if position < len(node.args) and not argument.kwarg_only else node.kwargs.get("dtype")
            return value is not None
    return False


def _touches_other_floats(node: Node) -> bool:
    """Whether floating tensors of another dtype than float32 take part, or complex ones: those dtypes are the model's own choice.

    A single float64 number does not count: it does not decide the dtype of a result.
    """
    values = [v for n in (*node.all_input_nodes, node) for v in tensors_of(n.meta.get("val"))]
    return any(v.dtype.is_complex or (v.dtype.is_floating_point and v.dtype != torch.float32 and v.dim() > 0) for v in values)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in what a node computes."""
    return [v for v in tree_leaves(value) if isinstance(v, torch.Tensor)]
