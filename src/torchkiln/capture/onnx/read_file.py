"""read_file: an .onnx file as an ONNX model, checked, its functions inlined."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, inliner

from ...errors import ModelSourceError

#: The oldest and newest version of ONNX's operators that the functions of ``operators`` are written for.
OPSETS = (9, 24)


def read_file(path: Path) -> ModelProto:
    """The model in ``path``; weights in files beside it are not read yet.

    Raises ModelSourceError: no ONNX model, damaged, or of a version of the operators that is not known here.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelSourceError(
            f"{path}: not an ONNX model, or a damaged one: {error}. Expected a file as torch.onnx.export or onnx.save writes it."
        ) from error
    if model.ir_version <= 0 or not model.opset_import or not model.graph.output:
        found = "no operator set" if model.graph.output else "no graph with outputs"
        raise ModelSourceError(f"{path}: not an ONNX model: it has {found}. Expected a file as torch.onnx.export or onnx.save writes it.")
    opset = opset_versions(model).get("")
    low, high = OPSETS
    if opset is not None and not low <= opset <= high:
        raise ModelSourceError(
            f"{path}: opset {opset}: expected {low} to {high}. Export the model again, or convert it: "
            f"onnx.save(onnx.version_converter.convert_version(onnx.load('{path.name}'), 17), 'new.onnx')"
        )
    if model.graph.sparse_initializer:
        raise ModelSourceError(f"{path}: it has sparse initializers, which are not supported: store them dense")
    return _inline(path, model) if model.functions else model


def opset_versions(model: ModelProto) -> dict[str, int]:
    """Domain -> version; ONNX's own domain is ""."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def _inline(path: Path, model: ModelProto) -> ModelProto:
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the inliner raises what its C++ does, and protobuf's own error over 2 GB
        raise ModelSourceError(
            f"{path}: its functions could not be inlined: {error}. Weights of more than 2 GB belong in a file beside the model."
        ) from error
