"""absorb_casts: what an operation writes for the nodes behind it: the dtype of a cast that alone reads it, the layout of an output of the graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Graph, Node

from ...lower.remove_redundant_casts import is_lossless
from .passes.match import FLOATS, dtype_of, is_cast
from .pointwise.regions import Region
from .recipe import Recipe, Ref, TensorSpec, TorchCall

#: Operators, by the beginnings of their names, whose tactics write a tensor of any strides.
_RESIZES = (
    "aten.upsample_nearest",
    "aten._upsample_nearest_exact",
    "aten.upsample_linear1d",
    "aten.upsample_bilinear2d",
    "aten.upsample_trilinear3d",
)
#: Those whose tactics write another float dtype than they read.
_CASTING = (*_RESIZES, "torchkiln.linear.", "torchkiln.conv.")

#: The operand of a reference that holds what the cast reads.
_NARROW = "scratch.narrow"


def absorbable_casts(graph: Graph, region_of: Mapping[Node, Region]) -> dict[Node, Node]:
    """The operations that may write the dtype of the cast after them -> that cast: to a wider float, the operation's only reader, and by itself
    in its region."""
    found = {}
    for node in graph.nodes:
        users = list(node.users)
        if len(users) != 1 or not str(node.target).startswith(_CASTING) or dtype_of(node) not in FLOATS:
            continue
        cast = users[0]
        if not is_cast(cast) or cast not in region_of or region_of[cast].nodes != (cast,):
            continue
        source, target = node.meta["val"].dtype, cast.meta["val"].dtype
        if source != target and is_lossless(source, target):
            found[node] = cast
    return found


def find_only_outputs(graph: Graph) -> set[Node]:
    """The nodes that nothing reads but the graph's output, which is contiguous."""
    return {node for node in graph.nodes if node.users and all(user.op == "output" for user in node.users)}


def is_resize(node: Node) -> bool:
    """Whether a node's tactic writes whatever strides it is given."""
    return str(node.target).startswith(_RESIZES) and dtype_of(node) in FLOATS


def pays(node: Node, spec: TensorSpec, is_only_output: bool) -> bool:
    """Whether a cast that could be absorbed should be.

    A result that is copied to a contiguous output anyway is cast in that copy; written in the wider dtype it would be more to read for it.

    Args:
        spec: what the operation would write.
        is_only_output: of the cast.
    """
    return is_resize(node) or not is_only_output or spec.is_contiguous


def with_cast(call: TorchCall, spec: TensorSpec, narrow: torch.dtype) -> Recipe:
    """The reference of an operation that has absorbed a cast: ``call`` in its own dtype, and the cast.

    Args:
        spec: of the result.
        narrow: the dtype of ``call``. What it gives is a scratch of the recipe, so that it is known in which precision the result is one.
    """
    first = TorchCall(call.op, call.args, call.kwargs, (_NARROW,))
    cast = TorchCall("aten._to_copy.default", (Ref(_NARROW),), (("dtype", spec.dtype),))
    return Recipe((first, cast), {_NARROW.removeprefix("scratch."): TensorSpec(spec.shape, spec.strides, narrow)})
