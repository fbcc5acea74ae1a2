"""trace: a fused graph as operations over memory: which tensors are views of which memory, in what layout, and what has to run.

Views, clones and casts that change nothing cost nothing: they are other strides over the same memory (graphs are functional, so sharing is safe).
Layout is decided here, once: convolutions, norms and pools of [N, C, *spatial] write channels last, everything else rows; kernels read whatever
strides they are given. A concatenation is laid out before what it joins, and what it joins is written in place; so is an output by a pointwise
operation or a resize.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ...dtypes import dtype_name
from .absorb_casts import absorbable_casts, find_only_outputs, is_resize, pays, with_cast
from .pointwise.expressions import filled_value, pointwise_reject
from .pointwise.regions import Region, describe, find_regions, make_region, region_key, reorder
from .recipe import ALIGNMENT_BYTES, Problem, Recipe, Ref, TensorSpec, TorchCall, channels_last_strides

aten = torch.ops.aten

_ALIASES = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
_CONTIGUOUS = (
    "aten.pad.default",
    "aten.constant_pad_nd.default",
    "aten.roll.default",
    "aten.mean.dim",
    "aten.sum.dim_IntList",
    "aten.amax.default",
)
#: Arguments that say where and how a tensor lies, which the plan decides.
_PLACEMENT = ("device", "layout", "pin_memory", "memory_format")
#: Products of rows -> the position of the operand that is added to the result.
_RESIDUAL = {"linear": 3, "int8_linear": 4}
_CHANNELS_LAST = ("conv", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_", "_upsample_nearest_exact")


@dataclass(eq=False)
class Storage:
    """Memory that tensors lie in.

    Attributes:
        kind: "input", "constant" or "temporary".
        index: which input.
        name: which constant.
        span: elements.
    """

    kind: str
    dtype: torch.dtype
    span: int
    index: int = -1
    name: str = ""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: strides over a storage, from an offset in elements."""

    storage: Storage
    spec: TensorSpec
    offset: int = 0

    @property
    def is_aligned(self) -> bool:
        return self.offset * self.spec.dtype.itemsize % ALIGNMENT_BYTES == 0


@dataclass(eq=False)
class Operation:
    """One thing to run.

    Attributes:
        label: the nodes it comes from.
        reference: the same in torch's operators: its meaning, and what runs where no tactic takes it.
        region: for a pointwise operation, the region; offsets that are not aligned are in ``problem.attributes["offsets"]``.
    """

    label: str
    problem: Problem
    inputs: list[Value | None]
    outputs: list[Value]
    reference: Recipe
    region: Region | None = None


@dataclass
class Trace:
    """The operations of a graph in order, and where its inputs, outputs and constants are."""

    inputs: list[Value]
    outputs: list[Value]
    operations: list[Operation]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)


def trace(graph_module: GraphModule, capability: int, multiprocessors: int, math: Callable[[str], str]) -> Trace:
    """Trace a graph of core ATen and fused ops with fixed shapes (see ``specialize``); it may be reordered.

    Args:
        math: "ieee" or "tf32" for float32 products, by the name of the op.
    """
    return _Tracer(graph_module, capability, multiprocessors, math).run()


class _Tracer:
    def __init__(self, graph_module: GraphModule, capability: int, multiprocessors: int, math: Callable[[str], str]) -> None:
        self.module = graph_module
        self.capability, self.multiprocessors, self.math = capability, multiprocessors, math
        self.values: dict[Node, Any] = {}
        self.operations: list[Operation] = []
        self.inputs: list[Value] = []
        self.constants: dict[str, torch.Tensor] = {}
        regions = find_regions(graph_module.graph, lambda n: is_view(n) or pointwise_reject(n) != "")
        reorder(graph_module.graph, regions)
        self.region_of = {node: region for region in regions for node in region.nodes}
        self.placed = _place_in_concatenations(graph_module.graph, self.region_of)
        self.joined: dict[Node, Value] = {}
        self.casts = absorbable_casts(graph_module.graph, self.region_of)
        self.only_outputs = find_only_outputs(graph_module.graph)

    def run(self) -> Trace:
        done: set[int] = set()
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                spec = TensorSpec.contiguous(node.meta["val"].shape, node.meta["val"].dtype)
                value = Value(Storage("input", spec.dtype, spec.span, index=len(self.inputs)), spec)
                self.inputs.append(value)
                self.values[node] = value
            elif node.op == "get_attr":
                self.values[node] = self._constant(node)
            elif node.op == "output":
                return Trace(self.inputs, self._outputs(node), self.operations, self.constants)
            elif node in self.values:
                continue  # a cast that was absorbed
            elif node in self.region_of:
                region = self.region_of[node]
                if id(region) not in done:
                    done.add(id(region))
                    self._region(region)
            elif node.target is operator.getitem:
                self.values[node] = self.values[node.args[0]][node.args[1]]
            elif is_view(node):
                self.values[node] = self._view(node)
            elif node.target is aten.cat.default:
                self.values[node] = self._concatenate(node)
            else:
                self._operation(node)
        raise AssertionError("a graph ends in its output")

    def _constant(self, node: Node) -> Any:
        tensor: Any = self.module
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part)
        name = str(node.target)
        self.constants[name] = tensor.detach().contiguous()
        spec = TensorSpec.contiguous(tensor.shape, tensor.dtype)
        return Value(Storage("constant", tensor.dtype, spec.span, name=name), spec)

    def _outputs(self, node: Node) -> list[Value]:
        """The graph's outputs, each contiguous in memory of its own."""
        found: list[Value] = []
        taken: list[Storage] = []
        for source in node.args[0]:  # type: ignore[union-attr]
            value: Value = self.values[source]  # type: ignore[index]
            whole = value.offset == 0 and value.spec.is_contiguous and value.storage.span == value.spec.span
            if value.storage.kind != "temporary" or not whole or any(value.storage is other for other in taken):
                value = self._copy(value, TensorSpec.contiguous(value.spec.shape, value.spec.dtype), f"output {len(found)}")
            taken.append(value.storage)
            found.append(value)
        return found

    # -- views ---------------------------------------------------------------------------------------------------------------------------------

    def _view(self, node: Node) -> Any:
        source: Value = self.values[node.args[0]]  # type: ignore[index]
        if node.target in _ALIASES or is_same_cast(node):
            return source
        target: Any = aten.view.default if node.target in (aten.reshape.default, aten._unsafe_view.default) else node.target
        results = self._strided(source, target, node)
        if results is None:
            source = self._copy(source, TensorSpec.contiguous(source.spec.shape, source.spec.dtype), f"copy for {node.name}")
            results = self._strided(source, target, node)
            assert results is not None, f"{node}: a view of a contiguous tensor"
        values = [Value(source.storage, TensorSpec.of(r), int(r.storage_offset())) for r in results]
        return values if isinstance(node.meta["val"], (tuple, list)) else values[0]

    def _strided(self, source: Value, target: Any, node: Node) -> list[torch.Tensor] | None:
        """The view's results as meta tensors over the storage; None when the strides do not allow it."""
        base = torch.empty(max(source.storage.span, 1), dtype=source.spec.dtype, device="meta")
        tensor = base.as_strided(source.spec.shape, source.spec.strides, source.offset)
        try:
            results = target(tensor, *node.args[1:], **node.kwargs)
        except (RuntimeError, ValueError):
            return None
        found = list(results) if isinstance(results, (tuple, list)) else [results]
        same = all(r.untyped_storage()._cdata == base.untyped_storage()._cdata for r in found)
        return found if same else None

    def _copy(self, source: Value, spec: TensorSpec, label: str) -> Value:
        """``source`` written out with other strides."""
        value = Value(Storage("temporary", spec.dtype, spec.span), spec)
        self._copy_into(source, value, label)
        return value

    def _copy_into(self, source: Value, target: Value, label: str) -> None:
        graph = Graph()
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(source.spec.shape, dtype=source.spec.dtype, device="meta")
        clone = graph.call_function(aten.clone.default, (x,))
        clone.meta["val"] = torch.empty(target.spec.shape, dtype=target.spec.dtype, device="meta")
        graph.output((clone,))
        self._add_region(make_region((clone,)), [source], [target], label)

    # -- operations ----------------------------------------------------------------------------------------------------------------------------

    def _new(self, node: Node, spec: TensorSpec) -> Value:
        """Memory for a result: in the concatenation that it is a part of, or its own."""
        if node in self.placed:
            cat, start = self.placed[node]
            whole = self._joined(cat)
            dim = _cat_dim(cat)
            return Value(whole.storage, TensorSpec(spec.shape, whole.spec.strides, spec.dtype), start * whole.spec.strides[dim])
        return Value(Storage("temporary", spec.dtype, spec.span), spec)

    def _joined(self, cat: Node) -> Value:
        """The memory of a concatenation."""
        if cat not in self.joined:
            value = cat.meta["val"]
            strides = _default_strides(cat, value.shape)
            spec = TensorSpec(tuple(value.shape), strides, value.dtype)
            self.joined[cat] = Value(Storage("temporary", spec.dtype, spec.span), spec)
        return self.joined[cat]

    def _concatenate(self, node: Node) -> Value:
        whole = self._joined(node)
        dim = _cat_dim(node)
        start = 0
        for index, source in enumerate(node.args[0]):  # type: ignore[arg-type]
            value: Value = self.values[source]
            if value.spec.shape == (0,):
                continue  # joins with anything, by an old rule of torch
            if value.spec.numel and self.placed.get(source) != (node, start):
                part = Value(whole.storage, TensorSpec(value.spec.shape, whole.spec.strides, whole.spec.dtype), start * whole.spec.strides[dim])
                self._copy_into(value, part, f"{node.name}[{index}]")
            start += value.spec.shape[dim]
        return whole

    def _region(self, region: Region) -> None:
        inputs = [self.values[n] for n in region.inputs]
        outputs = []
        for node in region.outputs:
            shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
            contiguous = TensorSpec.contiguous(shape, dtype)
            spec = contiguous if node in self.only_outputs else TensorSpec(shape, _like(inputs, shape), dtype)
            outputs.append(self._new(node, spec))
            self.values[node] = outputs[-1]
        self._add_region(region, inputs, outputs, ", ".join(n.name for n in region.outputs))

    def _add_region(self, region: Region, inputs: list[Value], outputs: list[Value], label: str) -> None:
        offsets = {f"x{i}": v.offset for i, v in enumerate(inputs) if not v.is_aligned}
        offsets |= {f"y{i}": v.offset for i, v in enumerate(outputs) if not v.is_aligned}
        attributes = {"region": region_key(region), "does": describe(region), "offsets": offsets}
        problem = Problem(
            "pointwise",
            tuple(v.spec for v in inputs),
            tuple(v.spec for v in outputs),
            attributes,
            tuple(v.storage.kind == "constant" for v in inputs),
            "ieee",
            self.capability,
            self.multiprocessors,
        )
        self.operations.append(Operation(label, problem, list(inputs), outputs, _region_reference(region), region))

    def _operation(self, node: Node) -> None:
        target: Any = node.target
        sources: list[Node | None] = []
        attributes: dict[str, Any] = {}

        def take(value: Any) -> Any:
            if isinstance(value, Node):
                sources.append(value)
                return Ref(f"x{len(sources) - 1}")
            return value

        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        own = target.namespace == "torchkiln"
        bound = list(node.args) + [node.kwargs.get(a.name, a.default_value) for a in target._schema.arguments[len(node.args) :]]
        for argument, value in zip(target._schema.arguments, bound, strict=True):
            is_tensor = "Tensor" in str(argument.type)
            if is_tensor and value is None:
                sources.append(None)  # so that inputs keep their places
                taken = None
            else:
                taken = map_arg(value, take) if isinstance(value, (list, tuple, Node)) else value
            if argument.name in _PLACEMENT:
                continue
            if not is_tensor:
                attributes[argument.name] = _json(taken)
            (kwargs.__setitem__(argument.name, taken) if argument.kwarg_only else args.append(taken))
        inputs = [None if s is None else self._aligned(self.values[s], node) for s in sources]
        results = node.meta["val"]
        many = isinstance(results, (tuple, list))
        specs = self._output_specs(node, inputs, args, kwargs)
        cast = self._absorbed(node, specs[0])
        if cast is not None:
            specs = [replace(specs[0], dtype=cast.meta["val"].dtype)]
        written = node if cast is None else cast
        if written in self.only_outputs and is_resize(node):
            specs = [TensorSpec.contiguous(specs[0].shape, specs[0].dtype)]
        outputs = [Value(Storage("temporary", s.dtype, s.span), s) for s in specs] if many else [self._new(written, specs[0])]
        self.values[node] = self.values[written] = outputs if many else outputs[0]
        name = target._schema.name.split("::")[1] if own else str(target)
        if name in _RESIDUAL:
            inputs, outputs = _as_rows(inputs, outputs, _RESIDUAL[name])
        constants = tuple(v is not None and v.storage.kind == "constant" for v in inputs)
        problem = Problem(
            name,
            tuple(None if v is None else v.spec for v in inputs),
            tuple(v.spec for v in outputs),
            attributes,
            constants,
            self.math(name),
            self.capability,
            self.multiprocessors,
        )
        call = TorchCall(str(target), tuple(args), tuple(kwargs.items()), tuple(f"y{i}" for i in range(len(outputs))))
        reference = Recipe((call,)) if cast is None else with_cast(call, outputs[0].spec, node.meta["val"].dtype)
        label = node.name if cast is None else f"{node.name}, {cast.name}"
        self.operations.append(Operation(label, problem, inputs, outputs, reference))

    def _absorbed(self, node: Node, spec: TensorSpec) -> Node | None:
        """The cast that an operation which would write ``spec`` does as well."""
        cast = self.casts.get(node)
        return cast if cast is not None and pays(node, spec, cast in self.only_outputs) else None

    def _aligned(self, value: Value, node: Node) -> Value:
        """``value``, copied where its first element is not aligned as kernels expect."""
        if value.is_aligned:
            return value
        return self._copy(value, TensorSpec.contiguous(value.spec.shape, value.spec.dtype), f"copy for {node.name}")

    def _output_specs(self, node: Node, inputs: Sequence[Value | None], args: Sequence[Any], kwargs: dict[str, Any]) -> list[TensorSpec]:
        results = node.meta["val"]
        fakes = list(results) if isinstance(results, (tuple, list)) else [results]
        name = str(node.target)
        if name.startswith("torchkiln."):
            strides = _default_strides(node, fakes[0].shape, inputs)
            if name.startswith("torchkiln.int8_layer_norm"):  # both results are of one tensor
                return [TensorSpec(tuple(f.shape), strides, f.dtype) for f in fakes]
            by_products = [TensorSpec.contiguous(f.shape, f.dtype) for f in fakes[1:]]
            return [TensorSpec(tuple(fakes[0].shape), strides, fakes[0].dtype), *by_products]
        if _is_channels_last(node):
            return [TensorSpec(tuple(f.shape), _default_strides(node, f.shape, inputs), f.dtype) for f in fakes]
        if name in _CONTIGUOUS:
            return [TensorSpec.contiguous(f.shape, f.dtype) for f in fakes]
        return self._torch_specs(node, inputs, args, kwargs)

    def _torch_specs(self, node: Node, inputs: Sequence[Value | None], args: Sequence[Any], kwargs: dict[str, Any]) -> list[TensorSpec]:
        """What torch itself gives for inputs of these strides."""

        def meta(ref: Any) -> Any:
            if isinstance(ref, Ref):
                value = inputs[int(ref.name[1:])]
                assert value is not None
                return torch.empty_strided(value.spec.shape, value.spec.strides, dtype=value.spec.dtype, device="meta")
            return [meta(part) for part in ref] if isinstance(ref, (list, tuple)) else ref

        try:
            results = node.target(*[meta(a) for a in args], **{k: meta(v) for k, v in kwargs.items()})  # type: ignore[operator]
        except (RuntimeError, NotImplementedError):
            results = node.meta["val"]
        return [TensorSpec.of(r) for r in (results if isinstance(results, (tuple, list)) else (results,))]


def is_view(node: Node) -> bool:
    """Whether a call gives other strides over its argument's memory, or its argument itself."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    if target in _ALIASES or target is aten._unsafe_view.default or is_same_cast(node):
        return True
    returns = target._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def is_same_cast(node: Node) -> bool:
    """A ``_to_copy`` to the dtype that the tensor has."""
    return node.target is aten._to_copy.default and node.args[0].meta["val"].dtype == node.meta["val"].dtype  # type: ignore[union-attr]


def _cat_dim(node: Node) -> int:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % node.meta["val"].dim()


def _place_in_concatenations(graph: Graph, regions: dict[Node, Region]) -> dict[Node, tuple[Node, int]]:
    """The nodes that are written into a concatenation at once: node -> (the concatenation, where it starts in it)."""
    placed: dict[Node, tuple[Node, int]] = {}
    for node in graph.nodes:
        if node.target is not aten.cat.default or node.op != "call_function":
            continue
        dim, start = _cat_dim(node), 0
        strides = _default_strides(node, node.meta["val"].shape)
        itemsize = node.meta["val"].dtype.itemsize
        for source in node.args[0]:
            value = source.meta["val"]
            if tuple(value.shape) == (0,):
                continue
            own = source.op == "call_function" and not is_view(source) and source.target not in (aten.cat.default, operator.getitem)
            aligned = start * strides[dim] * itemsize % ALIGNMENT_BYTES == 0
            rows_aligned = all(s * itemsize % ALIGNMENT_BYTES == 0 for s in strides if s > 1)
            writes_anywhere = source in regions or is_resize(source) or str(getattr(source, "target", "")).startswith("torchkiln.")
            if own and writes_anywhere and aligned and rows_aligned and value.dtype == node.meta["val"].dtype and source not in placed:
                placed[source] = (node, start)
            start += value.shape[dim]
    return placed


def _is_channels_last(node: Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "").split("::")[-1]
    return name.startswith(_CHANNELS_LAST)


def _default_strides(node: Node, shape: Sequence[int], inputs: Sequence[Value | None] = ()) -> tuple[int, ...]:
    """The layout of a result."""
    shape = tuple(int(s) for s in shape)
    contiguous = TensorSpec.contiguous(shape, torch.float32).strides
    name = str(node.target)
    if name == "torchkiln.attention.default":
        return _strides_for_permutation(node, shape)
    if name.startswith(("torchkiln.layer_norm", "torchkiln.int8_layer_norm", "torchkiln.softmax", "torchkiln.group_norm")):
        first = inputs[0]
        if first is not None and _is_dense(first.spec):
            return first.spec.strides
        return channels_last_strides(shape) if name.startswith("torchkiln.group_norm") and len(shape) > 2 else contiguous
    if name in ("torchkiln.linear.default", "torchkiln.int8_linear.default") and inputs[0] is not None:
        # Rows in the order that they lie in x, so that product and operand are walked with one stride each.
        leading = sorted(range(len(shape) - 1), key=lambda d: -inputs[0].spec.strides[d] if shape[d] > 1 else 0)  # type: ignore[union-attr]
        return _strides_in_order(shape, [*leading, len(shape) - 1])
    if node.target is aten.cat.default:
        joins_channels = len(shape) in (4, 5) and _cat_dim(node) == 1
        return channels_last_strides(shape) if joins_channels else contiguous
    if name.startswith(("torchkiln.conv", "torchkiln.int8_conv", "torchkiln.int8_max_pool")) or _is_channels_last(node):
        return channels_last_strides(shape) if len(shape) > 2 else contiguous
    return contiguous


def _strides_for_permutation(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Attention's result [B, H, S, D] in the order the next permutation asks for, so that the heads join without a copy; else as [B, S, H, D]."""
    order: list[int] = [0, 2, 1, 3]
    users = list(node.users)
    while len(users) == 1 and users[0].target in _ALIASES:
        users = list(users[0].users)
    if len(users) == 1 and users[0].target is aten.permute.default:
        order = [int(d) % len(shape) for d in users[0].args[1]]  # type: ignore[arg-type, union-attr]
    return _strides_in_order(shape, order)


def _strides_in_order(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Dense strides with the dimensions from the outermost to the innermost as ``order`` says."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def _as_rows(inputs: list[Value | None], outputs: list[Value], position: int) -> tuple[list[Value | None], list[Value]]:
    """A linear layer's x, residual (at ``position``) and result as [rows, channels], where each walks its rows with one stride in the same order."""
    x, residual = inputs[0], inputs[position]
    held = [value for value in (x, residual, *outputs) if value is not None]
    rank = len(held[0].spec.shape)
    order = sorted((d for d in range(rank - 1) if held[0].spec.shape[d] > 1), key=lambda d: -outputs[0].spec.strides[d])
    for value in held:
        pairs = itertools.pairwise(order)
        if any(value.spec.strides[a] != value.spec.strides[b] * value.spec.shape[b] for a, b in pairs):
            return inputs, outputs

    def flat(value: Value | None) -> Value | None:
        if value is None:
            return None
        spec = value.spec
        rows = spec.numel // spec.shape[-1] if spec.shape[-1] else 0
        row = spec.strides[order[-1]] if order else spec.shape[-1]
        return Value(value.storage, TensorSpec((rows, spec.shape[-1]), (row, spec.strides[-1]), spec.dtype), value.offset)

    rows = [flat(value) if index in (0, position) else value for index, value in enumerate(inputs)]
    return rows, [flat(value) for value in outputs]  # type: ignore[misc]


def _is_dense(spec: TensorSpec) -> bool:
    """Whether the elements fill their memory without a gap, each at a place of its own."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(spec.shape, spec.strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _like(inputs: Sequence[Value], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a pointwise result: those of the largest dense input of its shape."""
    for value in inputs:
        if value.spec.shape == shape and _is_dense(value.spec) and value.storage.kind == "temporary":
            return value.spec.strides
    for value in inputs:
        if value.spec.shape == shape:
            return _dense_order(value.spec)
    return TensorSpec.contiguous(shape, torch.float32).strides


def _dense_order(spec: TensorSpec) -> tuple[int, ...]:
    """Dense strides in the order of dimensions that ``spec`` has (a slice of a channels-last tensor stays channels last)."""
    meta = torch.empty_strided(spec.shape, spec.strides, device="meta")
    return tuple(torch.empty_like(meta).stride())


def _region_reference(region: Region) -> Recipe:
    """The region's nodes as calls of torch, one after the other."""
    names = {node: f"x{i}" for i, node in enumerate(region.inputs)}
    for index, node in enumerate(region.outputs):
        names[node] = f"y{index}"
    for index, node in enumerate(region.nodes):
        names.setdefault(node, f"t{index}")
    calls: list[TorchCall] = []

    def fill(node: Node, number: Any) -> None:
        # What it is like, if it is like something, is no input of the region: only the shape matters.
        value = node.meta["val"]
        calls.append(TorchCall("aten.full.default", (list(value.shape), number), (("dtype", value.dtype),), (names[node],)))

    def operand(node: Node) -> Any:
        if node not in names:  # a tensor of one number, which kernels have as that number
            names[node] = f"t{len(names)}_filled"
            fill(node, filled_value(node))
        return Ref(names[node])

    for node in region.nodes:
        number = filled_value(node)
        if number is not None:
            fill(node, number)
            continue
        args, kwargs = map_arg((node.args, dict(node.kwargs)), operand)
        kwargs = {k: v for k, v in kwargs.items() if k not in _PLACEMENT}
        calls.append(TorchCall(str(node.target), tuple(args), tuple(kwargs.items()), (names[node],)))
    return Recipe(tuple(calls))


def _json(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (list, tuple)):
        return [_json(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
