"""choose_precisions: the pipeline's step for precision="auto"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..dtypes import precision_name
from ..engine.report import Report
from ..errors import UserError
from ..program import Program
from ..quantize.quantize_program import QuantizedProgram
from ..race.attempt import Attempt
from ..race.race import Race, find_candidates
from ..settings import CompileSettings
from ..target import Target
from ..verify.verify import CheckPoint
from .assignment import Assignment, Narrowing
from .search import PrecisionSearch


def check_search(
    settings: CompileSettings, targets: Sequence[Target], model_precision: torch.dtype, quantized: QuantizedProgram | None, *, is_drawn: bool
) -> None:
    """Raises UserError where a search makes no sense. ``is_drawn``: the inputs are random numbers."""
    absent = [str(target) for target in targets if not target.is_here]
    if absent:
        raise UserError(f"precision='auto': it measures, and {', '.join(absent)} is not in this machine: search on one that has it")
    if model_precision is not torch.float32:
        name = precision_name(model_precision)
        raise UserError(f"precision='auto': it starts from float32, and the model is in {name}: pass the float32 model")
    if quantized is not None and quantized.is_own:
        raise UserError("precision='auto': the model has quantize/dequantize pairs of its own: say enabled_precisions, or pass the float model")
    if quantized is not None and quantized.sample is None and is_drawn and settings.max_error is not None:
        raise UserError(
            "max_error: the calibration cache has no data, and random inputs say nothing about int8's error: pass a batch of data as inputs, or a "
            "DataLoaderCalibrator"
        )


def choose_precisions(
    program: Program,
    quantized: QuantizedProgram | None,
    settings: CompileSettings,
    targets: Sequence[Target],
    device: torch.device,
    report: Report,
    points: list[CheckPoint],
) -> Attempt:
    """Search for the fastest engine within the budget. ``points``: the calls that every engine is checked with, int8 ones too.

    Raises ParityFailed, and what a build raises.
    """
    if quantized is None:
        report.notes.append("int8: not among the candidates: it needs a calibrator")
    # The search judges the errors itself, save where a tolerance was asked for beside the accuracy.
    verify = math.inf if settings.verify is True else settings.verify
    plain = settings.without_search(verify=verify, enabled_precisions=settings.enabled_precisions | {torch.float32})
    unsigned = all(target.device_type == "cpu" for target in targets)
    narrowing = Narrowing(program, settings.calibrator, unsigned=unsigned)

    def make_race(assignment: Assignment | None) -> Race:
        marked, int8 = (program, quantized) if assignment is None else narrowing.programs(assignment)
        return Race(marked, plain, device, report, points, torch.float32, int8, points)

    candidates = find_candidates(targets, plain, report, quantized)
    return PrecisionSearch(narrowing, settings, report, make_race, points[0].arguments.tensors).run(candidates)
