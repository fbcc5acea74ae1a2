"""capture: nn.Module, ScriptModule or ExportedProgram -> Program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind

from ..dtypes import dtype_name
from ..engine.contents import EqualDims
from ..engine.structure import Structure
from ..errors import ExportFailed, UserError
from ..inputs import Input
from ..program import Program
from .arguments import Arguments
from .dynamic_dims import dynamic_shapes, trace_shape
from .exported_program import check_exported_program
from .fake_quantize_shapes import register_fake_quantize_shapes
from .frozen_observers import replace_frozen_observers
from .modelopt_quantizers import plain_quantizers
from .script_module import export_script_module
from .unlift import unlift

Model = torch.nn.Module | torch.jit.ScriptModule | ExportedProgram


def capture(model: Model, arguments: Arguments) -> Program:
    """Capture ``model``, called as ``arguments`` describe, as a Program of core ATen.

    Raises:
        UserError: the model is in training mode, mutates its state, or is of an unknown type.
        ExportFailed: torch.export cannot take it whole; the message has torch's reason and the torch.compile route.
    """
    _check_model(model)
    arguments = arguments.at_shapes([trace_shape(spec) for spec in arguments.inputs], seed=0)
    notes: list[str] = []
    register_fake_quantize_shapes()
    with plain_quantizers(model):
        exported, traced = _export(model, arguments, notes)
    if not isinstance(model, ExportedProgram):
        replace_frozen_observers(exported)
    from ..lower.decompose import decomposition_table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = exported.run_decompositions(decomposition_table())
    return _as_program(exported, arguments, traced, notes)


#: What a model's own code and torch.export raise when they cannot go on.
_FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError, LookupError, AttributeError)


def _export(model: Model, arguments: Arguments, notes: list[str]) -> tuple[ExportedProgram, Arguments]:
    """Export with the caller's dtypes; where the model refuses them, with the model's own (the engine casts at its edge)."""
    if isinstance(model, ExportedProgram):
        check_exported_program(model, arguments)
        return model, arguments
    arguments = _accepted(model, arguments, notes)
    shapes = dynamic_shapes(arguments)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if isinstance(model, torch.jit.ScriptModule):
                return export_script_module(model, arguments, shapes), arguments
            return torch.export.export(model, arguments.args, arguments.kwargs or None, dynamic_shapes=shapes, strict=False), arguments
    except _FAILURES as error:
        raise ExportFailed(
            f"torch.export could not capture {type(model).__name__} whole: {_short(error)}\n"
            "Change the model so that torch.export.export(model, args) takes it, or let Dynamo split it: "
            'torch.compile(model, backend="torchkiln", options={...}) compiles each graph it finds and leaves the rest to Python.'
        ) from error


def _accepted(model: torch.nn.Module, arguments: Arguments, notes: list[str]) -> Arguments:
    """The arguments as the model takes them, found by running it: torch.export alone lets some mixed dtypes pass that fail when run."""
    error = _run_error(model, arguments)
    if error is None:
        return arguments
    cast = _cast_to_model_dtype(model, arguments, notes)
    if cast is not None:
        error = _run_error(model, cast)
        if error is None:
            return cast
    listed = ", ".join(f"{path}: {tuple(t.shape)} {t.dtype}" for path, t in zip(arguments.structure.leaf_paths(), arguments.tensors, strict=True))
    raise UserError(
        f"the model itself fails on the given inputs ({listed}): {_short(error)}\n"
        "Give inputs it takes; for inputs with a range of values (token ids), Input(tensor_domain=(low, high)) or a real tensor."
    ) from error


def _run_error(model: torch.nn.Module, arguments: Arguments) -> Exception | None:
    try:
        with torch.no_grad():
            model(*arguments.args, **arguments.kwargs)
    except _FAILURES as error:
        return error
    return None


def _cast_to_model_dtype(model: torch.nn.Module, arguments: Arguments, notes: list[str]) -> Arguments | None:
    """The arguments with floating tensors in the dtype of the model's parameters; None where they have it already."""
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    if len(dtypes) != 1:
        return None
    (wanted,) = dtypes
    tensors = [t.to(wanted) if t.dtype.is_floating_point else t for t in arguments.tensors]
    changed = [i for i, (a, b) in enumerate(zip(tensors, arguments.tensors, strict=True)) if a.dtype != b.dtype]
    if not changed:
        return None
    for i in changed:
        notes.append(
            f"{arguments.structure.leaf_paths()[i]} is passed as {dtype_name(arguments.inputs[i].dtype)} and cast to the model's {dtype_name(wanted)}"
        )
    return arguments.with_tensors(tensors)


def _as_program(exported: ExportedProgram, arguments: Arguments, traced: Arguments, notes: list[str]) -> Program:
    graph_module = unlift(exported)
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    if len(placeholders) != len(arguments.inputs):
        raise ExportFailed(
            f"the captured graph takes {len(placeholders)} tensors, but {len(arguments.inputs)} were described by inputs and kwarg_inputs"
        )
    _order_placeholders(exported, arguments, graph_module)
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    inputs = tuple(_named(spec, node.name) for spec, node in zip(arguments.inputs, placeholders, strict=True))
    outputs_structure, output_names = _outputs(exported, graph_module)
    program = Program(graph_module, inputs, arguments.structure, outputs_structure, output_names, arguments.tensors, _equal_dims(placeholders), notes)
    for index, (given, captured) in enumerate(zip(arguments.tensors, traced.tensors, strict=True)):
        if given.dtype != captured.dtype:
            from ..lower.convert_input_dtype import convert_input_dtype

            convert_input_dtype(program, index, given.dtype)
    return program


def _order_placeholders(exported: ExportedProgram, arguments: Arguments, graph_module: torch.fx.GraphModule) -> None:
    """Put the placeholders in our order. torch.export may flatten in another one (keyword arguments, dict keys): match them by leaf."""
    from torch.utils._pytree import tree_leaves, tree_unflatten

    position = {id(t): i for i, t in enumerate(arguments.tensors)}
    spec = exported.call_spec.in_spec
    numbered = tree_unflatten(list(range(spec.num_leaves)), spec)
    wanted: dict[int, int] = {}

    def note(ours: object, number: object) -> None:
        if isinstance(ours, torch.Tensor) and isinstance(number, int):
            wanted[number] = position[id(ours)]

    _walk_together((arguments.args, arguments.kwargs), numbered, note)
    order = [wanted[n] for n in tree_leaves(numbered) if n in wanted]
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    if order == sorted(order):
        return
    in_order = [node for _, node in sorted(zip(order, placeholders, strict=True), key=lambda pair: pair[0])]
    anchor = next(n for n in graph_module.graph.nodes if n.op != "placeholder")
    for node in in_order:
        anchor.prepend(node)
    graph_module.recompile()


def _walk_together(ours: Any, theirs: Any, visit: Callable[[object, object], None]) -> None:
    if isinstance(ours, Mapping):
        for key in ours:
            _walk_together(ours[key], theirs[key], visit)
    elif isinstance(ours, (list, tuple)):
        for a, b in zip(ours, theirs, strict=True):
            _walk_together(a, b, visit)
    else:
        visit(ours, theirs)


def _equal_dims(placeholders: list[torch.fx.Node]) -> EqualDims:
    """The input dimensions that share a symbol. Raises ExportFailed for one that is a formula of others, which a call could not be checked for."""
    groups: dict[Any, list[tuple[int, int]]] = {}
    for index, node in enumerate(placeholders):
        for dim, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                if not size.node.expr.is_symbol:
                    raise ExportFailed(
                        f"input {node.name}: dimension {dim} must be {size.node.expr} of other dimensions: make it a fixed size, or pad it"
                    )
                groups.setdefault(size.node.expr, []).append((index, dim))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _outputs(exported: ExportedProgram, graph_module: torch.fx.GraphModule) -> tuple[Structure, tuple[str, ...]]:
    """The structure of the model's result (constants included), and a name for each tensor or number in it."""
    from torch.utils._pytree import tree_unflatten

    nodes: Any = graph_module.graph.output_node().args[0]
    computed = iter(node.meta["val"] for node in nodes)
    flat = [
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else next(computed)
        for spec in exported.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    structure, _ = Structure.of(tree_unflatten(flat, exported.call_spec.out_spec))
    return structure, tuple(path or "output" for path in structure.leaf_paths())


def _named(spec: Input, name: str) -> Input:
    if spec.name:
        return spec
    ranges = {"min_shape": spec.min_shape, "opt_shape": spec.opt_shape, "max_shape": spec.max_shape}
    return Input(**ranges, dtype=spec.dtype, any_float=spec.any_float, name=name, tensor_domain=spec.tensor_domain)


def _check_model(model: Any) -> None:
    if isinstance(model, ExportedProgram):
        return
    if not isinstance(model, torch.nn.Module):
        what = "a ScriptFunction; compile the module it belongs to" if isinstance(model, torch.jit.ScriptFunction) else type(model).__name__
        raise UserError(f"model: expected an nn.Module, a traced or scripted ScriptModule, or an ExportedProgram, got {what}")
    if model.training and not _is_operators_only(model):
        raise UserError(
            f"model: {type(model).__name__} is in training mode, where dropout and batch norm behave differently: call model.eval() first"
        )


def _short(error: BaseException) -> str:
    text = str(error).strip() or repr(error)
    return "\n".join(text.splitlines()[:12])


def _is_operators_only(model: torch.nn.Module) -> bool:
    """Whether this is a graph of operators, as torch.export and torchao give, none in training mode: its flag says nothing."""
    if not isinstance(model, torch.fx.GraphModule):
        return False
    nodes = [n for module in model.modules() if isinstance(module, torch.fx.GraphModule) for n in module.graph.nodes]
    return all(n.op != "call_module" or n.target == "_guards_fn" for n in model.graph.nodes) and not any(map(_is_training, nodes))


def _is_training(node: torch.fx.Node) -> bool:
    """Whether this is dropout, batch norm or another operator that is told to train."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    return any(given.get(name) is True for name in ("train", "training"))
