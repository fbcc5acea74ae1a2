"""step_table: what each step of a plan does, how long it takes and how close that is to what the GPU can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...errors import CorruptEngineFile, TargetMismatch, UserError
from .plan import Bundle, Plan, StepInfo, decode_bundle
from .roofline import Roofline

if TYPE_CHECKING:
    from ...engine.contents import EngineContents, EngineSegment

#: The tactic of an operation that torch itself runs (tactics.registry.TORCH, which reading a file must not import).
TORCH = "torch"
REPEATS = 20

#: What a StepInfo read from a file must hold; nothing else is checked before it is shown.
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("label", "op", "tactic", "dtype", "math"), (str,)),
    **dict.fromkeys(("bytes", "flops"), (int,)),
    "config": (dict,),
    "median_us": (int, float, type(None)),
}


@dataclass(frozen=True)
class Row:
    """One operation of a plan: all the steps that share a StepInfo. None stands for what is not known.

    Attributes:
        steps: numbers of its steps in the plan, from 0.
        streams: on which they run, 0 being the caller's.
        median_us: of the whole operation.
        bytes_per_s, flops_per_s: what it must move and compute at least, over that time.
        roofline_share: the least time that the GPU needs for it, over that time. Data that lie in the L2 cache can bring it above 1.
        total_share: its time over that of all rows whose time is known.
    """

    steps: tuple[int, ...]
    label: str
    op: str
    tactic: str
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str
    math: str
    median_us: float | None
    bytes_per_s: float | None
    flops_per_s: float | None
    roofline_share: float | None
    total_share: float | None
    streams: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class StepTable:
    """The steps of one segment at one batch size.

    Attributes:
        targets, segment, gpu: what it was built for, its name, and the GPU it was tuned on.
        batch: of the plan shown; None when shapes are fixed. ``batch_sizes``: all that there are plans for.
        measured_here: whether the times were measured now; ``times_note`` says so, or why they are the tuner's.
        roofline: the limits of the GPU that the times are of; None with the reason in ``roofline_note``.
        arena_bytes, tensor_bytes: of the memory that temporaries share, and of the temporaries together.
        tactics: number of steps by tactic, most first.
        rejects: what was not fused, or left to torch: (where, why). Of all batch sizes.
        streams: how many the plan runs on.
        stream_times_us: of the whole plan in a CUDA graph when it was built, by the number of streams; empty where there was nothing to run beside
            something else, or nothing was tried.
    """

    targets: tuple[str, ...]
    segment: str
    gpu: str
    batch: int | None
    batch_sizes: tuple[int, ...]
    measured_here: bool
    times_note: str
    roofline: Roofline | None
    roofline_note: str
    rows: list[Row]
    arena_bytes: int
    tensor_bytes: int
    tactics: dict[str, int]
    rejects: list[tuple[str, str]]
    streams: int = 1
    stream_times_us: tuple[tuple[int, float], ...] = ()

    @property
    def total_us(self) -> float | None:
        """Of the rows whose time is known, one after the other; None when none is."""
        known = [row.median_us for row in self.rows if row.median_us is not None]
        return sum(known) if known else None

    @property
    def left_to_torch(self) -> list[Row]:
        return [row for row in self.rows if row.tactic == TORCH]


def rows_of(plan: Plan, times_us: Sequence[float] | None, roofline: Roofline | None) -> list[Row]:
    """A row for each operation, in the order of their first steps.

    Args:
        times_us: of each step; None: the tuner's figures, kept in the plan.
        roofline: of the GPU that the times are of; None: no shares of it.
    """
    steps: dict[int, list[int]] = {}
    for number, step in enumerate(plan.steps):
        steps.setdefault(step.info, []).append(number)
    times = {index: plan.infos[index].median_us if times_us is None else sum(times_us[n] for n in numbers) for index, numbers in steps.items()}
    total = sum(time for time in times.values() if time is not None)
    streams = {index: tuple(sorted({plan.steps[n].stream for n in numbers})) for index, numbers in steps.items()}
    return [_row(tuple(numbers), streams[index], plan.infos[index], times[index], total, roofline) for index, numbers in steps.items()]


def _row(
    steps: tuple[int, ...], streams: tuple[int, ...], info: StepInfo, median_us: float | None, total_us: float, roofline: Roofline | None
) -> Row:
    least_us = None if roofline is None else roofline.time_us(info.bytes, info.flops, arithmetic_of(info))

    def over_time(amount: float | None) -> float | None:
        return amount / median_us if median_us and amount is not None else None

    return Row(
        steps=steps,
        label=info.label,
        op=info.op,
        tactic=info.tactic,
        config=info.config,
        shape=info.shape,
        dtype=info.dtype,
        math=info.math,
        median_us=median_us,
        bytes_per_s=over_time(info.bytes * 1e6),
        flops_per_s=over_time(info.flops * 1e6),
        roofline_share=over_time(least_us),
        total_share=median_us / total_us if median_us is not None and total_us else None,
        streams=streams,
    )


def arithmetic_of(info: StepInfo) -> str:
    """The name in ``Roofline.flops_per_s`` of what an operation computes in."""
    if info.op.startswith("int8_") and info.flops:
        return "int8"
    return "tf32" if info.dtype == "float32" and info.math == "tf32" else info.dtype


def pick_plan(bundle: Bundle, batch: int | None, opt_batch: int | None, where: str) -> int:
    """The index of the plan to show: that of ``batch``; without one that of ``opt_batch``, or the last.

    Raises UserError when the segment has no plan for ``batch``.
    """
    sizes = bundle.batch_sizes
    if batch is None:
        return sizes.index(opt_batch) if opt_batch in sizes else len(bundle.plans) - 1
    if not sizes:
        raise UserError(f"--batch {batch}: {where} is built for fixed shapes, not for several batch sizes: leave --batch out")
    if batch not in sizes:
        raise UserError(f"--batch {batch}: {where} has no plan of that batch size: expected one of {', '.join(map(str, sizes))}")
    return sizes.index(batch)


def read_bundle(payload: bytes, where: str) -> Bundle:
    """The segment's plans, with all that a table shows checked; runs no code of the file. Raises CorruptEngineFile."""
    bundle = decode_bundle(payload)
    if len(bundle.plans) != max(len(bundle.batch_sizes), 1):
        raise CorruptEngineFile(f"{where}: expected a plan for each of {len(bundle.batch_sizes)} batch sizes, got {len(bundle.plans)}")
    for plan in bundle.plans:
        for info in plan.infos:
            wrong = [name for name, kinds in _KINDS.items() if type(getattr(info, name)) not in kinds]
            if wrong or not all(type(size) is int for size in info.shape):
                raise CorruptEngineFile(f"{where}: a step's {wrong[0] if wrong else 'shape'} is of another type than torchkiln writes: {info!r:.200}")
        if any(type(step.info) is not int or not 0 <= step.info < len(plan.infos) for step in plan.steps):
            raise CorruptEngineFile(f"{where}: a step belongs to none of the {len(plan.infos)} operations")
    return bundle


def step_tables(held: Sequence[EngineContents], batch: int | None = None, trusted: bool = False) -> list[StepTable]:
    """A table for each cuda segment of an engine read with its payloads.

    Args:
        batch: which plan; None: that of the opt shapes, or the last.
        trusted: run the steps where this machine's GPU fits, to measure them.

    Raises UserError for an engine without a cuda segment or without a plan for ``batch``, CorruptEngineFile.
    """
    found = [(contents, segment) for contents in held for segment in contents.segments if segment.backend == "cuda"]
    if not found:
        backends = sorted({segment.backend for contents in held for segment in contents.segments})
        raise UserError(
            f"--steps: expected an engine with a segment of the cuda backend, got segments of {', '.join(backends) or 'none'}: "
            "only engines of torchkiln compile MODEL --backend cuda have a step table"
        )
    return [_table(contents, segment, batch, trusted) for contents, segment in found]


def _table(contents: EngineContents, segment: EngineSegment, batch: int | None, trusted: bool) -> StepTable:
    where = f"segment {segment.name} ({', '.join(contents.targets)})"
    bundle = read_bundle(segment.artifact.payload, where)
    index = pick_plan(bundle, batch, _opt_batch(contents), where)
    plan = bundle.plans[index]
    gpu = str(bundle.target.get("gpu") or f"a GPU of compute capability {bundle.target.get('compute_capability')}")
    why_not = _why_not_here(bundle, trusted)
    times = None if why_not else _measure(contents, segment, plan)
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    note = f"measured now on {here}, data partly in the L2 cache" if not why_not else f"the tuner's figures of {gpu}, kept in the file: {why_not}"
    roofline, roofline_note = None, f"the limits of {gpu} are known only where there is one; this machine has {here}"
    if times is not None or here == gpu:
        from .roofline import measure_roofline

        roofline, roofline_note = measure_roofline(torch.device("cuda", torch.cuda.current_device())), ""
    return StepTable(
        targets=contents.targets,
        segment=segment.name,
        gpu=gpu,
        batch=bundle.batch_sizes[index] if bundle.batch_sizes else None,
        batch_sizes=bundle.batch_sizes,
        measured_here=times is not None,
        times_note=note,
        roofline=roofline,
        roofline_note=roofline_note,
        rows=rows_of(plan, times, roofline),
        arena_bytes=plan.arena_bytes,
        tensor_bytes=plan.tensor_bytes,
        tactics=dict(Counter(plan.infos[step.info].tactic for step in plan.steps).most_common()),
        rejects=bundle.rejects,
        streams=plan.streams,
        stream_times_us=plan.measured,
    )


def _opt_batch(contents: EngineContents) -> int | None:
    """The batch that the engine was tuned for; None when no input has one that varies."""
    return next((i.opt_shape[0] for i in contents.inputs if i.opt_shape and i.min_shape[0] != i.max_shape[0]), None)


def _why_not_here(bundle: Bundle, trusted: bool) -> str:
    """Why the steps cannot be measured now; "" when they can."""
    if not torch.cuda.is_available():
        return "this machine has no GPU that torch can use"
    from .runtime import check_target

    try:
        check_target(bundle.target, torch.device("cuda", torch.cuda.current_device()))
    except TargetMismatch as error:
        return str(error)
    return "" if trusted else "measuring runs the file's machine code, which needs --trusted"


def _measure(contents: EngineContents, segment: EngineSegment, plan: Plan) -> list[float]:
    """Median microseconds of each step, on random inputs."""
    from .runtime import load

    device = torch.device("cuda", torch.cuda.current_device())
    runner = load(segment.artifact, device, None)
    inputs = []
    for position, (slot, spec) in enumerate(zip(segment.inputs, plan.inputs, strict=True)):
        if slot < len(contents.inputs):
            # An input of the engine knows its domain: indices into a table, say.
            inputs.append(contents.inputs[slot].random(spec.shape, seed=position, device=device))
        else:
            values = torch.randn(spec.shape, device=device) if spec.dtype.is_floating_point else torch.zeros(spec.shape, device=device)
            inputs.append(values.to(spec.dtype))
    return runner.time_steps(inputs, REPEATS)
