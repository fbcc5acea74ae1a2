"""compile: the pipeline, top to bottom. capture -> lower -> partition -> build -> verify -> Engine."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from .backends.contract import Candidate
from .capture.arguments import Arguments, read_arguments
from .capture.capture import Model, capture
from .capture.exported_program import default_arguments
from .capture.model_device import devices_of, digest_of, move_model, precision_of
from .dtypes import ENABLED_PRECISIONS, TOLERANCES, precision_name
from .engine.contents import EngineContents
from .engine.engine import Engine
from .engine.report import Report, SegmentReport
from .engine.versions import library_versions
from .errors import UnknownOption, UserError
from .inputs import Input
from .log import REJECTS, log_level, set_log_level
from .lower.convert_output_dtype import convert_output_dtype
from .lower.keep_float32 import is_kept_float32, keep_named
from .lower.pipeline import lower
from .precision_search.assignment import Narrowing
from .precision_search.bisect_nodes import Bisection, bisect_nodes
from .precision_search.choose_precisions import check_search, choose_precisions
from .program import Program
from .progress import progress
from .quantize.batches import resize_batch
from .quantize.calibration import Calibration
from .quantize.calibrator import Calibrator
from .quantize.compress_weights import compress_weights
from .quantize.quantize_program import QuantizedProgram, quantize_program, read_quantized_model
from .quantized_ops import INT8, is_dequantize
from .race.attempt import Builder, reject_reports
from .race.race import Race, check_int8, find_candidates
from .settings import CompileSettings, op_name
from .target import TargetGroup, group_targets
from .verify.reference import Reference, flat_tensors, full_float32
from .verify.verify import CheckPoint, make_check_points


def compile(model: Model, inputs: Any = None, *, kwarg_inputs: Mapping[str, Any] | None = None, **options: Any) -> Engine | Report:
    """Turn a PyTorch model into an Engine.

    Args:
        model: an nn.Module in eval mode, a traced or scripted ScriptModule, or an ExportedProgram.
        inputs: the positional arguments the model takes, as tensors or ``torchkiln.Input``, nested as the model takes them. May be left out for
            an ExportedProgram that carries examples. A dict ``{"inputs": [...], "enabled_precisions": {...}}`` is taken as a TRTorch compile spec.
        kwarg_inputs: the keyword arguments, likewise.
        **options: see CompileSettings (docs/options.md): enabled_precisions, backend, min_block_size, torch_executed_ops,
            require_full_compilation, dryrun, verify, ...

    Returns:
        The Engine, built for each target of ``target`` (default: the device the model is on); for GPUs that this machine does not have it can be
        saved but not called. With ``dryrun=True`` the Report of what would be built.

    Raises:
        UnknownOption, UserError: the request is wrong; the message says what to change.
        ExportFailed: torch.export cannot take the model whole.
        BackendUnavailable, BuildFailed: the backend asked for cannot run here or cannot build the model.
        ParityFailed: no candidate is within the tolerance of the source model.
    """
    if isinstance(inputs, Mapping) and "inputs" in inputs:
        inputs, kwarg_inputs, options = _read_spec(inputs, kwarg_inputs, options)
    settings = CompileSettings.from_options(options)
    with _logging(settings.debug):
        return _compile(model, inputs, kwarg_inputs, settings)


def _compile(model: Model, inputs: Any, kwarg_inputs: Mapping[str, Any] | None, settings: CompileSettings) -> Engine | Report:
    groups = group_targets(settings.target_names, _device_of(model, settings))
    if len(groups) == 1:
        result = _compile_for(groups[0], model, inputs, kwarg_inputs, settings)
        return result if isinstance(result, Report) else Engine(result, may_be_absent=True, num_threads=settings.num_threads)
    if settings.dryrun:
        raise UserError(f"dryrun: one kind of target at a time, got {', '.join(settings.target_names)}: GPUs that are not here count as one kind")
    built = []
    for group in groups:
        progress(f"target {group.name}", 0, 0)
        contents = _compile_for(group, model, inputs, kwarg_inputs, settings)
        assert isinstance(contents, EngineContents)
        built.append(contents)
    return Engine(built, may_be_absent=True, num_threads=settings.num_threads)


def _compile_for(
    group: TargetGroup, model: Model, inputs: Any, kwarg_inputs: Mapping[str, Any] | None, settings: CompileSettings
) -> EngineContents | Report:
    """Build for one group of targets: those that one engine serves."""
    device = group.device
    model = move_model(model, device)
    arguments = _arguments(model, inputs, kwarg_inputs, device, settings)
    precision = precision_of(model)
    report = Report(
        model=_model_name(model),
        device=group.name,
        backend=settings.backend,
        precision="",
        enabled_precisions=settings.precision_names,
        versions=library_versions(),
        settings=settings.as_json(),
    )
    with _phase(report, "capture"):
        program = capture(model, arguments)
        report.notes += program.notes
    with _phase(report, "lower"):
        lower(program)
        if settings.output_dtype is not None:
            convert_output_dtype(program, settings.output_dtype)
        keep_named(program.graph_module, settings.keep_float32)
    _note_ignored(program, settings, report)
    quantized = _quantize(program, group, settings, report)
    is_drawn = any(isinstance(leaf, Input) for leaf in tree_leaves((inputs, kwarg_inputs)))
    is_search = settings.precision is not None and not settings.dryrun
    if is_search:
        check_search(settings, group.targets, precision, quantized, is_drawn=is_drawn)
    candidates = [] if is_search else find_candidates(group.targets, settings, report, quantized)
    if settings.dryrun:
        return _dry_run(program, quantized, candidates, settings, device, report)
    with _phase(report, "reference"):
        points, quantized_points = _check_points(model, arguments, quantized, settings, is_drawn)
    with _phase(report, "build"):
        if is_search:
            best = choose_precisions(program, quantized, settings, group.targets, device, report, quantized_points)
        else:
            best = Race(program, settings, device, report, points, precision, quantized, quantized_points).run(candidates)
    if not best.parity.verified:
        report.notes.append("not verified: verify=False")
    report.notes += [f"{name}: not read by {report.backend}, the backend that was kept" for name in settings.unread_by(report.backend)]
    best.contents.model_sha256 = digest_of(model)
    return best.contents


def calibrate(model: Model, inputs: Any, calibrator: Calibrator, *, kwarg_inputs: Mapping[str, Any] | None = None) -> Calibration:
    """Calibrate ``model`` without building anything; a calibrator with a cache file writes it. ``inputs`` as in ``compile``.

    Raises UserError, ExportFailed: the model or the data cannot be taken.
    """
    device = _device_of(model, CompileSettings())
    program = capture(model, _arguments(model, inputs, kwarg_inputs, device, CompileSettings()))
    lower(program)
    return calibrator.calibrate(program)


def bisect(
    model: Model,
    inputs: Any = None,
    *,
    precision: torch.dtype | str,
    tolerance: float | None = None,
    kwarg_inputs: Mapping[str, Any] | None = None,
    calibrator: Calibrator | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Bisection:
    """Which operators of ``model`` must stay in float32 for an engine of ``precision`` to be right. Runs the graph in PyTorch; builds nothing.

    Args:
        inputs, kwarg_inputs: as in ``compile``. The answer is for these values: pass real data where there is some.
        precision: torch.float16, torch.bfloat16 or torch.int8, or its short name.
        tolerance: the largest relative L2 error of the outputs. Default: as ``verify`` has it for the precision.
        calibrator: for int8, where the ranges come from; its data is used where ``inputs`` are only described.
        seed: of the random inputs drawn when only shapes were given.

    Returns:
        A Bisection: the first operator, a smallest set, and what to pass to ``compile(keep_float32=...)``. ``print`` shows it.

    Raises UserError, ExportFailed: the model or the request cannot be taken.
    """
    dtype = _bisected(precision, calibrator)
    if tolerance is None:
        tolerance = TOLERANCES[dtype]
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < math.inf:
        raise UserError(f"bisect: tolerance: expected a finite number > 0, got {tolerance!r}")
    settings = CompileSettings(device=device, seed=seed)
    own_device = _device_of(model, settings)
    arguments = _arguments(model, inputs, kwarg_inputs, own_device, settings)
    if precision_of(model) is not torch.float32:
        raise UserError(f"bisect: it starts from float32, and the model is in {precision_name(precision_of(model))}: pass the float32 model")
    program = capture(model, arguments)
    lower(program)
    tensors: Sequence[torch.Tensor] = arguments.tensors
    narrowing = Narrowing(program, calibrator, unsigned=own_device.type == "cpu")
    if calibrator is not None:
        calibrator.calibrate(program)
        if not narrowing.int8_layers():
            raise UserError("bisect: no layer of the model can be quantized")
        is_drawn = any(isinstance(leaf, Input) for leaf in tree_leaves((inputs, kwarg_inputs)))
        sample = resize_batch(calibrator.sample, [t.shape for t in tensors]) if is_drawn and calibrator.sample is not None else None
        tensors = tensors if sample is None else sample
    return bisect_nodes(narrowing, tensors, dtype, float(tolerance))


def _bisected(precision: torch.dtype | str, calibrator: Calibrator | None) -> torch.dtype:
    """The dtype to bisect. Raises UserError."""
    dtype = ENABLED_PRECISIONS.get(precision) if isinstance(precision, str) else precision
    if dtype not in (torch.float16, torch.bfloat16, torch.int8):
        raise UserError(f"bisect: precision: expected fp16, bf16 or int8, got {precision!r}")
    if (dtype is torch.int8) != (calibrator is not None):
        raise UserError("bisect: int8 needs a calibrator, which says the ranges; the other precisions need none")
    return dtype


def _quantize(program: Program, group: TargetGroup, settings: CompileSettings, report: Report) -> QuantizedProgram | None:
    """The program in int8, where that is asked for or the model is quantized itself.

    Raises UserError when nothing says the ranges, BackendUnavailable when the one backend asked for has no int8.
    """
    check_int8(settings)  # calibrating takes long
    if settings.calibrator is not None:
        with _phase(report, "calibrate"):
            return quantize_program(program, settings.calibrator, unsigned=all(target.device_type == "cpu" for target in group.targets))
    if settings.weight_precision is not None:
        with _phase(report, "compress weights"):
            return compress_weights(program, settings.weight_precision, settings.weight_group_size)
    own = read_quantized_model(program)
    paired = [n.name for n in program.graph_module.graph.nodes if is_kept_float32(n) and any(map(is_dequantize, n.all_input_nodes))]
    if own is not None and paired:
        raise UserError(f"keep_float32: {paired[0]} reads int8 by the model's own quantize/dequantize pairs: leave it out, or pass the float model")
    if own is None and torch.int8 in settings.enabled_precisions:
        raise UserError(
            "enabled_precisions: int8 needs the range of each layer's input: give calibrator=torchkiln.ptq.DataLoaderCalibrator(batches) (on the "
            "command line --calibration-cache, a file that 'torchkiln calibrate' writes), or a model that has quantize/dequantize pairs"
        )
    return own


def _check_points(
    model: Model, arguments: Arguments, quantized: QuantizedProgram | None, settings: CompileSettings, is_drawn: bool
) -> tuple[list[CheckPoint], list[CheckPoint]]:
    """The calls that engines are checked with, and those for int8 ones: the same shapes, with calibration data where there is some that fits.

    int8 clips what calibration has not seen, so random inputs (``is_drawn``) say nothing about its distance from the float model: with them an int8
    engine is compared with the quantized graph in PyTorch.
    """
    if settings.verify is False:
        points = [CheckPoint("opt", arguments, [])]
        return points, points
    reference = Reference(model, settings.verify_dtype)
    points = make_check_points(reference, arguments, settings.seed)
    if quantized is None or quantized.is_own or quantized.kind != INT8 or (quantized.sample is None and not is_drawn):
        return points, points
    if settings.precision is not None and quantized.sample is None:
        return points, points  # all engines are measured alike; accuracy judges
    if quantized.sample is None:
        quantized.checks_itself = True
        quantized.notes.append(
            "int8: a cache has no data: the engine was compared with the calibrated graph in PyTorch, not with the float model. "
            "Pass a batch as inputs for that"
        )
        run = quantized.program.graph_module
        with torch.inference_mode(), full_float32():
            answers = [flat_tensors(run(*point.arguments.tensors)) for point in points]
        return points, [CheckPoint(p.name, p.arguments, a) for p, a in zip(points, answers, strict=True)]
    found = []
    for point in points:
        tensors = resize_batch(quantized.sample, [t.shape for t in point.arguments.tensors])
        if tensors is None:
            found.append(point)
        else:
            call = arguments.with_tensors(tensors)
            found.append(CheckPoint(f"{point.name} (calibration data)", call, reference.outputs(call)))
    return points, found


def _note_ignored(program: Program, settings: CompileSettings, report: Report) -> None:
    """Say which of the settings have nothing to act on."""
    names = {op_name(n.target) for n in program.graph_module.graph.nodes if n.op == "call_function"}
    known = names | {name.rpartition(".")[0] for name in names}
    for op in sorted(settings.torch_executed_ops - known):
        close = difflib.get_close_matches(op, known, n=1)
        report.notes.append(f"torch_executed_ops: {op} is not in the lowered graph" + (f"; did you mean {close[0]}?" if close else ""))


def _dry_run(
    program: Program, quantized: QuantizedProgram | None, candidates: list[Candidate], settings: CompileSettings, device: torch.device, report: Report
) -> Report:
    """What would be built: the plan of the first candidate that takes most, and every reject."""
    builders = {False: Builder(program, settings, device, report)}
    if quantized is not None:
        builders[True] = Builder(quantized.program, settings, device, report)
    plans = [(c, builders[c.quantized].plan(c)[0]) for c in candidates]
    candidate, plan = max(plans, key=lambda pair: sum(p.op_count for p in pair[1].backend_parts))
    report.backend, report.precision = candidate.backend, candidate.precision_text
    report.notes += quantized.notes if quantized is not None and candidate.quantized else []
    report.segments = [
        SegmentReport(f"segment_{i}", p.backend, candidate.precision_text if p.backend != "torch" else "fp32", p.op_count)
        for i, p in enumerate(plan.parts)
    ]
    report.rejects += reject_reports(plan.rejects, candidate.backend)
    report.notes.append("dry run: nothing was built")
    return report


def _arguments(model: Model, inputs: Any, kwarg_inputs: Mapping[str, Any] | None, device: torch.device, settings: CompileSettings) -> Arguments:
    if inputs is None and kwarg_inputs is None:
        if not isinstance(model, ExportedProgram):
            raise UserError("inputs: expected a list of tensors or torchkiln.Input, as inputs=[torchkiln.Input((1, 3, 224, 224))], got nothing")
        inputs, kwarg_inputs = default_arguments(model)
    return read_arguments(inputs if inputs is not None else (), kwarg_inputs, device, settings.seed)


def _read_spec(spec: Mapping[str, Any], kwarg_inputs: Mapping[str, Any] | None, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    rest = dict(spec)
    inputs = rest.pop("inputs")
    kwarg_inputs = rest.pop("kwarg_inputs", kwarg_inputs)
    for name in rest.keys() & options.keys():
        raise UserError(f"torchkiln.compile: option {name!r} is given twice: in the compile spec and as a keyword")
    for name in rest:
        if not isinstance(name, str):
            raise UnknownOption(str(name), (), "torchkiln.compile: compile spec")
    return inputs, kwarg_inputs, {**rest, **options}


def _device_of(model: Model, settings: CompileSettings) -> torch.device:
    """The current device: asked for, or the model's. Raises UserError when the model is elsewhere or spread over several devices."""
    found = devices_of(model)
    if len(found) > 1:
        raise UserError(f"model: its parameters are on several devices ({', '.join(map(str, found))}): move it to one with model.to(device)")
    asked = torch.device(settings.device) if settings.device is not None else None
    if asked is None:
        return found[0] if found else torch.device("cpu")
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {asked} was asked for, but this machine has no usable GPU: use device='cpu', or name a target: target='sm_89'")
    if asked.type == "cuda" and asked.index is None:
        asked = torch.device("cuda", torch.cuda.current_device())
    if found and found[0] != asked:
        raise UserError(f"device: {asked} was asked for, but the model is on {found[0]}: call model.to({str(asked)!r}) first")
    return asked


def _model_name(model: Model) -> str:
    if isinstance(model, ExportedProgram):
        return "ExportedProgram"
    original = getattr(model, "original_name", None)
    return original if isinstance(original, str) else type(model).__name__


@contextmanager
def _phase(report: Report, name: str) -> Iterator[None]:
    progress(name, 0, 0)
    start = time.perf_counter()
    yield
    report.phases_s[name] = round(time.perf_counter() - start, 3)


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    before = log_level()
    if debug and before < REJECTS:
        set_log_level(REJECTS)
    try:
        yield
    finally:
        set_log_level(before)
