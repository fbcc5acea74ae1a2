"""onnx_file: a model as an .onnx file for other programs, checked with ONNX Runtime before it is written.

The graph is the one that torchkiln's own backends build from: captured, lowered, and for fp16 and bf16 cast by torchkiln's precision pass, with
float32 where the numbers need it. Inputs and outputs keep their dtypes and names; a dimension that varies is a named axis.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..capture.arguments import Arguments
from ..capture.capture import Model, capture
from ..dtypes import TOLERANCES, dtype_name, precision_name
from ..engine.artifact import Artifact
from ..errors import BuildFailed, ParityFailed, TorchkilnError, UserError
from ..inputs import Input
from ..lower.convert_precision import convert_precision
from ..lower.pipeline import lower
from ..partition.segment import Segment
from ..partition.support import is_compute
from ..program import Program
from ..verify.parity import compare
from ..verify.reference import Reference
from ..verify.verify import CheckPoint, make_check_points
from .copy_graph_module import copy_graph_module
from .onnx_export import export_onnx, first_line, import_onnx_ir, take_weights
from .onnxruntime.runtime import Session
from .tensorrt.fixes import fix_graph
from .tensorrt.round_low import round_low

#: Weights of more bytes than this go into a file of their own: a protobuf message ends at 2 GiB.
LARGEST_INLINE = 2**31 - 2**24


@dataclass
class OnnxFile:
    """What was written. ``inputs`` and ``outputs``: name, dtype and shape, with a dimension's name where it varies. ``relative_error``: L2 error
    under ONNX Runtime against the model in float32, the worst of the shapes in ``checked_at``."""

    paths: list[Path]
    opset: int
    precision: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    relative_error: float
    checked_at: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)


def write_onnx_file(
    model: Model, arguments: Arguments, path: Path, *, precision: torch.dtype = torch.float32, opset: int | None = None, seed: int = 0
) -> OnnxFile:
    """Write ``model``, called as ``arguments`` describe, to ``path``; with more than 2 GB of weights, these to ``path``.data beside it.

    Args:
        precision: torch.float32, torch.float16 or torch.bfloat16: what the graph computes in.
        opset: of ONNX's operators, 18 or later; None for the exporter's own choice.

    Raises:
        UserError, ExportFailed: the model or the request cannot be taken; the file cannot be written.
        BuildFailed: torch's exporter or ONNX Runtime refuses the graph.
        ParityFailed: ONNX Runtime's numbers are too far from the model's. Nothing is written.
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
    """
    import_onnx_ir()
    points = make_check_points(Reference(model, torch.float32), arguments, seed)
    program = capture(model, arguments)
    lower(program)
    exported = _export(program, precision, opset)
    onnx_model = exported.model
    given = onnx_model.graph.opset_imports[""]
    if opset is not None and given != opset:  # the exporter gives what it can and only prints that it could not convert
        raise UserError(f"opset: {opset} was asked for, but torch's exporter gives this model in opset {given} only: ask for that, or for none")
    _name_ports(onnx_model, program)
    with _scratch_folder(path) as folder:
        written = _save(onnx_model, folder, path.name)
        error = _check(folder / path.name, points, precision)
        try:
            # The weights first: a reader that finds the model finds them too.
            for name in reversed(written):
                os.replace(folder / name, path.parent / name)
        except OSError as failure:
            raise UserError(f"{path}: cannot be written: {failure.strerror or failure}") from failure
    return OnnxFile(
        paths=[path.parent / name for name in written],
        opset=given,
        precision=precision_name(precision),
        inputs=[_describe(value, spec.dtype) for value, spec in zip(onnx_model.graph.inputs, program.inputs, strict=True)],
        outputs=[_describe(value, dtype) for value, dtype in zip(onnx_model.graph.outputs, _output_dtypes(program), strict=True)],
        relative_error=error,
        checked_at=[point.name for point in points],
        notes=program.notes,
    )


def _export(program: Program, precision: torch.dtype, opset: int | None) -> Any:
    graph_module = copy_graph_module(program.graph_module)
    if precision is not torch.float32:
        convert_precision(graph_module, precision)
        fix_graph(graph_module)  # what TensorRT's parser needs, to which such files mostly go
    ranges = tuple({d: (i.min_shape[d], i.max_shape[d]) for d in i.dynamic_dims} for i in program.inputs)
    op_count = sum(is_compute(node) for node in graph_module.graph.nodes)
    segment = Segment("model", graph_module, ranges, program.example_inputs, op_count)
    try:
        return export_onnx(segment.export(), opset=opset)
    except TorchkilnError:
        raise
    except Exception as error:  # torch.export and the exporter raise what they like; all of it means that the model cannot be converted
        where = f"opset {opset}, {precision_name(precision)}" if opset else precision_name(precision)
        raise BuildFailed(f"torch.onnx cannot export the model ({where}): {type(error).__name__}: {first_line(error)}") from error


def _name_ports(model: Any, program: Program) -> None:
    """The program's names for inputs and outputs, and a name for each dimension that varies: that of the first input that has it."""
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    if len(inputs) != len(program.inputs) or len(outputs) != len(program.output_names):
        raise BuildFailed(
            f"torch.onnx gives a graph of {len(inputs)} inputs and {len(outputs)} outputs for a model of "
            f"{len(program.inputs)} and {len(program.output_names)}: return each tensor once, and no input as it is"
        )
    names = _unique_names([i.name for i in program.inputs], list(program.output_names))
    ports = [*inputs, *outputs]
    others = {value.name: value for node in model.graph.all_nodes() for value in node.outputs if value not in ports}
    others |= {value.name: value for value in model.graph.initializers.values()}
    for name in names:
        if name in others:
            others[name].name = f"{name}_inner"
    for number, value in enumerate(ports):  # by way of names that nothing has: two may swap theirs
        value.name = f"__port_{number}"
    for name, value in zip(names, ports, strict=True):
        value.name = name
    _name_dims(model, inputs, program.inputs)


def _unique_names(inputs: list[str], outputs: list[str]) -> list[str]:
    names: list[str] = []
    for name in [*inputs, *outputs]:
        plain = re.sub(r"[^\w.]+", "_", name).strip("_") or "value"  # ['best'] -> best
        while plain in names:
            plain += "_out" if len(names) >= len(inputs) else "_"
        names.append(plain)
    return names


def _name_dims(model: Any, inputs: Sequence[Any], specs: Sequence[Input]) -> None:
    ir = import_onnx_ir()
    named: dict[str, str] = {}
    for value, spec in zip(inputs, specs, strict=True):
        for d in spec.dynamic_dims:
            symbol = value.shape[d].value if isinstance(value.shape[d], ir.SymbolicDim) else None
            if symbol is not None:
                named.setdefault(symbol, "batch" if d == 0 and "batch" not in named.values() else f"{value.name}_dim{d}")
    if not named:
        return
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in named))
    values = [*inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for d, size in enumerate(value.shape):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                value.shape[d] = ir.SymbolicDim(symbols.sub(lambda match: named[match[0]], size.value))


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """A folder on the same disk, so that the finished files move to their place in one step; gone at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(model: Any, folder: Path, name: str) -> list[str]:
    """Returns the names of the files: the model, and its weights where they are apart."""
    ir = import_onnx_ir()
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    apart = f"{name}.data" if weights > LARGEST_INLINE else None
    try:
        ir.save(model, str(folder / name), external_data=apart)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror or error}") from error
    return [name] + ([apart] if apart else [])


def _check(path: Path, points: Sequence[CheckPoint], precision: torch.dtype) -> float:
    """The written file under ONNX Runtime, narrow values rounded as a GPU would, against the model's own outputs. Raises ParityFailed."""
    ir = import_onnx_ir()
    model = ir.external_data.load_to_model(ir.load(str(path)))
    weights = take_weights(model)
    proto, weights = round_low(ir.serde.serialize_model(model).SerializeToString(), weights)
    worst = 0.0
    try:
        session = Session(Artifact(proto, {**weights}), None, spin=False)
        for point in points:
            outputs = session([tensor.cpu().contiguous() for tensor in point.arguments.tensors])
            error = compare(outputs, [reference.cpu() for reference in point.references]).relative_error
            if not error <= TOLERANCES[precision]:
                raise ParityFailed(
                    f"the ONNX graph in {precision_name(precision)}, run by ONNX Runtime, has relative error {error:.3g} against the model in fp32 "
                    f"at the {point.name} shapes, more than {TOLERANCES[precision]:.3g}: nothing was written. Use a wider precision."
                )
            worst = max(worst, error)
    except TorchkilnError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise BuildFailed(f"ONNX Runtime cannot run the exported graph: {first_line(error)}") from error
    return worst


def _output_dtypes(program: Program) -> list[torch.dtype]:
    results = program.graph_module.graph.output_node().args[0]
    values = [node.meta["val"] for node in results]  # type: ignore[union-attr]
    return [value.dtype if isinstance(value, torch.Tensor) else torch.int64 for value in values]


def _describe(value: Any, dtype: torch.dtype) -> dict[str, Any]:
    ir = import_onnx_ir()
    shape = [size.value if isinstance(size, ir.SymbolicDim) else size for size in value.shape] if value.shape is not None else None
    return {"name": value.name, "dtype": dtype_name(dtype), "shape": shape}
