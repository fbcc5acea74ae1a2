"""load: an .onnx file as a module and the inputs it declares."""

from __future__ import annotations

from pathlib import Path

from ...errors import ModelSourceError
from .graph import GraphInput, read_graph
from .onnx_module import OnnxModule, make_onnx_module
from .read_file import opset_versions, read_file


def load_onnx(path: Path) -> tuple[OnnxModule, list[GraphInput]]:
    """The model in ``path`` in eval mode, and its inputs under the names that ``forward`` has for them. No code of the file is run: it has none.

    Raises ModelSourceError: the file is no ONNX model, is damaged, lacks its weights, has no inputs, or has operators without a function here.
    """
    model = read_file(path)
    graph = read_graph(model.graph, opset_versions(model), path.parent, str(path))
    if not graph.inputs:
        raise ModelSourceError(f"{path}: it has no inputs: every value in it is a constant, so there is nothing to compile")
    module = make_onnx_module(graph)
    inputs = [GraphInput(name, spec.dtype, spec.sizes) for name, spec in zip(module.input_names, graph.inputs, strict=True)]
    return module, inputs
