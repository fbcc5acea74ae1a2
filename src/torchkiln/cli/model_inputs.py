"""model_inputs: which arguments of a model the shapes of the command line describe, and the model on the device asked for."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..capture.exported_program import default_arguments
from ..capture.sources import LoadedModel
from ..errors import UserError
from ..inputs import Input


def choose_inputs(loaded: LoadedModel, given: list[Input]) -> tuple[list[Input] | None, dict[str, Input]]:
    """``(inputs, kwarg_inputs)`` to compile for: the shapes given, else the ones the model's source suggests.

    Named shapes go to the parameters of ``forward`` with those names. ``inputs`` is None for an ExportedProgram without given shapes: it
    carries its own. Raises UserError when a name fits no parameter, or nothing says what the inputs are.
    """
    inputs = given or loaded.default_inputs
    if inputs is None:
        if isinstance(loaded.model, ExportedProgram):
            return None, {}
        if loaded.shape_hint:
            raise UserError(
                f"{loaded.name} has dimensions that vary: give their sizes, as {loaded.shape_hint} (or --min-shape, --opt-shape, --max-shape)"
            )
        raise UserError(f"{loaded.name} does not say what its inputs are: give --shape (as --shape 1x3x224x224), once for each input")
    inputs = _with_declared_dtypes(loaded, inputs)
    if not any(i.name for i in inputs):
        return inputs, {}
    parameters = forward_parameters(loaded.model)
    by_name = {i.name: i for i in inputs}
    for name in by_name:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"shapes: {loaded.name} has no input {name!r}: it has {', '.join(parameters) or 'none with a name'}.{hint}")
    positional = []
    for name in parameters:
        if name not in by_name:
            break
        positional.append(by_name.pop(name))
    return positional, by_name


def _with_declared_dtypes(loaded: LoadedModel, inputs: list[Input]) -> list[Input]:
    """A shape given without a dtype gets the one that the model's file declares for that input."""
    positions = list(loaded.input_dtypes.values())
    described = []
    for index, spec in enumerate(inputs):
        dtype = loaded.input_dtypes.get(spec.name) if spec.name else positions[index] if index < len(positions) else None
        if dtype is not None and spec.any_float and dtype is not spec.dtype:
            spec = Input(min_shape=spec.min_shape, opt_shape=spec.opt_shape, max_shape=spec.max_shape, dtype=dtype, name=spec.name)
        described.append(spec)
    return described


def forward_parameters(model: Any) -> list[str]:
    """The names of the arguments ``model`` takes, in order."""
    if isinstance(model, ExportedProgram):
        return [str(name) for name in model.graph_signature.user_inputs]
    if isinstance(model, torch.jit.ScriptModule):
        forward: Any = model.forward
        return [a.name for a in forward.schema.arguments[1:]]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in (*kinds, inspect.Parameter.KEYWORD_ONLY)]


def on_device(model: nn.Module | ExportedProgram, device: torch.device | str | None) -> nn.Module | ExportedProgram:
    """``model`` on ``device`` (None: where it is). Raises UserError when this machine has no such device."""
    if device is None:
        return model
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {device} was asked for, but torch sees no GPU here: 'torchkiln doctor' shows what there is")
    if isinstance(model, ExportedProgram):
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(model, str(device))
    return model.to(device)


def own_inputs(program: ExportedProgram) -> list[Input | torch.Tensor]:
    """The positional inputs an ExportedProgram was exported with. Raises UserError when it takes others than tensors by position."""
    args, kwargs = default_arguments(program)
    if kwargs or not all(isinstance(a, (Input, torch.Tensor)) for a in args):
        raise UserError("the benchmark passes tensors by position; this ExportedProgram takes keyword or nested arguments")
    return list(args)
