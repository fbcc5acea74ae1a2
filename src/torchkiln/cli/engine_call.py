"""engine_call: call an engine from the command line: inputs from files or at random, outputs as arrays and figures."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from ..dtypes import dtype_name
from ..engine.engine import Engine
from ..errors import UserError
from ..inputs import Input


def draw_inputs(engine: Engine, files: Sequence[str], shapes: Sequence[Input], *, random: bool, seed: int) -> tuple[list[torch.Tensor], list[str]]:
    """``(tensors, notes)``: one tensor on the engine's device for each of ``engine.inputs``.

    Args:
        files: ``NAME=FILE.npy`` (or ``FILE.npy`` when there is one input).
        shapes: shapes of the random ones, by name or position; the opt shapes where there is none.
        random: draw the inputs without a file at random, also when others have one.

    Raises UserError for an unknown name, a file that is no array, a dtype that does not fit, or an input without values.
    """
    given = _read_files(engine, files)
    missing = [i.name for i in engine.inputs if i.name not in given]
    if given and missing and not random:
        raise UserError(f"inputs without values: {', '.join(missing)}. Give --input {missing[0]}=FILE.npy, or --random to draw them.")
    wanted = shapes_by_name(engine, shapes)
    tensors = []
    for position, spec in enumerate(engine.inputs):
        tensor = given.get(spec.name)
        tensors.append(spec.random(wanted.get(spec.name), seed=seed + position, device=engine.device) if tensor is None else tensor)
    notes = [f"drawn at random with seed {seed}: {', '.join(missing)}"] if missing and not random else []
    return tensors, notes


def shapes_by_name(engine: Engine, shapes: Sequence[Input]) -> dict[str, tuple[int, ...]]:
    """The shape asked for each input of the engine, by name; inputs without one are left out. Raises UserError for an unknown name."""
    names = [i.name for i in engine.inputs]
    if len(shapes) > len(names):
        raise UserError(f"--shape: the engine has {len(names)} inputs, got {len(shapes)} shapes")
    wanted = {}
    for position, shape in enumerate(shapes):
        if shape.name and shape.name not in names:
            raise UserError(f"--shape: the engine has no input {shape.name!r}: it has {', '.join(names)}")
        wanted[shape.name or names[position]] = shape.opt_shape
    return wanted


def time_calls(engine: Engine, tensors: Sequence[torch.Tensor], iterations: int) -> tuple[Any, dict[str, float]]:
    """``(outputs, latency_ms)`` of ``iterations`` calls after one untimed call. On CUDA each is timed to its end on the device."""
    args, kwargs = engine.contents.args_structure.unflatten(tensors)
    finish = torch.cuda.synchronize if engine.device.type == "cuda" else lambda *_: None
    outputs = engine(*args, **kwargs)
    finish(engine.device)
    samples_ms = []
    for _ in range(iterations):
        start_ns = time.perf_counter_ns()
        outputs = engine(*args, **kwargs)
        finish(engine.device)
        samples_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return outputs, {"min": min(samples_ms), "median": median(samples_ms), "mean": mean(samples_ms), "max": max(samples_ms)}


def output_summary(engine: Engine, outputs: Any) -> list[dict[str, Any]]:
    """Name, shape, dtype and min, max, mean, std (None without finite values) of each output; ``not_finite`` counts NaN and infinities."""
    rows = []
    for name, value in _named_outputs(engine, outputs):
        tensor = torch.as_tensor(value).detach().cpu()
        wide = (tensor.abs() if tensor.is_complex() else tensor).double()
        finite = wide[wide.isfinite()]
        row: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype)}
        row |= dict.fromkeys(("min", "max", "mean", "std"))
        if finite.numel():
            std = finite.std(correction=0)
            row |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean()), "std": float(std)}
        rows.append({**row, "not_finite": wide.numel() - finite.numel()})
    return rows


def output_arrays(engine: Engine, outputs: Any) -> tuple[dict[str, np.ndarray], list[str]]:
    """``(arrays by output name, notes)``. numpy has no bfloat16: such an output becomes float32, which holds it exactly."""
    arrays, notes = {}, []
    for name, value in _named_outputs(engine, outputs):
        tensor = torch.as_tensor(value).detach().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
            notes.append(f"output {name} is bfloat16, which numpy has not: kept as float32")
        arrays[name] = tensor.numpy()
    return arrays, notes


def _named_outputs(engine: Engine, outputs: Any) -> list[tuple[str, Any]]:
    leaves = engine.contents.outputs_structure.flatten(outputs, where="outputs")
    return list(zip(engine.output_names, leaves, strict=True))


def _read_files(engine: Engine, files: Sequence[str]) -> dict[str, torch.Tensor]:
    specs = {i.name: i for i in engine.inputs}
    tensors: dict[str, torch.Tensor] = {}
    for text in files:
        name, equals, path = text.partition("=")
        if not equals:
            if len(specs) != 1:
                raise UserError(f"--input {text}: the engine has {len(specs)} inputs: give NAME=FILE.npy with one of {', '.join(specs)}")
            name, path = next(iter(specs)), text
        if name not in specs:
            close = difflib.get_close_matches(name, specs, n=1)
            raise UserError(
                f"--input {text}: the engine has no input {name!r}: it has {', '.join(specs)}.{f' Did you mean {close[0]!r}?' if close else ''}"
            )
        if name in tensors:
            raise UserError(f"--input {text}: input {name!r} is given twice")
        tensors[name] = _as_input(specs[name], _read_array(path)).to(engine.device)
    return tensors


def _read_array(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise UserError(f"--input: {path}: no such file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"--input: {path}: not an array file as numpy.save writes it: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"--input: {path}: expected one array (.npy), got an archive of arrays: save each with numpy.save")
    return array


def _as_input(spec: Input, array: np.ndarray) -> torch.Tensor:
    """Only what loses nothing is converted: numpy has no bfloat16, and its default float64 and int64 come from plain lists."""
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise UserError(f"--input {spec.name}: {error}") from error
    if tensor.dtype == spec.dtype:
        return tensor
    converted = tensor.to(spec.dtype)
    same_kind = tensor.is_floating_point() == spec.dtype.is_floating_point and not tensor.is_complex() and tensor.dtype != torch.bool
    if not same_kind or (not spec.dtype.is_floating_point and not torch.equal(converted.to(tensor.dtype), tensor)):
        raise UserError(f"--input {spec.name}: expected dtype {dtype_name(spec.dtype)}, got {array.dtype}")
    return converted
