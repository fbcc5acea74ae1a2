"""assemble_plan: operations and the choices for them -> a Plan: steps, the arena, which tensor is where."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...dtypes import dtype_name
from .compile_kernel import Compiled, with_scratch
from .costs import bytes_of, flops_of
from .dependencies import Access, dependencies
from .measure import overlaps, prefers_shared
from .memory_plan import Buffer, Handover, plan_memory
from .plan import Code, KernelStep, Plan, Step, StepInfo, Tensor, TorchStep
from .recipe import Kernel, Launch, Ref, TensorSpec, TorchCall, refs_in
from .schedule_streams import UNKNOWN_US, Schedule, schedule
from .step_order import order_of
from .tactics.registry import TORCH
from .trace import Operation, Storage, Trace, Value
from .tuner import Choice


class Codes:
    """The machine code of a segment, each kernel once."""

    def __init__(self) -> None:
        self.held: list[Code] = []
        self._index: dict[tuple[bytes, str, int, int, bool], int] = {}

    def add(self, kernel: Kernel, compiled: Compiled, median_us: float | None = None) -> int:
        """Its place. ``median_us``: of the operation that launches it."""
        code = Code(compiled.code, compiled.name, compiled.threads, compiled.shared_bytes, overlaps(kernel), prefers_shared(median_us))
        key = (code.blob, code.name, code.threads, code.shared_bytes, code.overlaps)
        if key not in self._index:
            self._index[key] = len(self.held)
            self.held.append(code)
        elif code.all_shared:  # the division is the code's own: what one short operation needs, all have
            self.held[self._index[key]] = code
        return self._index[key]


class Constants:
    """The tensors that the engine file keeps, each once: weights as they are, or packed."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}
        self._packed: dict[Any, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> str:
        self.held.setdefault(name, tensor.contiguous())
        return name

    def add_packed(self, function: Any, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
        """``function(*tensors)``; the same function of the same tensors is kept once (batch sizes share weights)."""
        made = function(*tensors).contiguous()
        name = f"{names[0]}.packed{len(self._packed)}"
        for other, held in self._packed.items():
            known = self.held[held]
            if other[0] == tuple(names) and (known.shape, known.dtype) == (made.shape, made.dtype) and torch.equal(known, made):
                return held
        self._packed[tuple(names), name] = name
        self.held[name] = made
        return name


@dataclass(eq=False)
class _Slot:
    """A tensor of the plan before memory is placed."""

    place: str
    index: int
    offset: int
    spec: TensorSpec
    storage: Storage | None = None


@dataclass(frozen=True)
class _InPlace:
    """An operation whose output may take the memory of an input: all its inputs that lie there are read in place."""

    source: Storage
    target: Storage
    steps: tuple[int, ...]


def assemble_plan(traced: Trace, choices: Sequence[Choice], codes: Codes, constants: Constants) -> Plan:
    """One stream, in the order of the operations."""
    return assemble_plans(traced, choices, codes, constants, (1,))[0]


def assemble_plans(traced: Trace, choices: Sequence[Choice], codes: Codes, constants: Constants, streams: Sequence[int]) -> list[Plan]:
    """Plans on up to so many streams each, the fewest first; those on as many as a plan before are left out. The first is always there."""
    assembler = _Assembler(traced, codes, constants)
    for operation, choice in zip(traced.operations, choices, strict=True):
        assembler.add(operation, choice)
    schedules: list[Schedule] = []
    for count in streams:
        found = assembler.schedule(count)
        if all(found.stream_count > before.stream_count for before in schedules):
            schedules.append(found)
    return [assembler.plan(found) for found in schedules]


class _Assembler:
    def __init__(self, traced: Trace, codes: Codes, constants: Constants) -> None:
        self.traced, self.codes, self.constants = traced, codes, constants
        self.slots: list[_Slot] = []
        self.steps: list[Step] = []
        self.infos: list[StepInfo] = []
        self.names: list[str] = []
        self.uses: dict[Storage, list[int]] = {}
        self.accesses: list[list[Access]] = []
        self.in_place: list[_InPlace] = []
        self.by_torch: dict[Storage, int] = {}
        self.counters = 0
        self.torch_results = 0
        self.output_of = {value.storage: index for index, value in enumerate(traced.outputs)}

    def schedule(self, streams: int) -> Schedule:
        """The steps on up to so many streams."""
        count = [0] * len(self.infos)
        for step in self.steps:
            count[step.info] += 1
        medians = [info.median_us for info in self.infos]
        times = [UNKNOWN_US if (us := medians[step.info]) is None else us / count[step.info] for step in self.steps]
        # What torch allocates belongs to the stream that it runs on; the caller's is the only one that is the same from its making to its end.
        pinned = [isinstance(step.run, TorchStep) and not step.run.out for step in self.steps]
        return schedule(dependencies(self.accesses), times, pinned, streams)

    def plan(self, found: Schedule) -> Plan:
        """The plan of all operations added, in this order."""
        outputs = tuple(self._slot(value) for value in self.traced.outputs)
        steps = [replace(self.steps[s], stream=t, waits=w) for s, t, w in zip(found.order, found.streams, found.waits, strict=True)]
        position = {step: at for at, step in enumerate(found.order)}
        uses = {storage: sorted({position[step] for step in numbers}) for storage, numbers in self.uses.items()}
        storages = [s for s in uses if s.kind == "temporary" and s not in self.output_of and s not in self.by_torch]
        buffers = [Buffer(s.span * s.dtype.itemsize, uses[s][0], uses[s][-1], tuple(uses[s])) for s in storages]
        index = {storage: at for at, storage in enumerate(storages)}
        handovers = [
            Handover(index[one.source], index[one.target], tuple(position[step] for step in one.steps))
            for one in self.in_place
            if one.source in index and one.target in index
        ]
        order = order_of(found.streams, found.waits) if found.stream_count > 1 else None
        placement = plan_memory(buffers, order, handovers)
        at = dict(zip(storages, placement.offsets, strict=True))
        tensors = [self._placed(slot, at) for slot in self.slots]
        return Plan(
            inputs=tuple(v.spec for v in self.traced.inputs),
            outputs=tuple(v.spec for v in self.traced.outputs),
            output_tensors=outputs,
            tensors=tensors,
            steps=steps,
            infos=self.infos,
            constants=list(self.names),
            arena_bytes=placement.arena_bytes,
            tensor_bytes=placement.tensor_bytes,
            counters=self.counters,
            streams=found.stream_count,
        )

    def _placed(self, slot: _Slot, at: dict[Storage, int]) -> Tensor:
        if slot.storage is None:
            return Tensor(slot.place, slot.index, slot.offset, slot.spec)
        storage, size = slot.storage, slot.spec.dtype.itemsize
        if storage.kind == "input":
            return Tensor("input", storage.index, slot.offset, slot.spec)
        if storage.kind == "constant":
            return Tensor("constant", self._name(self.constants.add(storage.name, self.traced.constants[storage.name])), slot.offset, slot.spec)
        if storage in self.by_torch:
            return Tensor("torch", self.by_torch[storage], slot.offset, slot.spec)
        if storage in self.output_of:
            return Tensor("output", self.output_of[storage], slot.offset, slot.spec)
        return Tensor("arena", 0, at.get(storage, 0) + slot.offset * size, slot.spec)

    def _name(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def _slot(self, value: Value, *, whole: bool = False) -> int:
        """The plan's tensor for a value; ``whole``: from its storage's start, for a kernel that adds the offset itself."""
        offset = 0 if whole else value.offset
        for index, slot in enumerate(self.slots):
            if slot.storage is value.storage and slot.offset == offset and slot.spec == value.spec:
                return index
        self.slots.append(_Slot("", 0, offset, value.spec, value.storage))
        return len(self.slots) - 1

    def _fixed(self, place: str, index: int, offset: int, spec: TensorSpec) -> int:
        self.slots.append(_Slot(place, index, offset, spec))
        return len(self.slots) - 1

    def add(self, operation: Operation, choice: Choice) -> None:
        """The steps of an operation, after those of the operations before."""
        recipe = with_scratch(choice.option.recipe, choice.codes)
        problem = operation.problem
        offsets = problem.attributes.get("offsets", {}) if operation.region is not None else {}
        values: dict[str, Value] = {f"x{i}": v for i, v in enumerate(operation.inputs) if v is not None}
        values |= {f"y{i}": v for i, v in enumerate(operation.outputs)}
        operands = {name: self._slot(value, whole=name in offsets and choice.option.tactic != TORCH) for name, value in values.items()}
        for name, spec in recipe.scratch.items():
            value = Value(Storage("temporary", spec.dtype, spec.span), spec)
            values[f"scratch.{name}"], operands[f"scratch.{name}"] = value, self._slot(value)
        for name, packed in recipe.packed.items():
            sources = [values[o].storage.name for o in packed.operands]
            made = self.constants.add_packed(packed.function, sources, [self._constant(values[o]) for o in packed.operands])
            operands[f"packed.{name}"] = self._fixed("constant", self._name(made), 0, TensorSpec.of(self.constants.held[made]))
        if recipe.counters:
            operands["counters"] = self._fixed("counters", 0, self.counters * 4, TensorSpec.contiguous((recipe.counters,), torch.int32))
            self.counters += recipe.counters
        self.infos.append(
            StepInfo(
                label=operation.label,
                op=problem.attributes["does"] if operation.region is not None else problem.op,
                tactic=choice.option.tactic,
                config=choice.option.config,
                shape=problem.outputs[0].shape,
                dtype=dtype_name(problem.outputs[0].dtype),
                bytes=bytes_of(problem),
                flops=flops_of(problem),
                median_us=choice.median_us,
                math=problem.math,
            )
        )
        first = len(self.steps)
        for call in recipe.launches:
            self._step(call, operands, values, choice)
        self._take_in_place(recipe.in_place, values, tuple(range(first, len(self.steps))))

    def _take_in_place(self, pairs: Sequence[tuple[str, str]], values: dict[str, Value], steps: tuple[int, ...]) -> None:
        """Note the inputs whose memory an output may take, as far as this operation goes; the memory plan sees to the others."""
        for source, target in pairs:
            x, y = values[source], values[target]
            same = [name for name, value in values.items() if value.storage is x.storage]
            # Another operand in the same memory is read elsewhere, unless it too is in place.
            declared = all((name, target) in pairs for name in same)
            whole = all(v.offset == 0 and v.spec.span == v.storage.span for v in (x, y))
            if declared and whole and x.storage.kind == y.storage.kind == "temporary":
                self.in_place.append(_InPlace(x.storage, y.storage, steps))

    def _constant(self, value: Value) -> torch.Tensor:
        tensor = self.traced.constants[value.storage.name]
        return tensor.as_strided(value.spec.shape, value.spec.strides, tensor.storage_offset() + value.offset)

    def _step(self, call: Launch | TorchCall, operands: dict[str, int], values: dict[str, Value], choice: Choice) -> None:
        number = len(self.steps)
        self.accesses.append([])
        if isinstance(call, Launch):
            self._use(call.operands, operands, values, number)
            code = self.codes.add(call.kernel, choice.codes[call.kernel], choice.median_us)
            run: KernelStep | TorchStep = KernelStep(code, call.grid, tuple(operands[name] for name in call.operands))
        else:
            self._use([ref.name for ref in refs_in((call.args, [v for _, v in call.kwargs]))], operands, values, number)
            results = () if call.out else tuple(self._result(name, operands, values, number) for name in call.results)
            run = TorchStep(call.op, _renamed(call.args, operands), tuple((k, _renamed(v, operands)) for k, v in call.kwargs), results, call.out)
        self.steps.append(Step(run, len(self.infos) - 1))

    def _use(self, names: Sequence[str], operands: dict[str, int], values: dict[str, Value], number: int) -> None:
        for name in names:
            # A launch does not say what it writes: what is not an input of the operation may be written.
            is_input = name.startswith(("x", "packed."))
            if name in values:
                self.uses.setdefault(values[name].storage, []).append(number)
                self._access(name, values, not is_input)
            elif not is_input:  # counters, or a value between two calls of torch
                self.accesses[-1].append(Access(("slot", operands[name]), True))

    def _access(self, name: str, values: dict[str, Value], writes: bool) -> None:
        value = values[name]
        memory: Hashable = ("storage", id(value.storage))
        self.accesses[-1].append(Access(memory, writes, value.offset, value.spec))

    def _result(self, name: str, operands: dict[str, int], values: dict[str, Value], number: int) -> int:
        """Where a result of torch goes: its own memory is adopted, unless the tensor is a part of something larger or an output."""
        if not name:
            return -1
        if name not in values:  # a value between two calls of a reference
            operands[name] = self._fixed("value", self._new_result(), 0, TensorSpec((), (), torch.float32))
            self.accesses[-1].append(Access(("slot", operands[name]), True))
            return operands[name]
        value = values[name]
        self.uses.setdefault(value.storage, []).append(number)
        self._access(name, values, True)
        first_write = len(self.uses[value.storage]) == 1
        whole = value.offset == 0 and value.spec.span == value.storage.span
        if first_write and whole and value.storage not in self.output_of:
            self.by_torch[value.storage] = self._new_result()
        return operands[name]

    def _new_result(self) -> int:
        self.torch_results += 1
        return self.torch_results - 1


def _renamed(value: Any, operands: dict[str, int]) -> Any:
    """The argument with operands' names replaced by the plan's tensors."""
    if isinstance(value, Ref):
        return Ref(str(operands[value.name]), value.shape, value.strides, value.offset)
    return tuple(_renamed(part, operands) for part in value) if isinstance(value, (list, tuple)) else value
