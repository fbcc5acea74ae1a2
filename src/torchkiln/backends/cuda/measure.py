"""measure: candidates of one problem against its reference and against the clock, in the process that calls.

A candidate runs many times inside one CUDA graph, each time on other tensors, together larger than the L2 cache, so that neither launch overhead nor
a warm cache flatters it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...errors import BuildFailed
from ...fp32_math import set_fp32_math
from ...sparsity.pattern import choose_pruned
from .compile_kernel import Compiled, with_scratch
from .driver import Function, load_function
from .int8_samples import fill_integers, sample_operands
from .recipe import Kernel, Launch, Recipe, TensorSpec, TorchCall
from .replay_us import replay_us
from .run_recipe import run_recipe

#: Together the copies of a problem's tensors are larger than this: twice the L2 cache of an H200.
ROTATED_BYTES = 120 * 2**20
MAX_COPIES = 24
REPLAYS = 7
#: With so few sets, results are compared after each replay and not only after the last.
FEW_COPIES = 4

#: Largest relative L2 error against torch in the same precision.
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-4}
TF32_TOLERANCE = 5e-3
#: What tensors are quantized to. A value that lies between two integers may become either, whichever way it was computed.
QUANTIZED = (torch.int8, torch.uint8)
#: How many of the values may be next to torch's, which rounds to a half between operators: by the dtype of what they are computed from.
MOST_ROUNDED = {torch.float16: 0.1, torch.bfloat16: 0.5}
#: Of values that float32 alone comes before.
FEW_ROUNDED = 0.01
#: The operators that round to integers. What others give in 8 bits is torch's, or wrong.
_ROUNDING = ("torchkiln.quantize.", "torchkiln.int8_conv.", "torchkiln.int8_linear.", "torchkiln.int8_layer_norm")
#: Kernels that take less have all memory shared.
SHORT_US = 30.0
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        inputs, outputs: the operands "x0", ... and "y0", ...; None for an input that is left out.
        math: "tf32" or "ieee" for float32 products.
        two_of_four: whether the second input is a weight [out, in, *kernel] with that pattern (see ``mark_two_of_four``).
    """

    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    math: str
    reference: Recipe
    recipes: tuple[Recipe, ...]
    compiled: dict[Kernel, Compiled]
    two_of_four: bool = False


@dataclass(frozen=True)
class Outcome:
    """A candidate's median time, or why it is out."""

    median_us: float | None
    why: str = ""


def measure(job: Job, device: torch.device) -> Iterator[Outcome]:
    """An Outcome for each recipe, in order."""
    import torchkiln.fused_ops  # noqa: F401  (references)

    from . import cublaslt, cusparselt  # noqa: F401  (operators that recipes call)

    torch.backends.cudnn.benchmark = False
    generator = torch.Generator(device).manual_seed(0)
    inputs = {f"x{i}": _random(spec, generator) for i, spec in enumerate(job.inputs) if spec is not None}
    if job.two_of_four:
        inputs["x1"].masked_fill_(choose_pruned(inputs["x1"]), 0)
    sample_operands(_op(job), inputs, generator)
    expected = _reference(job, inputs)
    set_fp32_math(job.math)
    for recipe in job.recipes:
        try:
            yield _measure_one(job, recipe, inputs, expected, device)
        except (RuntimeError, BuildFailed) as error:  # an operator or a launch that refuses its arguments, or memory that is short
            torch.cuda.synchronize()  # raises again when the error is one that the process does not survive
            yield Outcome(None, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _reference(job: Job, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    set_fp32_math("ieee")
    operands = dict(inputs) | {f"y{i}": _empty(spec, inputs) for i, spec in enumerate(job.outputs)}
    run_recipe(job.reference, {}, operands, torch.cuda.current_stream().cuda_stream)
    return [operands[f"y{i}"] for i in range(len(job.outputs))]


def _measure_one(job: Job, recipe: Recipe, inputs: dict[str, torch.Tensor], expected: Sequence[torch.Tensor], device: torch.device) -> Outcome:
    recipe = with_scratch(recipe, job.compiled)
    functions = {launch.kernel: _load(job.compiled[launch.kernel], launch.kernel, device) for launch in recipe.launches if isinstance(launch, Launch)}
    counters = torch.zeros(max(recipe.counters, 1), dtype=torch.int32, device=device)
    first = _operands(job, recipe, inputs, counters)
    given = {name: first[name] for name in first}
    run_recipe(recipe, functions, first, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    # The statistics of a half tensor are float32, and as exact as the tensor.
    # A reference that ends in a cast is as exact as what it casts.
    held = (*job.outputs, *job.reference.scratch.values())
    floats = [TOLERANCES.get(spec.dtype, 0.0) for spec in held if spec.dtype.is_floating_point]
    is_tf32 = job.math == "tf32" and any(spec.dtype == torch.float32 for spec in job.outputs)
    by_float = max([*floats, TF32_TOLERANCE if is_tf32 else 0.0])
    for index, (spec, right) in enumerate(zip(job.outputs, expected, strict=True)):
        if spec.dtype in QUANTIZED:
            why = differing_integers(first[f"y{index}"], right, _most_rounded(job))
            if why:
                return Outcome(None, f"wrong: y{index} {why}")
            continue
        error = _error(first[f"y{index}"], right)
        tolerance = by_float if spec.dtype.is_floating_point else 0.0
        if not error <= tolerance:
            return Outcome(None, f"wrong: y{index} has relative error {error:.3g}, more than {tolerance:.3g}")
    if recipe.counters and bool(counters.any()):
        return Outcome(None, "wrong: leaves its counters other than zero")
    return _time_divided(job, recipe, functions, given, counters)


def prefers_shared(median_us: float | None) -> bool:
    """Whether kernels that together take so long run with all memory shared (see ``Function.prefer_shared``): a change would cost short ones more
    than a larger L1 cache could save. None: not known."""
    return median_us is None or median_us < SHORT_US


def _time_divided(job: Job, recipe: Recipe, functions: dict[Kernel, Function], first: dict[str, torch.Tensor], counters: torch.Tensor) -> Outcome:
    """With a multiprocessor's memory divided as it will be in a plan."""
    for function in functions.values():
        function.prefer_shared(True)
    outcome = _time(job, recipe, functions, first, counters)
    if outcome.median_us is None or prefers_shared(outcome.median_us):
        return outcome
    for function in functions.values():
        function.prefer_shared(False)
    otherwise = _time(job, recipe, functions, first, counters)
    # The time decides how the memory will be divided: a short one would be that of the other division.
    return outcome if otherwise.median_us is not None and prefers_shared(otherwise.median_us) else otherwise


def _time(job: Job, recipe: Recipe, functions: dict[Kernel, Function], first: dict[str, torch.Tensor], counters: torch.Tensor) -> Outcome:
    size = sum(t.numel() * t.element_size() for t in first.values())
    copies = max(1, min(MAX_COPIES, -(-ROTATED_BYTES // max(size, 1))))
    sets = [first] + [{k: t if k == "counters" else _like(t) for k, t in first.items()} for _ in range(copies - 1)]
    by_kernels = all(isinstance(launch, Launch) for launch in recipe.launches)
    checked = {name: _like(first[name]) for name in (f"y{i}" for i in range(len(job.outputs)))} if by_kernels else {}
    calls = max(copies, 6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run_recipe(recipe, functions, dict(sets[0]), stream.cuda_stream)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for call in range(calls):
                run_recipe(recipe, functions, dict(sets[call % copies]), stream.cuda_stream)
        graph.replay()
        times = []
        for _ in range(REPLAYS):
            times.append(replay_us(graph) / calls)
            if copies <= FEW_COPIES and (why := _differing(checked, sets)):
                return Outcome(None, why)
    why = _differing(checked, sets)
    return Outcome(None, why) if why else Outcome(statistics.median(times))


def _differing(checked: dict[str, torch.Tensor], sets: Sequence[dict[str, torch.Tensor]]) -> str:
    """Which output is not in every set, bit for bit, what was checked; "" when all are.

    The inputs are the same, and the runs many: a race that was won when the numbers were checked is lost in one of them.
    """
    for name, right in checked.items():
        bits = _BITS[right.dtype.itemsize]
        if not all(torch.equal(right.view(bits), each[name].view(bits)) for each in sets):
            return f"wrong: {name} differs from run to run"
    return ""


def _operands(job: Job, recipe: Recipe, inputs: dict[str, torch.Tensor], counters: torch.Tensor) -> dict[str, torch.Tensor]:
    operands = dict(inputs)
    for index, spec in enumerate(job.outputs):
        operands[f"y{index}"] = _empty(spec, inputs)
    for name, spec in recipe.scratch.items():
        operands[f"scratch.{name}"] = _empty(spec, inputs)
    for name, packed in recipe.packed.items():
        operands[f"packed.{name}"] = packed.function(*[inputs[o] for o in packed.operands]).contiguous()
    operands["counters"] = counters
    return operands


def _load(compiled: Compiled, kernel: Kernel, device: torch.device) -> Function:
    return load_function(compiled.code, compiled.name, compiled.threads, compiled.shared_bytes, overlaps(kernel), device)


def overlaps(kernel: Kernel) -> bool:
    """Whether the kernel waits itself for the ones before (see kernels/__init__.py)."""
    return bool(dict(kernel.constants).get("PDL", False))


def _op(job: Job) -> str:
    """The operator that is measured, where it is one: "torchkiln.conv.default"."""
    call = job.reference.launches[0]
    return call.op if isinstance(call, TorchCall) else ""


def _most_rounded(job: Job) -> float:
    """How many of the quantized values may be next to torch's."""
    if not any(isinstance(call, TorchCall) and call.op.startswith(_ROUNDING) for call in job.reference.launches):
        return 0.0
    if _op(job).startswith("torchkiln.int8_"):  # all in front of its result is float32
        return FEW_ROUNDED
    return max([MOST_ROUNDED.get(spec.dtype, 0.0) for spec in (*job.inputs, *job.outputs) if spec is not None] + [FEW_ROUNDED])


def differing_integers(got: torch.Tensor, right: torch.Tensor, share: float) -> str:
    """Why quantized values are wrong: more than one from the right one, or more than ``share`` of them beside it. "" when they are right."""
    difference = (got.int() - right.int()).abs()
    if difference.numel() and int(difference.max()) > 1:
        return f"is up to {int(difference.max())} integers away"
    found = float((difference > 0).float().mean()) if difference.numel() else 0.0
    return f"has {found:.3g} of its values next to the right integer, more than {share:.3g}" if found > share else ""


def _random(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    buffer = torch.zeros(max(spec.span, 1), dtype=spec.dtype, device=generator.device)
    tensor = buffer.as_strided(spec.shape, spec.strides)
    values = torch.empty(spec.shape, dtype=torch.float32 if not spec.dtype.is_floating_point else spec.dtype, device=generator.device)
    if spec.dtype.is_floating_point:
        values.normal_(generator=generator)
    else:
        values.random_(0, 2, generator=generator)
    if spec.dtype in QUANTIZED:
        fill_integers(values, generator, spec.dtype)
    expanded = any(stride == 0 and size > 1 for stride, size in zip(spec.strides, spec.shape, strict=True))
    (buffer if expanded else tensor).copy_(values.flatten()[: buffer.numel()] if expanded else values)
    return tensor


def _empty(spec: TensorSpec, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Filled with NaN (or ones), so that what a kernel does not write is seen."""
    device = next(iter(inputs.values())).device if inputs else torch.device("cuda")
    buffer = torch.full((max(spec.span, 1),), float("nan") if spec.dtype.is_floating_point else 1, dtype=spec.dtype, device=device)
    return buffer.as_strided(spec.shape, spec.strides)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor of the same strides and values."""
    spec = TensorSpec.of(tensor)
    buffer = tensor.as_strided((max(spec.span, 1),), (1,)).clone()
    return buffer.as_strided(spec.shape, spec.strides)


def _error(got: torch.Tensor, right: torch.Tensor) -> float:
    if not got.dtype.is_floating_point:
        return float((got != right).sum())
    got, right = got.double(), right.double()
    if not torch.equal(got.isfinite(), right.isfinite()):
        return float("inf")
    got, right = got.nan_to_num(0, 0, 0), right.nan_to_num(0, 0, 0)
    return float((got - right).norm() / right.norm().clamp_min(1e-20))
