"""build: a segment as an AOTInductor package."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from ...dtypes import precision_name
from ...engine.artifact import Artifact
from ...errors import BuildFailed
from ...log import CODE, log, log_level
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..contract import Candidate
from ..copy_graph_module import copy_graph_module
from .options import inductor_options
from .target import describe_target

#: Weights of this size and more lie beside the code in the package, see options.py.
BESIDE_BYTES = 2**20

#: Inductor keeps the graph it compiles in global variables.
_lock = threading.Lock()


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """Compile the segment in the candidate's precision. Raises BuildFailed with Inductor's message."""
    device = segment.example_inputs[0].device if segment.example_inputs else _device_of(segment.graph_module)
    graph_module = copy_graph_module(segment.graph_module)
    if candidate.precision is not torch.float32:
        from ...lower.convert_precision import convert_precision

        convert_precision(graph_module, candidate.precision)
    ready = replace(segment, graph_module=graph_module, example_inputs=tuple(t.contiguous() for t in segment.example_inputs))
    with _lock, _quiet(), tempfile.TemporaryDirectory(prefix="torchkiln-build-") as directory:
        try:
            payload = _compile_package(ready, device, directory)
        except Exception as error:  # Inductor, Triton and the C++ compiler raise whatever they like; the cause is kept
            raise BuildFailed(f"inductor cannot build {segment.name}: {type(error).__name__}: {str(error).strip()}") from error
    metadata = {
        "precision": precision_name(candidate.precision),
        "target": describe_target(device),
        "input_count": len(segment.example_inputs),
    }
    return Artifact(payload, metadata=metadata, native_code=True)


def _compile_package(segment: Segment, device: torch.device, directory: str) -> bytes:
    from torch._inductor.package import package_aoti

    files = _compile_files(segment, device, os.path.join(directory, "model"), weights_beside=_constant_bytes(segment) >= BESIDE_BYTES)
    if any(path.endswith(".blob") and os.path.getsize(path) == 0 for path in _paths(files)):
        # No constant was left: the loader maps the file of weights, and a file of no bytes cannot be mapped.
        files = _compile_files(segment, device, os.path.join(directory, "again"), weights_beside=False)
    _log_code(segment.name, _paths(files))
    package = os.path.join(directory, "segment.pt2")
    package_aoti(package, files)
    with open(package, "rb") as file:
        return file.read()


def _compile_files(segment: Segment, device: torch.device, output_path: str, weights_beside: bool) -> list[Any]:
    import torch._inductor

    options = {**inductor_options(device, weights_beside), "aot_inductor.output_path": output_path}
    # Freezing happens only where no gradient can be asked for.
    with torch.no_grad():
        files = torch._inductor.aot_compile(segment.export().module(check_guards=False), segment.example_inputs, options=options)
    assert isinstance(files, list), "a list of files is what aot_inductor.package=True asks for"
    return files


def _paths(files: list[Any]) -> list[str]:
    return [file for file in files if isinstance(file, str)]


def _constant_bytes(segment: Segment) -> int:
    return sum(tensor.nbytes for tensor in (*segment.graph_module.parameters(), *segment.graph_module.buffers()))


def _log_code(name: str, paths: list[str]) -> None:
    if log_level() < CODE:
        return
    for path in paths:
        if path.endswith(".cpp"):
            with open(path) as file:
                log(CODE, "inductor: %s: %s\n%s", name, os.path.basename(path), file.read())


def _device_of(graph_module: GraphModule) -> torch.device:
    tensors = [*graph_module.parameters(), *graph_module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch's C++ extensions about a CUDA toolkit, which a build for the CPU does not need."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
