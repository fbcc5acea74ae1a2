"""EngineContents: everything an engine is made of, in memory or in a file, before any backend has loaded it."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .. import __version__
from ..backends.registry import BACKENDS
from ..errors import CorruptEngineFile
from ..inputs import Input
from ..target import Target
from .artifact import Artifact
from .report import Report
from .structure import Structure
from .versions import library_versions

MAX_SLOTS = 1_000_000

#: Groups of (input, dimension).
EqualDims = tuple[tuple[tuple[int, int], ...], ...]
MAX_SEGMENTS = 9_000

#: Segment names become member names of the engine file and module names in logs.
SEGMENT_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


#: "cpu", "sm_89", "sm_80+", or the type of another torch device.
TARGET_NAME = re.compile(r"sm_[0-9]{2,3}\+?|[a-z]{1,16}")


@dataclass(frozen=True)
class BuiltOn:
    """The machine an engine was built on: native code runs only on its like."""

    system: str
    machine: str
    torchkiln: str
    versions: dict[str, str]

    @classmethod
    def here(cls) -> BuiltOn:
        return cls(platform.system(), platform.machine(), __version__, library_versions())


@dataclass
class EngineSegment:
    """One built segment and its place in the engine.

    Attributes:
        name: unique in the engine; letters, digits and underscores.
        backend: a name of backends/registry.py.
        precision: short name of the compute precision ("fp32", "bf16", ...).
        inputs: the value slots it reads, in the order its runner takes them.
        outputs: the value slots it writes, in the order its runner returns them.
        artifact: what the backend built.
    """

    name: str
    backend: str
    precision: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    artifact: Artifact


@dataclass
class EngineContents:
    """An engine as data. Values live in numbered slots: slots ``0 .. len(inputs) - 1`` hold the flat inputs, each segment reads
    slots that are already filled and fills slots of its own, and the outputs are read from ``output_slots`` at the end.

    Attributes:
        device: the torch device it was built for ("cpu", "cuda:0", "cuda").
        targets: what it runs on: ("cpu",), ("sm_90",), or several GPUs that one build serves ("sm_86", "sm_89"). "sm_80+": and every later one.
        model_sha256: of the source model's weights; "" when not known.
        built_on: the system, machine and library versions of the machine it was built on.
        inputs: the flat inputs, in the order of ``args_structure``'s leaves.
        args_structure: structure of ``(args, kwargs)``.
        outputs_structure: structure of what a call returns.
        output_names: one name for each leaf of ``outputs_structure``.
        output_slots: the slot of each leaf of ``outputs_structure``; one slot may be returned twice.
        slot_count: number of slots.
        segments: in the order they run.
        report: how it was built and checked.
        equal_dims: groups of (input, dimension) whose sizes must agree in a call (two inputs with one batch size).
    """

    device: str
    inputs: tuple[Input, ...]
    args_structure: Structure
    outputs_structure: Structure
    output_names: tuple[str, ...]
    output_slots: tuple[int, ...]
    slot_count: int
    segments: tuple[EngineSegment, ...]
    report: Report
    equal_dims: EqualDims = ()
    targets: tuple[str, ...] = ("cpu",)
    model_sha256: str = ""
    built_on: BuiltOn = field(default_factory=BuiltOn.here)

    def check(self) -> None:
        """Raises CorruptEngineFile unless every reference holds: counts agree, slots are in range, filled once and before use,
        segments have unique names and known backends."""
        try:
            torch.device(self.device)
        except RuntimeError:
            raise CorruptEngineFile(f"device: expected a torch device, got {self.device!r}") from None
        if not self.targets or not all(TARGET_NAME.fullmatch(name) for name in self.targets):
            raise CorruptEngineFile(f"targets: expected names as 'cpu' or 'sm_89', got {list(self.targets)!r:.200}")
        kinds = {Target(name).device_type for name in self.targets}
        if kinds != {torch.device(self.device).type}:
            raise CorruptEngineFile(f"targets: {', '.join(self.targets)} are not of the device {self.device}")
        _expect("args_structure: leaves", len(self.inputs), self.args_structure.leaf_count)
        _expect("outputs_structure: leaves", len(self.output_slots), self.outputs_structure.leaf_count)
        _expect("output_names", len(self.output_slots), len(self.output_names))
        if self.args_structure.call is None or any(leaf.kind != "tensor" for leaf in self.args_structure.leaves):
            raise CorruptEngineFile("args_structure: expected the structure of (args, kwargs) with tensors for leaves")
        if not len(self.inputs) <= self.slot_count <= MAX_SLOTS:
            raise CorruptEngineFile(f"slot_count: expected {len(self.inputs)} to {MAX_SLOTS}, got {self.slot_count}")
        if len(self.segments) > MAX_SEGMENTS:
            raise CorruptEngineFile(f"segments: expected at most {MAX_SEGMENTS}, got {len(self.segments)}")
        for group in self.equal_dims:
            for index, dim in group:
                if not 0 <= index < len(self.inputs) or not 0 <= dim < len(self.inputs[index].opt_shape):
                    raise CorruptEngineFile(f"equal_dims: there is no dimension {dim} of input {index}")
        filled = set(range(len(self.inputs)))
        names: set[str] = set()
        for segment in self.segments:
            self._check_segment(segment, filled, names)
        for slot in self.output_slots:
            if slot not in filled:
                raise CorruptEngineFile(f"output_slots: slot {slot} is filled by no segment")

    def _check_segment(self, segment: EngineSegment, filled: set[int], names: set[str]) -> None:
        where = f"segment {segment.name!r}"
        if not SEGMENT_NAME.fullmatch(segment.name):
            raise CorruptEngineFile(f"{where}: expected a name of letters, digits and underscores")
        if segment.name in names:
            raise CorruptEngineFile(f"{where}: the name is there twice")
        names.add(segment.name)
        if segment.backend not in BACKENDS:
            raise CorruptEngineFile(f"{where}: expected a backend among {', '.join(BACKENDS)}, got {segment.backend!r}")
        for key, slots in (("input_count", segment.inputs), ("output_count", segment.outputs)):
            # Backends that know how many values their runner takes and gives record it.
            _expect(f"{where}: {key}", segment.artifact.metadata.get(key, len(slots)), len(slots))
        for slot in segment.inputs:
            if slot not in filled:
                raise CorruptEngineFile(f"{where}: reads slot {slot}, which nothing before it fills")
        for slot in segment.outputs:
            if not 0 <= slot < self.slot_count:
                raise CorruptEngineFile(f"{where}: fills slot {slot}, expected 0 to {self.slot_count - 1}")
            if slot in filled:
                raise CorruptEngineFile(f"{where}: fills slot {slot}, which is filled already")
            filled.add(slot)


def check_together(held: Sequence[EngineContents]) -> None:
    """Raises CorruptEngineFile unless the contents are of one model, have the same call, and no target is there twice."""
    names = [name for contents in held for name in contents.targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorruptEngineFile(f"targets: {', '.join(twice)} is there twice")
    first = held[0]
    for contents in held[1:]:
        where = f"targets: {', '.join(first.targets)} and {', '.join(contents.targets)}"
        for what, one, other in zip(_CALL_FIELDS, _call_of(first), _call_of(contents), strict=True):
            if one != other:
                raise CorruptEngineFile(f"{where} differ in their {what}: {one!r:.300} and {other!r:.300}")
        if first.model_sha256 and contents.model_sha256 and first.model_sha256 != contents.model_sha256:
            raise CorruptEngineFile(f"{where} were built from models with different weights")


_CALL_FIELDS = ("inputs (name, dtype, casts, min, max)", "equal dimensions", "argument structure", "outputs", "output structure")


def _call_of(contents: EngineContents) -> tuple[object, ...]:
    """What a call depends on; not what the engine is tuned for, or which values it was checked on."""
    inputs = [(spec.name, str(spec.dtype), spec.any_float, spec.min_shape, spec.max_shape) for spec in contents.inputs]
    return inputs, contents.equal_dims, contents.args_structure, contents.output_names, contents.outputs_structure


def _expect(where: str, expected: object, got: int) -> None:
    if expected != got:
        raise CorruptEngineFile(f"{where}: expected {expected}, got {got}")
