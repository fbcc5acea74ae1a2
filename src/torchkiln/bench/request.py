"""BenchmarkRequest: everything a benchmark run is asked to do, declared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..dtypes import ENABLED_PRECISIONS
from ..errors import UserError
from ..inputs import Input


@dataclass(frozen=True)
class BenchmarkModel:
    """One model to measure.

    Attributes:
        name: as it appears in the ``model`` column.
        model: the source model, any device and dtype; None when only an engine file is at hand (then there are no peers and no
            error figures, and the rows say so).
        inputs: one Input (drawn at random, seeded) or example tensor for each positional argument.
        engine: a ready engine to measure instead of building one.
        notes: shown in every row of this model.
        calibration: for int8: batches of real data, each as the inputs are. None: random ones, which say nothing about accuracy.
    """

    name: str
    model: nn.Module | None
    inputs: Sequence[Input | torch.Tensor]
    engine: Any = None
    notes: Sequence[str] = ()
    calibration: Sequence[Sequence[torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.model is None and self.engine is None:
            raise UserError(f"benchmark model {self.name!r}: expected a model, an engine or both, got neither")
        if self.calibration is not None and not self.calibration:
            raise UserError(f"benchmark model {self.name!r}: calibration: expected at least one batch, got none")
        if not self.inputs:
            raise UserError(f"benchmark model {self.name!r}: expected at least one input, got none")
        for index, item in enumerate(self.inputs):
            if not isinstance(item, (Input, torch.Tensor)):
                raise UserError(f"benchmark model {self.name!r}: inputs[{index}]: expected a torchkiln.Input or a tensor, got {type(item).__name__}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """What to measure and how long. Raises UserError for values that make no sense.

    Attributes:
        models: each is measured by itself, with all its runners interleaved.
        precisions: each runner gets a row at each of these it can compute in; with more than one, the engine also gets a row "auto",
            in which it may use any of them. At torch.int8 the engine and the peers of ``INT8_PEERS`` are calibrated, on the same data.
        device: default the first model's parameters' device, or the CPU.
        peers: "all", "seed" (eager, traced and scripted), "none", or names from ``torchkiln.bench.peers.PEERS``.
        engine_options: options for ``torchkiln.compile`` (backend, min_block_size, ...), without enabled_precisions, device, inputs.
        min_time_s: recorded time of each runner, at least (unless ``max_time_s`` ends it).
        min_samples: recorded calls of each runner, at least (unless ``max_time_s`` ends it).
        max_time_s: recorded time of one runner, at most, but never less than one call in each round.
        rounds: how often each runner is visited; see ``torchkiln.bench.measuring``.
        warm_up_s: unrecorded calls of each runner after its build.
        pause_s: silence before each visit, in which other runners' thread pools stop spinning.
        settle_s: unrecorded calls at the start of each visit.
        max_build_s: a build that takes longer becomes a row with status "timeout".
        transfers: on CUDA, count the copies of inputs to and outputs from the device.
        tf32: whether products of float32 may be computed in TF32, by every runner and the engine that is built; None: as torch's switches say. CUDA
            only; a ready engine stays as it was built.
        clock: "host" (``perf_counter_ns`` around the call and a device synchronise) or "events" (CUDA events: device time alone).
        input_count: how many different random inputs the calls rotate through.
        calibration_count: for int8: how many random batches to calibrate on, where the model brings none.
        sweep_resolution: instead of the given height and width, measure at each of these (square).
        num_threads: CPU threads of every runner; default ``torch.get_num_threads()``.
        seed: of the random inputs and of the order of the runners.
        progress: show a progress bar on standard error when it is a terminal.
    """

    models: Sequence[BenchmarkModel]
    precisions: Sequence[torch.dtype] = (torch.float32,)
    device: torch.device | str | None = None
    peers: str | Sequence[str] = "all"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    min_time_s: float = 2.0
    min_samples: int = 20
    max_time_s: float = 20.0
    rounds: int = 5
    warm_up_s: float = 0.5
    pause_s: float = 0.05
    settle_s: float = 0.02
    max_build_s: float = 300.0
    transfers: bool = False
    tf32: bool | None = None
    clock: str = "host"
    input_count: int = 1
    calibration_count: int = 16
    sweep_resolution: Sequence[int] = ()
    num_threads: int | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("benchmark: models: expected at least one model, got none")
        names = [m.name for m in self.models]
        if len(set(names)) != len(names):
            raise UserError(f"benchmark: models: names must differ, got {', '.join(names)}")
        known = ENABLED_PRECISIONS.values()
        if not self.precisions or any(p not in known for p in self.precisions) or len(set(self.precisions)) != len(self.precisions):
            expected = ", ".join(map(str, known))
            raise UserError(f"benchmark: precisions: expected different ones of {expected}, got {self.precisions}")
        for name in ("min_time_s", "max_time_s", "max_build_s"):
            _positive(name, getattr(self, name), 0)
        for name in ("min_samples", "rounds", "input_count", "calibration_count", *(("num_threads",) if self.num_threads is not None else ())):
            _positive(name, getattr(self, name), 1)
        for name in ("warm_up_s", "pause_s", "settle_s"):
            if getattr(self, name) < 0:
                raise UserError(f"benchmark: {name}: expected seconds >= 0, got {getattr(self, name)}")
        for resolution in self.sweep_resolution:
            _positive("sweep_resolution", resolution, 1)
        if self.clock not in ("host", "events"):
            raise UserError(f"benchmark: clock: expected 'host' or 'events', got {self.clock!r}")
        if self.tf32 is not None and any(entry.engine is not None for entry in self.models):
            raise UserError("benchmark: tf32: a ready engine computes as it was built; leave tf32 out, or give the model instead of the engine")
        for name in ("enabled_precisions", "device", "inputs", "calibrator", *(("disable_tf32",) if self.tf32 is not None else ())):
            if name in self.engine_options:
                raise UserError(f"benchmark: engine_options: {name!r} is set by the benchmark itself; use BenchmarkRequest's own fields")

    @property
    def resolved_device(self) -> torch.device:
        """The device asked for, or where the first model's parameters are."""
        if self.device is not None:
            return torch.device(self.device)
        for entry in self.models:
            if entry.model is not None:
                for parameter in entry.model.parameters():
                    return parameter.device
            elif entry.engine is not None:
                return torch.device(entry.engine.device)
        return torch.device("cpu")


def _positive(name: str, value: float, at_least: int) -> None:
    if not (value >= at_least and value > 0):
        raise UserError(f"benchmark: {name}: expected {'a number > 0' if at_least == 0 else 'an integer >= 1'}, got {value!r}")
