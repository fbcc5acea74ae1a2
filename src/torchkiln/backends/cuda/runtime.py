"""load: a plan's steps over device memory. Imports no builder: no Triton, no compiler, no tactics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...errors import CorruptEngineFile, TargetMismatch
from ...fp32_math import read_fp32_math, restore_fp32_math, set_fp32_math
from .check_plan import check_plan
from .cusparselt import version as cusparselt_version
from .driver import Function, load_function
from .plan import Bundle, Code, KernelStep, Plan, Step, Tensor, decode_bundle
from .recipe import ALIGNMENT_BYTES, TensorSpec, refs_in
from .run_recipe import as_sequence, call_op, resolve
from .side_streams import side_streams
from .step_order import order_of

#: Sets of counters for captured graphs; one more capture than this has its counters zeroed in the graph.
SPARE_COUNTERS = 4


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> PlanRunner:
    """Put code and constants on ``device``. ``num_threads`` does not matter on a GPU.

    Raises TargetMismatch on another kind of GPU than the engine was built for, CorruptEngineFile for a damaged plan.
    """
    import torchkiln.fused_ops  # noqa: F401  (what no kernel runs is called by its reference)

    from . import cublaslt, cusparselt  # noqa: F401  (operators that plans call)

    bundle = decode_bundle(artifact.payload)
    for plan in bundle.plans:
        check_plan(plan, len(bundle.codes))
    check_target(bundle.target, device)
    index = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    functions = load_codes(bundle.codes, index)
    constants = {name: tensor.to(index) for name, tensor in artifact.tensors.items()}
    return PlanRunner(bundle, functions, constants, index)


def load_codes(codes: Sequence[Code], device: torch.device) -> list[Function]:
    """Machine code on ``device``, ready to be launched. Raises BuildFailed with the driver's message."""
    functions = []
    for code in codes:
        functions.append(load_function(code.blob, code.name, code.threads, code.shared_bytes, code.overlaps, device))
        with torch.cuda.device(device):
            functions[-1].prefer_shared(code.all_shared)
    return functions


def describe_target(device: torch.device) -> dict[str, Any]:
    """What kernels built for ``device`` need: machine code is of one compute capability, and was chosen for one kind of GPU."""
    properties = torch.cuda.get_device_properties(device)
    return {"compute_capability": f"{properties.major}.{properties.minor}", "gpu": properties.name}


def check_target(target: Mapping[str, Any], device: torch.device) -> None:
    """Raises TargetMismatch for a GPU of another compute capability, and for another cuSPARSELt than the one that compressed 2:4 weights."""
    here = describe_target(device)
    if here["compute_capability"] != target.get("compute_capability"):
        raise TargetMismatch(
            f"cuda: built for compute capability {target.get('compute_capability')} ({target.get('gpu')}), "
            f"this GPU has {here['compute_capability']} ({here['gpu']}). "
            "Build the engine again on this machine: torchkiln compile MODEL --backend cuda."
        )
    compressed_by = target.get("cusparselt")
    if compressed_by is not None and compressed_by != cusparselt_version():
        raise TargetMismatch(
            f"cuda: its 2:4 weights were compressed by cuSPARSELt {compressed_by!r:.20}, this torch has {cusparselt_version() or 'none'}. "
            "Build the engine again with this torch, or run it with the one that it was built with."
        )


class PlanRunner:
    """Runs a segment's plans on the caller's current stream. Safe under concurrent calls: every call has memory of its own.

    ``batch_buckets``: the batch sizes that plans were built for; other sizes run in the next larger one, padded, with the padding dropped.
    """

    capture_blocker = ""

    def __init__(self, bundle: Bundle, functions: Sequence[Function], constants: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.batch_buckets = bundle.batch_sizes
        self.bundle = bundle
        self._device = device
        self._dynamic_outputs = bundle.dynamic_outputs
        self._plans = [LoadedPlan(plan, functions, constants, device) for plan in bundle.plans]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.cuda.device(self._device), torch.no_grad():
            if not self.batch_buckets:
                return self._plans[0].run(inputs)
            return self._run_padded(inputs)

    def _run_padded(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        batch = inputs[0].shape[0]
        largest = self.batch_buckets[-1]
        if batch > largest:
            # In turns of the largest size.
            parts = [self._run_padded([value[start : start + largest] for value in inputs]) for start in range(0, batch, largest)]
            return [torch.cat(pieces) if dynamic else pieces[0] for dynamic, *pieces in zip(self._dynamic_outputs, *parts, strict=True)]
        index = next(i for i, size in enumerate(self.batch_buckets) if size >= batch)
        missing = self.batch_buckets[index] - batch
        if not missing:
            return self._plans[index].run(inputs)
        padded = [torch.cat([value, value.new_zeros((missing, *value.shape[1:]))]) for value in inputs]
        outputs = self._plans[index].run(padded)
        return [out[:batch].clone() if dynamic else out for out, dynamic in zip(outputs, self._dynamic_outputs, strict=True)]

    def time_steps(self, inputs: Sequence[torch.Tensor], repeats: int) -> list[float]:
        """Median microseconds of each step of the plan for these inputs' batch, each alone, launch overhead taken off."""
        from .time_steps import time_steps

        batch = inputs[0].shape[0] if self.batch_buckets else 0
        plan = self._plans[self.batch_buckets.index(batch) if self.batch_buckets else 0]
        with torch.cuda.device(self._device), torch.no_grad():
            return time_steps(plan, inputs, repeats)


class LoadedPlan:
    """A plan with its code and constants on the device."""

    def __init__(self, plan: Plan, functions: Sequence[Function], constants: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.plan = plan
        self._functions = functions
        self._device = device
        try:
            self._constants = [constants[name] for name in plan.constants]
        except KeyError as error:
            raise CorruptEngineFile(f"cuda plan: a constant is missing: {error}") from error
        for tensor in plan.tensors:
            if tensor.place == "constant" and tensor.offset + tensor.spec.span > self._constants[tensor.index].numel():
                raise CorruptEngineFile(f"cuda plan: a tensor ends behind the constant {plan.constants[tensor.index]!r:.100}")
        self._last_use = _last_uses(plan)
        self._awaited = {wait for step in plan.steps for wait in step.waits}
        self.calls_torch = any(not isinstance(step.run, KernelStep) for step in plan.steps)
        count = SPARE_COUNTERS if device.type == "cuda" and plan.counters else 0
        self._held_counters: list[torch.Tensor] = []
        self._spare_counters = [torch.zeros(plan.counters * 4, dtype=torch.uint8, device=device) for _ in range(count)]

    def take_counters(self) -> torch.Tensor:
        """Zeroed counters. Kernels leave them at zero, so a graph that is captured keeps a set that was zeroed before: one node less in it."""
        if self._spare_counters and torch.cuda.is_current_stream_capturing():
            self._held_counters.append(self._spare_counters.pop())
            return self._held_counters[-1]
        return torch.zeros(self.plan.counters * 4, dtype=torch.uint8, device=self._device)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Launch all steps, in the order of the current stream for all that is outside; the outputs are fresh tensors."""
        return self.start(inputs).run_all()

    def start(self, inputs: Sequence[torch.Tensor]) -> Memory:
        """Memory for one run, nothing launched yet."""
        return Memory(self, inputs)

    def launcher(self, step: Step, memory: Memory, *, overlap: bool = True) -> Callable[[int], None]:
        """A function of a stream handle that launches the step; ``overlap``: see ``Function.launch``."""
        run = step.run
        if isinstance(run, KernelStep):
            function, grid = self._functions[run.code], run.grid
            pointers = [memory.address(index) for index in run.operands]
            return lambda stream: function.launch(grid, pointers, stream, overlap=overlap)
        device = self._device

        def call(stream: int) -> None:
            args = resolve(run.args, lambda name: memory.tensor(int(name)))
            kwargs = {name: resolve(value, lambda n: memory.tensor(int(n))) for name, value in run.kwargs}
            results = call_op(run.op, args, kwargs, device)
            if not run.out:
                for index, result in zip(run.results, as_sequence(results), strict=False):
                    if index >= 0:
                        memory.put(index, result)

        return call


class _Lanes:
    """The streams of one run: the current one, and those beside it.

    Programmatic dependent launch orders a kernel only behind the one in front of it on its stream. That is enough on one stream, where each kernel
    waited for the one before. A kernel that comes first in the run or after an event does not overlap: it starts when all before it is done.
    """

    def __init__(self, sides: Sequence[torch.cuda.Stream]) -> None:
        self.streams = [torch.cuda.current_stream(), *sides]
        self.events: dict[int, torch.cuda.Event] = {}
        self._start = self.streams[0].record_event() if sides else None
        self._entered: set[int] = set()

    def enter(self, step: Step) -> tuple[torch.cuda.Stream, bool]:
        """The step's stream, made to wait for what the step waits for; and whether a kernel may overlap what is in front of it."""
        stream = self.streams[step.stream]
        is_first = step.stream not in self._entered
        self._entered.add(step.stream)
        if is_first and step.stream and not step.waits:  # what it would wait for otherwise is after the start
            assert self._start is not None
            stream.wait_event(self._start)
        for wait in step.waits:
            stream.wait_event(self.events[wait])
        return stream, not is_first and not step.waits

    def join(self) -> None:
        """What the caller launches next comes after all steps."""
        for number in sorted(self._entered - {0}):
            self.streams[0].wait_stream(self.streams[number])


class Memory:
    """The tensors of one run."""

    def __init__(self, loaded: LoadedPlan, inputs: Sequence[torch.Tensor]) -> None:
        plan, device = loaded.plan, loaded._device
        self._loaded = loaded
        self._plan = plan
        self._inputs = [_as_expected(value, spec) for value, spec in zip(inputs, plan.inputs, strict=True)]
        self._arena = torch.empty(plan.arena_bytes, dtype=torch.uint8, device=device)
        self._counters = loaded.take_counters() if plan.counters else None
        self.outputs = [torch.empty(spec.shape, dtype=spec.dtype, device=device) for spec in plan.outputs]
        self._by_torch: dict[int, torch.Tensor] = {}

    def run_all(self) -> list[torch.Tensor]:
        """Launch every step on the current stream and on side streams that start and end in its order, dropping what torch allocated after its
        last reader."""
        plan, loaded = self._plan, self._loaded
        flags = own_flags() if loaded.calls_torch else nullcontext()
        with flags as set_math, side_streams(loaded._device, plan.streams - 1) as sides:
            lanes = _Lanes(sides)
            try:
                for number, step in enumerate(plan.steps):
                    stream, overlap = lanes.enter(step)
                    if not isinstance(step.run, KernelStep):
                        assert set_math is not None, "torch is called"
                        set_math(plan.infos[step.info].math)
                        with torch.cuda.stream(stream) if step.stream else nullcontext():
                            loaded.launcher(step, self)(stream.cuda_stream)
                    else:
                        loaded.launcher(step, self, overlap=overlap)(stream.cuda_stream)
                    if number in loaded._awaited:
                        lanes.events[number] = stream.record_event()
                    for index in loaded._last_use[number]:
                        self._by_torch.pop(index, None)
            finally:
                lanes.join()
        return self.outputs

    def address(self, index: int) -> int:
        """The device address of a tensor's first element."""
        tensor = self._plan.tensors[index]
        if tensor.place == "arena":
            return self._arena.data_ptr() + tensor.offset
        if tensor.place == "counters":
            assert self._counters is not None
            return self._counters.data_ptr() + tensor.offset
        return self._whole(tensor).data_ptr() + tensor.offset * tensor.spec.dtype.itemsize

    def tensor(self, index: int) -> torch.Tensor:
        tensor = self._plan.tensors[index]
        if tensor.place in ("arena", "counters"):
            flat = self._arena if tensor.place == "arena" else self._counters
            assert flat is not None
            size = tensor.spec.span * tensor.spec.dtype.itemsize
            return flat[tensor.offset : tensor.offset + size].view(tensor.spec.dtype).as_strided(tensor.spec.shape, tensor.spec.strides)
        whole = self._whole(tensor)
        if tensor.place == "value":
            return whole
        return whole.as_strided(tensor.spec.shape, tensor.spec.strides, whole.storage_offset() + tensor.offset)

    def put(self, index: int, result: torch.Tensor) -> None:
        """Take what torch allocated as a tensor of the plan, or copy it there."""
        tensor = self._plan.tensors[index]
        if tensor.place == "value":
            self._by_torch[tensor.index] = result
            return
        if tensor.place != "torch":
            self.tensor(index).copy_(result)
            return
        spec = tensor.spec
        if result.stride() != spec.strides:
            result = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=result.device).copy_(result)
        self._by_torch[tensor.index] = result

    def _whole(self, tensor: Tensor) -> torch.Tensor:
        if tensor.place == "input":
            return self._inputs[tensor.index]
        if tensor.place == "constant":
            return self._loaded._constants[tensor.index]
        if tensor.place == "output":
            return self.outputs[tensor.index]
        return self._by_torch[tensor.index]


def _as_expected(value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """``value`` contiguous and aligned."""
    if tuple(value.shape) != spec.shape or value.dtype != spec.dtype:
        raise CorruptEngineFile(f"cuda plan: expected an input of shape {spec.shape}, {spec.dtype}, got {tuple(value.shape)}, {value.dtype}")
    if not value.is_contiguous():
        return value.contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT_BYTES else value


def _last_uses(plan: Plan) -> list[list[int]]:
    """For each step, the memory that torch allocated and that can go when the step is launched.

    torch gives it to what comes next on the stream that it was allocated on, the caller's: it goes when all that touch it are done before that.
    """
    touched: dict[int, list[int]] = {}
    for number, step in enumerate(plan.steps):
        for index in tensors_of(step):
            if plan.tensors[index].place in ("torch", "value"):
                touched.setdefault(plan.tensors[index].index, []).append(number)
    before = order_of([step.stream for step in plan.steps], [step.waits for step in plan.steps])
    found: list[list[int]] = [[] for _ in plan.steps]
    for index, numbers in touched.items():
        for number in range(numbers[-1], len(plan.steps)):
            if not plan.steps[number].stream and all(other == number or before(other, number) for other in numbers):
                found[number].append(index)
                break  # without such a step it goes with the run's other memory, after the streams have joined
    return found


def tensors_of(step: Step) -> list[int]:
    """The plan's tensors that a step reads or writes."""
    run = step.run
    if isinstance(run, KernelStep):
        return list(run.operands)
    found: list[int] = [index for index in run.results if index >= 0]
    return found + [int(ref.name) for ref in refs_in((run.args, run.kwargs))]


class own_flags:
    """Within the block torch's global switches are the plan's: no benchmarking (the same choice every time), TF32 as the step says.

    The switches are the process's: blocks of several threads take turns.
    """

    _lock = threading.Lock()

    def __enter__(self) -> Callable[[str], None]:
        self._lock.acquire()
        try:
            self._benchmark, self._math = torch.backends.cudnn.benchmark, read_fp32_math()
            torch.backends.cudnn.benchmark = False
        except BaseException:
            self._lock.release()
            raise
        return set_fp32_math

    def __exit__(self, *_: object) -> None:
        try:
            torch.backends.cudnn.benchmark = self._benchmark
            restore_fp32_math(self._math)
        finally:
            self._lock.release()
