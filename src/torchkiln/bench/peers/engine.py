"""The engine itself, as a user gets it: ``torchkiln.compile`` and a call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...errors import UserError
from ...verify.reference import flat_tensors
from ..case import Case
from .contract import Runner

#: (case, enabled precisions, engine options) -> Engine. A parameter, so that a test can measure something else as the engine.
EngineBuilder = Callable[[Case, frozenset[torch.dtype], Mapping[str, Any]], Any]


def compile_engine(case: Case, precisions: frozenset[torch.dtype], options: Mapping[str, Any]) -> Any:
    """``torchkiln.compile`` on a copy of the source model."""
    from ...compiler import compile
    from ...ptq import DataLoaderCalibrator

    assert case.model is not None  # without one, the request brings a ready engine

    settings = {"num_threads": case.num_threads, **options}
    if torch.int8 in precisions:
        settings["calibrator"] = DataLoaderCalibrator(case.calibration_sets)
    engine = compile(copy.deepcopy(case.model), list(case.input_specs), enabled_precisions=set(precisions), device=case.device, **settings)
    if not callable(engine):
        raise UserError("benchmark: engine_options: dryrun builds nothing to measure; leave it out")
    return engine


def engine_runner(engine: Any, case: Case) -> Runner:
    """An engine as a Runner. It takes the caller's dtypes: whatever casts it needs are on its own clock."""
    report = engine.report()
    options = f"{report.backend}, {report.precision}"
    left = report.torch_op_count
    if left:
        options += f", {left} of {report.op_count} operators in PyTorch"
    return Runner(engine, case.input_sets, flat_tensors, options, chosen_precision=report.precision)
