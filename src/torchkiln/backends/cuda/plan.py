"""plan: what runs, in order, over which memory: an engine segment of the CUDA backend as plain data, and its bytes in the engine file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...dtypes import dtype_name, parse_dtype
from ...errors import BuildFailed, CorruptEngineFile
from .recipe import Ref, TensorSpec
from .step_order import MAX_STREAMS

PLAN_VERSION = 3
#: Of a block.
MAX_THREADS = 1024

#: Where a tensor's memory is: a caller's input, a stored constant, the arena, an output that the caller will own, the zeroed counters, or memory that
#: a torch operator allocated itself; a "value" is such a result between two calls of torch, in whatever layout it came.
PLACES = ("input", "constant", "arena", "output", "counters", "torch", "value")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the plan.

    Attributes:
        place: one of PLACES.
        index: which input, output or result of torch it is part of; which constant (by name, see ``Plan.constants``).
        offset: from the start of that memory (arena, counters: bytes; others: elements).
    """

    place: str
    index: int
    offset: int
    spec: TensorSpec


@dataclass(frozen=True)
class KernelStep:
    """A launch. ``operands`` are indices into the plan's tensors."""

    code: int
    grid: tuple[int, int, int]
    operands: tuple[int, ...]


@dataclass(frozen=True)
class TorchStep:
    """An operator of torch. In ``args`` and ``kwargs``, Ref("INDEX") stands for a tensor of the plan.

    Attributes:
        results: for each result the tensor it is (-1 drops it); its memory lives from here to its last reader.
        out: the operator writes into tensors it is given.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    results: tuple[int, ...]
    out: bool


@dataclass(frozen=True)
class Code:
    """Machine code of a kernel; several steps may launch it.

    Attributes:
        overlaps: it waits itself for the kernels before it.
        all_shared: see ``Function.prefer_shared``.
    """

    blob: bytes
    name: str
    threads: int
    shared_bytes: int
    overlaps: bool
    all_shared: bool


@dataclass(frozen=True)
class StepInfo:
    """What a step is, for the step table.

    Attributes:
        label: the operators of the model, as "layer1.0.conv1: conv+relu".
        op, tactic, config: what was chosen to run it.
        shape, dtype: of its first output.
        bytes: what it must read and write at least; flops: what it must compute. Of the whole op; the steps of an op share one info.
        median_us: as measured by the tuner; None when it was not.
    """

    label: str
    op: str
    tactic: str
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    flops: int
    median_us: float | None
    math: str = "ieee"


@dataclass(frozen=True)
class Step:
    """One step: on which stream, after which steps of other streams (indices), and what it belongs to (index into ``Plan.infos``)."""

    run: KernelStep | TorchStep
    info: int
    stream: int = 0
    waits: tuple[int, ...] = ()


@dataclass
class Plan:
    """All steps at one set of input shapes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_tensors: tuple[int, ...]
    tensors: list[Tensor]
    steps: list[Step]
    infos: list[StepInfo]
    constants: list[str]
    arena_bytes: int
    tensor_bytes: int
    """Bytes of all temporaries together: what the arena would be if no memory were shared."""
    counters: int
    streams: int = 1
    measured: tuple[tuple[int, float], ...] = ()
    """Microseconds of the whole plan in a CUDA graph on each number of streams that was tried; empty where there was no choice."""


@dataclass
class Bundle:
    """The plans of a segment, one for each batch size it was built for, and the code they share.

    Attributes:
        batch_sizes: for each plan, the size of dimension 0 of every input; empty when shapes are fixed.
        dynamic_outputs: for each output, whether its dimension 0 is the batch.
        target: what the code needs where it is loaded.
    """

    plans: list[Plan]
    codes: list[Code]
    target: dict[str, Any]
    batch_sizes: tuple[int, ...] = ()
    dynamic_outputs: tuple[bool, ...] = ()
    rejects: list[tuple[str, str]] = field(default_factory=list)
    """Patterns that were not fused: (where, why)."""


def encode_bundle(bundle: Bundle) -> bytes:
    """A length, a JSON header, the machine code."""
    header = {
        "version": PLAN_VERSION,
        "target": bundle.target,
        "batch_sizes": bundle.batch_sizes,
        "dynamic_outputs": bundle.dynamic_outputs,
        "rejects": bundle.rejects,
        "codes": [{**{k: v for k, v in asdict(code).items() if k != "blob"}, "size": len(code.blob)} for code in bundle.codes],
        "plans": [encode_plan(plan) for plan in bundle.plans],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *(code.blob for code in bundle.codes)])


def decode_bundle(payload: bytes) -> Bundle:
    """The inverse. Raises CorruptEngineFile."""
    header, blobs = _split(payload)
    try:
        codes, at = [], 0
        for entry in header["codes"]:
            size = entry.pop("size")
            if size < 0 or at + size > len(blobs):
                raise CorruptEngineFile("cuda plan: its machine code is cut short")
            codes.append(_checked(Code(blob=bytes(blobs[at : at + size]), **entry)))
            at += size
        if at != len(blobs):
            raise CorruptEngineFile("cuda plan: more machine code than its header lists")
        return Bundle(
            plans=[_decode_plan(plan) for plan in header["plans"]],
            codes=codes,
            target=header["target"],
            batch_sizes=tuple(header["batch_sizes"]),
            dynamic_outputs=tuple(header["dynamic_outputs"]),
            rejects=[(where, why) for where, why in header["rejects"]],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptEngineFile(f"cuda plan: malformed: {type(error).__name__}: {error}") from error


def _checked(code: Code) -> Code:
    """The code, unless what a launch takes from it is of another kind than it must be: raises CorruptEngineFile."""
    counts = (code.threads, code.shared_bytes)
    if not all(type(count) is int and count >= 0 for count in counts) or not 1 <= code.threads <= MAX_THREADS:
        raise CorruptEngineFile(f"cuda plan: machine code for {code.threads!r:.20} threads with {code.shared_bytes!r:.20} bytes of shared memory")
    if type(code.name) is not str or type(code.overlaps) is not bool or type(code.all_shared) is not bool:
        raise CorruptEngineFile(f"cuda plan: machine code {code.name!r:.50}: expected a name and two truth values")
    return code


def _split(payload: bytes) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(payload)
    if len(view) < 8:
        raise CorruptEngineFile("cuda plan: shorter than its header")
    (size,) = struct.unpack("<Q", view[:8])
    if 8 + size > len(view):
        raise CorruptEngineFile("cuda plan: its header is cut short")
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
        version = header["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptEngineFile(f"cuda plan: its header is not what torchkiln writes: {error}") from error
    if version != PLAN_VERSION:
        raise CorruptEngineFile(f"cuda plan: version {version}, this torchkiln reads {PLAN_VERSION}: build the engine again")
    return header, view[8 + size :]


def encode_plan(plan: Plan) -> dict[str, Any]:
    """As JSON values."""
    return {
        "inputs": [spec.as_json() for spec in plan.inputs],
        "outputs": [spec.as_json() for spec in plan.outputs],
        "output_tensors": plan.output_tensors,
        "tensors": [[t.place, t.index, t.offset, *t.spec.as_json()] for t in plan.tensors],
        "steps": [[_encode_run(step.run), step.info, step.stream, step.waits] for step in plan.steps],
        "infos": [asdict(info) for info in plan.infos],
        "constants": plan.constants,
        "arena_bytes": plan.arena_bytes,
        "tensor_bytes": plan.tensor_bytes,
        "counters": plan.counters,
        "streams": plan.streams,
        "measured": plan.measured,
    }


def _decode_plan(data: dict[str, Any]) -> Plan:
    plan = Plan(
        inputs=tuple(map(_spec, data["inputs"])),
        outputs=tuple(map(_spec, data["outputs"])),
        output_tensors=tuple(data["output_tensors"]),
        tensors=[Tensor(place, index, offset, _spec(spec)) for place, index, offset, *spec in data["tensors"]],
        steps=[Step(_decode_run(run), info, stream, tuple(waits)) for run, info, stream, waits in data["steps"]],
        infos=[StepInfo(**{**info, "shape": tuple(info["shape"])}) for info in data["infos"]],
        constants=list(data["constants"]),
        arena_bytes=data["arena_bytes"],
        tensor_bytes=data["tensor_bytes"],
        counters=data["counters"],
        streams=data["streams"],
        measured=tuple((streams, median_us) for streams, median_us in data["measured"]),
    )
    if any(tensor.place not in PLACES for tensor in plan.tensors):
        raise CorruptEngineFile("cuda plan: a tensor in an unknown place")
    _check_streams(plan)
    return plan


def _check_streams(plan: Plan) -> None:
    """Raises CorruptEngineFile unless every step is on a stream there is and waits for earlier steps of other streams only."""
    if type(plan.streams) is not int or not 1 <= plan.streams <= MAX_STREAMS:
        raise CorruptEngineFile(f"cuda plan: expected 1 to {MAX_STREAMS} streams, got {plan.streams!r:.50}")
    for number, step in enumerate(plan.steps):
        if type(step.stream) is not int or not 0 <= step.stream < plan.streams:
            raise CorruptEngineFile(f"cuda plan: step {number}: expected a stream below {plan.streams}, got {step.stream!r:.50}")
        for wait in step.waits:
            if type(wait) is not int or not 0 <= wait < number or plan.steps[wait].stream == step.stream:
                raise CorruptEngineFile(f"cuda plan: step {number}: expected to wait for earlier steps of other streams, got {wait!r:.50}")
        if step.stream and isinstance(step.run, TorchStep) and not step.run.out:
            raise CorruptEngineFile(f"cuda plan: step {number}: {step.run.op!r:.100} allocates, so it must be on stream 0, not {step.stream}")
    for tried in plan.measured:
        if [type(value) for value in tried] not in ([int, float], [int, int]):
            raise CorruptEngineFile(f"cuda plan: expected numbers of streams and their times, got {tried!r:.100}")


def _spec(data: Sequence[Any]) -> TensorSpec:
    shape, strides, dtype = data
    return TensorSpec(tuple(shape), tuple(strides), parse_dtype(dtype))


def _encode_run(run: KernelStep | TorchStep) -> list[Any]:
    if isinstance(run, KernelStep):
        return ["kernel", run.code, run.grid, run.operands]
    return ["torch", run.op, encode_argument(run.args), [[k, encode_argument(v)] for k, v in run.kwargs], run.results, run.out]


def _decode_run(data: Sequence[Any]) -> KernelStep | TorchStep:
    if data[0] == "kernel":
        _, code, grid, operands = data
        return KernelStep(code, (grid[0], grid[1], grid[2]), tuple(operands))
    _, op, args, kwargs, results, out = data
    return TorchStep(op, tuple(decode_argument(args)), tuple((k, decode_argument(v)) for k, v in kwargs), tuple(results), out)


def encode_argument(value: Any) -> Any:
    """An operator's argument as JSON: numbers, text, None, lists, dtypes and Refs."""
    import torch

    if isinstance(value, Ref):
        return {"ref": [value.name, list(value.shape), list(value.strides), value.offset]}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, (list, tuple)):
        return [encode_argument(part) for part in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BuildFailed(f"an argument of type {type(value).__name__} cannot be kept in a plan: {value!r:.100}")


def decode_argument(value: Any) -> Any:
    if isinstance(value, list):
        return [decode_argument(part) for part in value]
    if isinstance(value, dict):
        if "ref" in value:
            name, shape, strides, offset = value["ref"]
            return Ref(name, tuple(shape), tuple(strides), offset)
        return parse_dtype(value["dtype"]) if "dtype" in value else float(value["float"])
    return value
