"""runtime: a TensorRT plan as a Runner: contexts per thread, torch's streams and memory. Imports no builder.

Who captures a CUDA graph, so that nobody does it twice:

* TensorRT-RTX captures its own (WHOLE_GRAPH_CAPTURE), as its kernels may be replaced by ones specialized for a shape while it runs. The engine's own
  CUDA graph is told to keep off (``capture_blocker``).
* TensorRT captures nothing. A plan of fixed shapes may become a part of the engine's CUDA graph, or the caller's; the context that was captured is
  never used for anything else. A plan of varying shapes is not captured: each shape would tie up a context with all its memory.

Run on real hardware: nothing of it with TensorRT itself, for want of a GPU that its plans run on. Its logic is tested with a library made for the
tests, which computes through the addresses it is given.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...errors import CorruptEngineFile, InputMismatch, UserError
from ...log import STEPS, log
from ..call_plan import CallPlan
from ..contract import Runner
from .execution_context import ExecutionContext
from .open_plan import OpenPlan, open_plan
from .plan_io import read_io
from .refit import refit_stored_weights
from .runtime_cache import RuntimeCache, cache_path


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
    """Deserialize the plan on ``device``, with its weights where they are stored apart. ``num_threads`` is of the CPU: nothing here uses it.

    Raises what ``open_plan`` raises; CorruptEngineFile for metadata that makes no sense or weights that do not fit the plan.
    """
    call_plan = CallPlan.from_json(artifact.metadata.get("call_plan"))
    plan = open_plan(artifact, device)
    if artifact.metadata.get("weightless") is True:
        refit_stored_weights(plan, artifact.tensors)
    runner = PlanRunner(plan, artifact)
    call_plan.check("tensorrt segment", len(runner.io.inputs), len(runner.io.outputs), artifact.tensors)
    constants = {name: tensor.to(plan.gpu.device) for name, tensor in artifact.tensors.items() if name.startswith("constant_")}
    run: Any = call_plan.wrap(runner, constants)
    if run is not runner:
        run.capture_blocker = runner.capture_blocker  # the schedule asks it of what it calls
    return run


class PlanRunner:
    """Calls a plan. Safe under concurrent calls from several threads: each thread has an execution context, made at its first call and passed on
    when it ends, so there are as many as threads that call at one time (and one for each CUDA graph captured)."""

    def __init__(self, plan: OpenPlan, artifact: Artifact) -> None:
        self._plan = plan
        self.io = read_io(plan.library, plan.engine, artifact.metadata)
        self._config, self._cache, captures_itself = _configure(plan, artifact.payload)
        if captures_itself:
            self.capture_blocker = "TensorRT-RTX captures a CUDA graph of its own"
        elif not self.io.is_static:
            self.capture_blocker = "its shapes vary, and TensorRT would need an execution context for each shape captured"
        else:
            self.capture_blocker = ""
        self._lock = threading.Lock()
        self._idle: deque[ExecutionContext] = deque()
        self._captured: list[ExecutionContext] = []
        self._thread = threading.local()
        self._saved_first = False
        if self._cache is not None:
            # When the runner goes, and at the end of the interpreter.
            weakref.finalize(self, self._cache.save)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self._check(inputs)
        with self._plan.gpu.active():
            if self._plan.gpu.is_capturing():
                return self._run_captured(inputs)
            lease = self._lease()
            shapes = lease.context.shapes
            try:
                outputs = lease.context.run(inputs)
            except InputMismatch:
                raise  # found before the context was touched
            except BaseException:
                # What state it is in is unknown: the next call gets another.
                lease.discard()
                self._thread.lease = None
                raise
        if self._cache is not None and lease.context.shapes is not shapes:
            self._cache.mark_changed()
            if not self._saved_first:
                self._saved_first = True
                self._cache.save()
        return outputs

    @property
    def context_count(self) -> int:
        """Execution contexts that wait for a thread, or that a CUDA graph holds."""
        return len(self._idle) + len(self._captured)

    def _run_captured(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.capture_blocker:
            raise UserError(f"tensorrt segment: a CUDA graph is being captured around the engine, but {self.capture_blocker}: call it outside.")
        lease = self._lease()
        outputs = lease.context.run_captured(inputs)
        # The graph uses the context's memory from now on, for as long as this runner lives.
        with self._lock:
            self._captured.append(lease.context)
        lease.discard()
        self._thread.lease = None
        return outputs

    def _check(self, inputs: Sequence[torch.Tensor]) -> None:
        # The library reads memory by address: a wrong type or device would be read past its end.
        if len(inputs) != len(self.io.inputs):
            raise CorruptEngineFile(f"tensorrt segment: the plan takes {len(self.io.inputs)} inputs, the engine passes {len(inputs)}")
        for port, value in zip(self.io.inputs, inputs, strict=True):
            if value.dtype is not port.dtype:
                raise CorruptEngineFile(f"tensorrt segment: input {port.name}: the plan takes {port.dtype}, the engine passes {value.dtype}")
            if value.device != self._plan.gpu.device:
                raise InputMismatch(f"tensorrt segment: input {port.name}: expected it on {self._plan.gpu.device}, got {value.device}")

    def _lease(self) -> _Lease:
        lease = getattr(self._thread, "lease", None)
        if lease is None:
            lease = self._thread.lease = _Lease(self._take_context(), self._idle)
        return lease

    def _take_context(self) -> ExecutionContext:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._lock:
            engine = self._plan.engine
            raw = engine.create_execution_context() if self._config is None else engine.create_execution_context(self._config)
        if raw is None:
            raise RuntimeError(
                f"tensorrt segment: {self._plan.name} could not make an execution context: {self._plan.logger.errors() or 'it gave no reason'}. "
                "Most often GPU memory is short: each thread that calls has a context of its own."
            )
        return ExecutionContext(raw, self.io, self._plan.gpu, self._plan.logger, owners=(self._config, self._cache, self._plan))


class _Lease:
    """A thread's hold on a context; when the thread ends, the context waits for another."""

    def __init__(self, context: ExecutionContext, idle: deque[ExecutionContext]) -> None:
        self.context = context
        self._idle: deque[ExecutionContext] | None = idle

    def discard(self) -> None:
        """Do not pass the context on."""
        self._idle = None

    def __del__(self) -> None:
        if self._idle is not None:
            self._idle.append(self.context)


def _configure(plan: OpenPlan, payload: bytes) -> tuple[Any, RuntimeCache | None, bool]:
    """The IRuntimeConfig of the contexts (None where the library has none), the cache attached to it, whether the library captures CUDA graphs."""
    strategies = getattr(plan.library.module, "CudaGraphStrategy", None)
    if strategies is None:  # TensorRT: its IRuntimeConfig has nothing for us
        return None, None, False
    config = plan.engine.create_runtime_config()
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
    path = cache_path(payload, plan.gpu.name, plan.library.version)
    if path is None:
        log(STEPS, "runtime cache: off")
        return config, None, True
    with plan.gpu.active():  # the library compares the cache with the current device
        return config, RuntimeCache(config, path), True
