"""dynamo: ``torch.compile(model, backend="torchkiln", options={...})``, for models that torch.export cannot take whole.

Dynamo splits the model into graphs and runs the Python between them; each graph becomes an engine of its own. Parameters and buffers are
constants of the engines: after changing weights, call ``torch._dynamo.reset()`` or compile again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._guards import tracing
from torch.fx import GraphModule

from .errors import ExportFailed, StatefulModel, UnsupportedOption
from .settings import CompileSettings
from .target import CURRENT, parse_target


def torchkiln_backend(graph_module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The Dynamo backend, found by its entry-point name. ``options`` are those of ``torchkiln.compile``; unknown names raise UnknownOption."""
    settings = CompileSettings.from_options(dict(options or {}), where='torch.compile(backend="torchkiln")')
    if settings.dryrun:
        raise UnsupportedOption(
            "torch.compile(backend=\"torchkiln\"): option 'dryrun' needs a whole model: use torchkiln.compile(model, inputs, dryrun=True)"
        )
    absent = [name for name in settings.target_names if name != CURRENT and not parse_target(name).is_here]
    if absent:
        raise UnsupportedOption(
            f"torch.compile(backend=\"torchkiln\"): option 'target': {', '.join(absent)} is not in this machine, where the result is called: "
            "use torchkiln.compile(model, inputs, target=...) and save the engine"
        )
    compiled = _CompiledGraph(graph_module, example_inputs, dict(options or {}))
    if not compiled.is_symbolic:
        compiled.prepare(example_inputs)
    return compiled


class _CompiledGraph:
    """One Dynamo graph: an engine for each set of input shapes it is called with."""

    def __init__(self, graph_module: GraphModule, example_inputs: Sequence[Any], options: dict[str, Any]) -> None:
        self._graph_module = graph_module
        self._options = options
        self._weights = {i: v for i, v in enumerate(example_inputs) if _is_weight(v)}
        self._runs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.is_symbolic = any(_is_symbolic(v) for v in example_inputs)
        if torch.is_grad_enabled() and any(w.requires_grad for w in self._weights.values()):
            warnings.warn("torchkiln engines compute no gradients: the outputs will not require grad (use torch.inference_mode())", stacklevel=2)

    def __call__(self, *values: Any) -> Any:
        run = self._runs.get(self._key(values)) or self.prepare(values)
        return run(*(v.detach() for i, v in enumerate(values) if i not in self._weights and isinstance(v, torch.Tensor)))

    def prepare(self, values: Sequence[Any]) -> Callable[..., Any]:
        """Build the engine for values of these shapes."""
        from .compiler import compile

        fixed = {i: v for i, v in enumerate(values) if not isinstance(v, torch.Tensor)} | self._weights
        module = _Bound(self._graph_module, fixed, len(values)).eval()
        tensors = [v.detach() for i, v in enumerate(values) if i not in fixed]
        run: Callable[..., Any]
        if not tensors:
            run = module
        else:
            try:
                # Dynamo's tracing context is active here, and its guards speak of names that only Dynamo's frame has: torch.export must not see it.
                with tracing(None):
                    run = compile(module, tensors, **self._options)  # type: ignore[assignment]
            except (ExportFailed, StatefulModel) as error:
                warnings.warn(f"torchkiln: a graph stays in PyTorch: {str(error).splitlines()[0]}", stacklevel=2)
                run = module
        self._runs[self._key(values)] = run
        return run

    def _key(self, values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(_key_part(v) for i, v in enumerate(values) if i not in self._weights)


class _Bound(torch.nn.Module):
    """A Dynamo graph with its weights and sizes filled in; takes the remaining tensors."""

    def __init__(self, graph_module: GraphModule, fixed: Mapping[int, Any], count: int) -> None:
        super().__init__()
        self.graph_module = graph_module
        self._count = count
        self._numbers = {i: v for i, v in fixed.items() if not isinstance(v, torch.Tensor)}
        self._names = {}
        for i, value in fixed.items():
            if isinstance(value, torch.Tensor):
                self._names[i] = f"weight_{i}"
                self.register_buffer(f"weight_{i}", value.detach())

    def forward(self, *tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        values = [
            self._numbers[i] if i in self._numbers else getattr(self, self._names[i]) if i in self._names else next(rest) for i in range(self._count)
        ]
        return self.graph_module(*values)


def _key_part(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    return int(value) if isinstance(value, torch.SymInt) else (type(value), value)


def _is_weight(value: Any) -> bool:
    # Dynamo marks parameters and buffers, whose addresses and values stay the same between calls, as static inputs.
    return isinstance(value, torch.nn.Parameter) or (
        isinstance(value, torch.Tensor) and getattr(value, "_dynamo_static_input_type", None) is not None
    )


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt) or (isinstance(value, torch.Tensor) and any(isinstance(s, torch.SymInt) for s in value.shape))
