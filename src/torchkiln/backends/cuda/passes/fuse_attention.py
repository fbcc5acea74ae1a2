"""fuse_attention: ``scaled_dot_product_attention``, and attention written out as products around a softmax, become ``torchkiln::attention``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....fused_ops import attention as _attention  # noqa: F401  (registers the operator)
from ....lower.graph_edit import call_functions, constant_of, fake_mode_of, insert_call, insert_constant
from ....lower.remove_dead_code import remove_dead_code
from ..recipe import FLOATS
from .emit import can_view, copy_of, put

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)


class _Refused(Exception):
    """Why what looks like attention stays as it is."""


def fuse_attention(graph_module: GraphModule) -> int:
    """Rewrite ``graph_module`` in place; returns the number of attentions found.

    Fused are calls of ``scaled_dot_product_attention`` and chains softmax(scale * q k^T + up to two addends) v of which nobody else reads a step;
    the addends may see the batch as [images, windows], as those of a Swin block. Scores are then rounded nowhere, which is at least as exact.

    What looks like attention but is refused is left as it is, and (node, reason) appended to ``graph_module.meta["rejects"]``.
    """
    rejects = graph_module.meta.setdefault("rejects", [])
    rewriter = _Rewriter(graph_module)
    count = 0
    for node in call_functions(graph_module, aten.scaled_dot_product_attention.default, *_SOFTMAXES):
        try:
            count += rewriter.rewrite_softmax(node) if node.target in _SOFTMAXES else rewriter.rewrite_sdpa(node)
        except _Refused as refused:
            rejects.append((node, str(refused)))
    if count or rejects:  # a refusal may leave a node behind that nobody reads
        remove_dead_code(graph_module)
        graph_module.graph.lint()
        graph_module.recompile()
    return count


@dataclass
class _Scores:
    """What was found between a product and its softmax.

    Attributes:
        operands: q and k^T.
        scale: the numbers that the product is multiplied with.
        gates: the tensors that it is multiplied with.
        addends: what is added, the last one first. Like a gate with the shape that the scores had there.
        shapes: the shapes that the scores had on their way.
    """

    operands: tuple[Node, Node]
    scale: float = 1.0
    gates: list[tuple[Node, tuple[int, ...]]] = field(default_factory=list)
    addends: list[tuple[Node, tuple[int, ...]]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


class _Rewriter:
    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.constants: dict[tuple[Any, tuple[int, ...]], str] = {}
        """(attribute, shape) -> the attribute that is it in that shape, so that layers which share a mask still do."""

    def rewrite_sdpa(self, node: Node) -> int:
        arguments: dict[str, Any] = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args, strict=False)) | node.kwargs
        q, k, v = arguments["query"], arguments["key"], arguments["value"]
        mask, scale = arguments.get("attn_mask"), arguments.get("scale")
        if arguments.get("dropout_p", 0.0) != 0.0:
            raise _Refused(f"dropout {arguments['dropout_p']}")
        leading = _leading(q)
        if len(leading) not in (1, 2):
            raise _Refused(f"q has {len(leading) + 2} dimensions: expected 3 or 4")
        _check(q, k, v, leading)
        if scale is None:
            scale = _shape(q)[-1] ** -0.5
        batch = (1, *leading) if len(leading) == 1 else leading
        addend = None
        if mask is not None:
            scores = (*leading, _shape(q)[-2], _shape(k)[-2])
            addend = self._addend(self._mask_of_sdpa(mask, node), scores, batch, node)
        q, k, v = (self._view_as(x, (*batch, *_shape(x)[-2:]), node) for x in (q, k, v))
        self._emit(node, (q, k, v, addend, None, float(scale), bool(arguments.get("is_causal", False))))
        return 1

    def rewrite_softmax(self, softmax: Node) -> int:
        path = _path_to_product(softmax)
        if not path:
            return 0
        *steps, result = path
        if any(not isinstance(size, int) for size in _shape(softmax)):
            raise _Refused(f"dynamic shapes {list(_shape(softmax))}")
        found = _scores_before(softmax)
        if found is None:
            return 0  # weights that are no scores: of a pooling, say
        for step in steps:
            if len(step.users) != 1:
                raise _Refused(f"{step.name} has {len(step.users)} users: attention does not write its weights")
            if step.meta["val"].dtype not in FLOATS or _shape(step)[-2:] != _shape(softmax)[-2:]:
                raise _Refused(f"{step.name} between softmax and product changes more than the batch")
        if softmax.args[1] not in (-1, softmax.meta["val"].dim() - 1):
            raise _Refused(f"softmax over dimension {softmax.args[1]}, not the last")
        if len(found.addends) > 2:
            raise _Refused(f"{len(found.addends)} addends to the scores: the op takes two")
        q, keys = found.operands
        v = _node(result.args[1])
        leading = _leading(q)
        if len(leading) not in (1, 2):
            raise _Refused(f"q has {len(leading) + 2} dimensions: expected 3 or 4")
        batch = leading if len(leading) == 2 else next((s[:2] for s in found.shapes if len(s) == 4), (1, *leading))
        q, factor = _unscaled(q)
        keys, factor_of_keys = _unscaled(keys)
        k, factor_of_k = _unscaled(self._transposed(keys, result))
        _check(q, k, v, leading)
        if _leading(steps[-1]) != leading:
            raise _Refused(f"weights {list(_shape(steps[-1]))} and v {list(_shape(v))} broadcast")
        if result.meta["val"].dtype != q.meta["val"].dtype:
            raise _Refused(f"the result is {result.meta['val'].dtype}, q is {q.meta['val'].dtype}")
        addends: list[Node | None] = [self._addend(addend, shape, batch, result) for addend, shape in reversed(found.addends)]
        addends += [None] * (2 - len(addends))
        for gate, shape in found.gates:
            q = self._gated(q, gate, shape, result)
        views = [self._view_as(x, (*batch, *_shape(x)[-2:]), result) for x in (q, k, v)]
        self._emit(result, (*views, *addends, found.scale * factor * factor_of_keys * factor_of_k, False))
        return 1

    def _gated(self, q: Node, gate: Node, scores: tuple[int, ...], before: Node) -> Node:
        """q times the factor of each head that its scores are multiplied with (a Swin V2 block's)."""
        shape = (*[1] * (len(scores) - len(_shape(gate))), *_shape(gate))
        fits = scores[:-2] == _leading(q) and len(shape) == len(scores) and all(n in (1, m) for n, m in zip(shape[:-2], scores[:-2], strict=True))
        if not fits or shape[-2:] != (1, 1) or gate.meta["val"].dtype != q.meta["val"].dtype:
            raise _Refused(f"the scores {list(scores)} are multiplied with {gate.name}, {gate.meta['val'].dtype} {list(_shape(gate))}")
        return insert_call(self.graph_module, aten.mul.Tensor, (q, gate), before=before)

    def _mask_of_sdpa(self, mask: Node, before: Node) -> Node:
        """An additive mask. ``scaled_dot_product_attention`` gives 0 for a row that is hidden entirely, where softmax gives NaN."""
        constant = constant_of(mask)
        if constant is None:
            raise _Refused("the mask is computed: a row hidden entirely would give NaN and not 0")
        hidden = ~constant if constant.dtype == torch.bool else constant.isneginf()
        if hidden.all(-1).any():
            raise _Refused("the mask hides a row entirely, which gives NaN and not 0")
        if constant.dtype != torch.bool:
            return mask
        additive = torch.zeros(constant.shape, device=constant.device).masked_fill(hidden, -math.inf).to(before.meta["val"].dtype)
        return insert_constant(self.graph_module, f"{mask.target}_additive", additive, before=before)

    def _addend(self, addend: Node, scores: tuple[int, ...], batch: tuple[int, ...], before: Node) -> Node:
        """``addend``, broadcast to scores of that shape, as the op takes it: [W, H or 1, S or 1, T or 1]."""
        value = addend.meta["val"]
        if value.dtype not in FLOATS:
            raise _Refused(f"{addend.name}, added to the scores, is {value.dtype}")
        if value.dim() > len(scores):
            raise _Refused(f"{addend.name} has more dimensions than the scores it is added to")
        own = (*[1] * (len(scores) - value.dim()), *value.shape)
        items, heads = batch
        shape: tuple[int, ...] | None
        if len(scores) == 3:
            shape = (1, *own) if own[0] == 1 else (*batch, *own[1:])
        elif len(scores) == 4 and tuple(scores[:2]) == tuple(batch):
            shape = own
        elif len(scores) == 5 and scores[2] == heads and scores[0] * scores[1] == items and own[0] == 1:
            shape = own[1:]
        elif len(scores) == 5 and scores[2] == heads and scores[0] * scores[1] == items and own[1] == scores[1]:
            shape = (own[0] * own[1], *own[2:])
        else:
            shape = None
        if shape is None:
            raise _Refused(f"{addend.name} {list(value.shape)} is added to scores {list(scores)} of {items} items with {heads} heads")
        return self._view_as(addend, shape, before)

    def _view_as(self, x: Node, shape: tuple[int, ...], before: Node) -> Node:
        """``x`` in another shape: a constant as another constant, so that it stays one; anything else through a view."""
        if _shape(x) == shape:
            return x
        constant = constant_of(x)
        if constant is not None:
            key = (x.target, shape)
            if key in self.constants:
                with self.graph_module.graph.inserting_before(before):
                    node = self.graph_module.graph.get_attr(self.constants[key])
                node.meta["val"] = fake_mode_of(self.graph_module).from_tensor(constant.detach().reshape(shape), static_shapes=True)
                return node
            node = insert_constant(self.graph_module, f"{x.target}_4d", constant.reshape(shape), before=before)
            self.constants[key] = str(node.target)
            return node
        if not can_view(x, shape):
            x = copy_of(self.graph_module, x, before)
        return insert_call(self.graph_module, aten.view.default, (x, list(shape)), before=before)

    def _transposed(self, keys: Node, before: Node) -> Node:
        """k [.., T, D] of the product's k^T [.., D, T]; the transposition before it, where there is one, is taken back."""
        rank = keys.meta["val"].dim()
        swap = [*range(rank - 2), rank - 1, rank - 2]
        if keys.target is aten.permute.default and [d % rank for d in _ints(keys.args[1])] == swap:
            return _node(keys.args[0])
        if keys.target is aten.transpose.int and {d % rank for d in _ints(keys.args[1:])} == {rank - 2, rank - 1}:
            return _node(keys.args[0])
        return insert_call(self.graph_module, aten.permute.default, (keys, swap), before=before)

    def _emit(self, node: Node, arguments: tuple[Any, ...]) -> None:
        """Put the fused call in the place of ``node``, whose shape it is given."""
        fused = insert_call(self.graph_module, torch.ops.torchkiln.attention.default, arguments, before=node)
        replacement = self._view_as(fused, _shape(node), node)
        put(self.graph_module, node, replacement)


def _scores_before(softmax: Node) -> _Scores | None:
    """The steps from a product to the softmax; None when there is no product."""
    node: Any = softmax.args[0]
    found = _Scores((softmax, softmax))
    while True:
        if not _comes_of_product(node):
            return None
        if len(node.users) != 1:
            raise _Refused(f"{node.name}, scores, has {len(node.users)} users")
        found.shapes.append(_shape(node))
        target, args = node.target, node.args
        if target in _PRODUCTS:
            found.operands = (_node(args[0]), _node(args[1]))
            return found
        if target is aten.baddbmm.default:
            beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
            if beta not in (0, 1) or (beta == 1 and _is_scaled(found)):
                raise _Refused(f"the addend of {node.name} is scaled")
            if beta == 1:
                found.addends.append((_node(args[0]), _shape(node)))
            found.scale *= float(alpha)
            found.operands = (_node(args[1]), _node(args[2]))
            return found
        if target in (aten.add.Tensor, aten.sub.Tensor):
            if _is_scaled(found) or target is aten.sub.Tensor or node.kwargs.get("alpha", 1) != 1:
                raise _Refused(f"an addend of {node.name} is scaled")
            scores, addend = (args[0], args[1]) if _comes_of_product(args[0]) and _shape(args[0]) == _shape(node) else (args[1], args[0])
            if not isinstance(addend, Node) or not isinstance(scores, Node) or _shape(scores) != _shape(node):
                raise _Refused(f"{node.name} adds something else than a tensor that broadcasts to the scores")
            found.addends.append((addend, _shape(node)))
            node = scores
        elif target in (aten.mul.Tensor, aten.div.Tensor):
            node, factor = _factor_of(node)
            if isinstance(factor, Node):
                found.gates.append((factor, _shape(node)))
            else:
                found.scale *= factor
        elif target in _VIEWS:
            if _shape(args[0])[-2:] != _shape(node)[-2:]:
                raise _Refused(f"{node.name} changes more of the scores than the batch")
            node = args[0]
        elif target is aten.clone.default or (target is aten._to_copy.default and set(node.kwargs) == {"dtype"}):
            if node.meta["val"].dtype not in FLOATS:
                raise _Refused(f"{node.name} makes the scores {node.meta['val'].dtype}")
            node = args[0]
        else:
            raise _Refused(f"{target} between product and softmax")


def _comes_of_product(node: Any, steps: int = 12) -> bool:
    """Whether ``node`` is a product, or computed of one by a few operators that keep its last two dimensions."""
    while isinstance(node, Node) and node.op == "call_function" and steps:
        if node.target in _PRODUCTS or node.target is aten.baddbmm.default:
            return True
        if node.target in (aten.linear.default, aten.convolution.default, *_SOFTMAXES):
            return False
        sources = [a for a in node.args if isinstance(a, Node) and _shape(a)[-2:] == _shape(node)[-2:]]
        if len(sources) > 1:
            return any(_comes_of_product(a, steps - 1) for a in sources)
        node, steps = sources[0] if sources else None, steps - 1
    return False


def _is_scaled(found: _Scores) -> bool:
    return found.scale != 1.0 or bool(found.gates)


def _factor_of(node: Node) -> tuple[Node, float | Node]:
    """The two factors of a product by a number or a tensor, the scores (or q) first."""
    a, b = node.args[:2]
    if node.target is aten.div.Tensor:
        number = _number(b)
        if number is None or number == 0 or node.kwargs:
            raise _Refused(f"{node.name} divides the scores by a tensor")
        return _node(a), 1.0 / number
    if isinstance(a, Node) and _shape(a) == _shape(node) and not (isinstance(b, Node) and _comes_of_product(b) and not _comes_of_product(a)):
        scores, factor = a, b
    else:
        scores, factor = _node(b), a
    if _shape(scores) != _shape(node):
        raise _Refused(f"{node.name} broadcasts the scores")
    number = _number(factor)
    return scores, _node(factor) if number is None else number


def _number(value: Any) -> float | None:
    """A number, also one that a constant of rank 0 holds."""
    constant = constant_of(value)
    if constant is not None and constant.dim() == 0:
        return float(constant)
    return float(value) if isinstance(value, (int, float)) else None


def _unscaled(x: Node) -> tuple[Node, float]:
    """x = source * number: (source, number), or (x, 1)."""
    if x.target in (aten.mul.Tensor, aten.div.Tensor) and not x.kwargs and isinstance(x.args[0], Node):
        number = _number(x.args[1])
        source = x.args[0]
        if number and source.meta["val"].dtype == x.meta["val"].dtype and _shape(source) == _shape(x):
            return source, number if x.target is aten.mul.Tensor else 1.0 / number
    return x, 1.0


def _path_to_product(softmax: Node) -> list[Node]:
    """The nodes from the softmax to the product with v, both included; [] when its result is no left factor."""
    for user in softmax.users:
        path = [softmax]
        source = softmax
        while user.target in (aten._to_copy.default, aten.clone.default, *_VIEWS) and user.users:
            path.append(user)
            source, user = user, next(iter(user.users))
        if user.target in _PRODUCTS and user.args[0] is source and user.args[1] is not source:
            return [*path, user]
    return []


def _check(q: Node, k: Node, v: Node, leading: tuple[int, ...]) -> None:
    """Refuse what the op cannot express about q [.., S, D], k [.., T, D] and v [.., T, E]."""
    values = [node.meta["val"] for node in (q, k, v)]
    shapes = [list(value.shape) for value in values]
    if any(not isinstance(size, int) for shape in shapes for size in shape):
        raise _Refused(f"dynamic shapes {shapes}")
    if any(tuple(shape[:-2]) != leading for shape in shapes) or shapes[1][-2] != shapes[2][-2] or shapes[0][-1] != shapes[1][-1]:
        raise _Refused(f"q, k and v of shapes {shapes}: batches or heads broadcast")
    if any(value.dtype not in FLOATS or value.dtype != values[0].dtype for value in values):
        raise _Refused(f"q, k and v are {', '.join(str(value.dtype) for value in values)}")


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise _Refused(f"a tensor was expected, not {value}")
    return value


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta["val"] if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _leading(node: Node) -> tuple[int, ...]:
    return _shape(node)[:-2]
