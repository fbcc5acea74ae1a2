"""Case: one model at one shape, with its inputs on the device and the reference outputs every runner is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..inputs import Input
from ..verify.parity import is_constant
from ..verify.reference import flat_tensors, full_float32
from .request import BenchmarkModel, BenchmarkRequest

InputSet = tuple[Tensor, ...]

#: Far from the seeds of the inputs.
_CALIBRATION_SEED = 1_000_000


@dataclass
class Case:
    """What the peers build from.

    Attributes:
        model: the source model on ``device``, never changed; peers take ``copy_model``. None when only an engine is at hand.
        input_specs: what the caller promises to pass, for the engine's builder.
        input_sets: the inputs of each call in turn, in the caller's dtypes, on ``device``.
        calibration_sets: what int8 is calibrated on, in the caller's dtypes, on ``device``; empty when no int8 is measured.
        references: for each input set, the source model's outputs in float32, flat.
    """

    name: str
    model: nn.Module | None
    input_specs: tuple[Input, ...]
    input_sets: list[InputSet]
    device: torch.device
    num_threads: int
    calibration_sets: list[InputSet] = field(default_factory=list)
    references: list[list[Tensor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> str:
        return ",".join("x".join(map(str, t.shape)) or "scalar" for t in self.input_sets[0])

    @property
    def dtypes(self) -> str:
        return ",".join(str(t.dtype).removeprefix("torch.") for t in self.input_sets[0])

    @property
    def batch_size(self) -> int:
        """The first dimension of the first input; 1 for a scalar."""
        first = self.input_sets[0][0]
        return first.shape[0] if first.dim() else 1

    def copy_model(self, precision: torch.dtype) -> nn.Module:
        """A copy of the source model in eval mode with its floating parameters and buffers in ``precision``."""
        assert self.model is not None  # peers are only asked when there is a source model
        return _in_eval_mode(copy.deepcopy(self.model).to(precision))

    def cast_inputs(self, precision: torch.dtype) -> list[InputSet]:
        """The input sets with floating tensors in ``precision``, ready before the clock starts."""
        return [tuple(t.to(precision) if t.is_floating_point() else t for t in inputs) for inputs in self.input_sets]

    def compute_references(self) -> None:
        """Run the source model in true float32 (no TF32) on every input set."""
        if self.model is None:
            self.notes.append("no source model: no errors and no peers")
            return
        model = self.copy_model(torch.float32)
        with torch.inference_mode(), full_float32():
            for inputs in self.cast_inputs(torch.float32):
                # A clone: a model may hand back its input or a buffer of its own.
                self.references.append([t.clone() for t in flat_tensors(model(*inputs))])
        if all(is_constant(t) for t in self.references[0] if t.numel() > 1):
            self.notes.append("the reference output is constant: the error figures prove little (are the model's last weights zero?)")


def make_cases(request: BenchmarkRequest, entry: BenchmarkModel) -> Iterator[Case]:
    """One case for each shape of this model. References are not computed yet. Raises UserError when a resolution cannot be applied."""
    device = request.resolved_device
    model = None if entry.model is None else _on_device(entry.model, device)
    for resolution in request.sweep_resolution or (None,):
        items = entry.inputs if resolution is None else _at_resolution(entry, resolution)
        sets = [tuple(_tensor(item, request.seed + 1000 * n + i, n).to(device) for i, item in enumerate(items)) for n in range(request.input_count)]
        specs = tuple(item if isinstance(item, Input) else Input.of(item) for item in items)
        yield Case(
            name=entry.name,
            model=model,
            input_specs=specs,
            input_sets=sets,
            device=device,
            num_threads=request.num_threads or torch.get_num_threads(),
            calibration_sets=[tuple(t.to(device) for t in batch) for batch in _calibration(request, entry, specs)],
            notes=list(entry.notes),
        )


def _calibration(request: BenchmarkRequest, entry: BenchmarkModel, specs: Sequence[Input]) -> Sequence[Sequence[Tensor]]:
    """The batches to calibrate int8 on: the model's own, or random ones that no call has."""
    if torch.int8 not in request.precisions:
        return ()
    if entry.calibration is not None:
        return entry.calibration
    seeds = range(request.seed + _CALIBRATION_SEED, request.seed + _CALIBRATION_SEED + request.calibration_count)
    return [[spec.random(seed=seed + 1000 * i) for i, spec in enumerate(specs)] for seed in seeds]


def _tensor(item: Input | Tensor, seed: int, set_index: int) -> Tensor:
    """The caller's own tensor for the first input set, random ones like it for the others."""
    if isinstance(item, Tensor):
        return item.detach() if set_index == 0 else Input.of(item).random(seed=seed)
    return item.random(seed=seed)


def _at_resolution(entry: BenchmarkModel, resolution: int) -> Sequence[Input]:
    """The inputs with the last two dimensions of every image (4 dimensions or more) set to ``resolution``."""
    specs = [item if isinstance(item, Input) else Input.of(item) for item in entry.inputs]
    if not any(len(s.opt_shape) >= 4 for s in specs):
        shapes = ", ".join(str(s.opt_shape) for s in specs)
        raise UserError(f"benchmark: sweep_resolution: {entry.name}: expected an input with 4 dimensions or more (N, C, H, W), got {shapes}")
    return [_resized(s, resolution) if len(s.opt_shape) >= 4 else s for s in specs]


def _resized(spec: Input, resolution: int) -> Input:
    shape = (*spec.opt_shape[:-2], resolution, resolution)
    return Input(shape, dtype=spec.dtype, any_float=spec.any_float, name=spec.name, tensor_domain=spec.tensor_domain)


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself when it is there already; else a copy, since ``Module.to`` would move the caller's."""
    where = {t.device.type for t in (*model.parameters(), *model.buffers())}
    return model if where <= {device.type} else copy.deepcopy(model).to(device)


def _in_eval_mode(model: nn.Module) -> nn.Module:
    try:
        return model.eval()
    except NotImplementedError:  # a module that torch.export made: its mode was fixed when it was exported
        return model
