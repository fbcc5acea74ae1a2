"""build: a segment as a TensorRT plan: convert, check, parse, configure, build, compare."""

from __future__ import annotations

import time
from typing import Any

import torch

from ...dtypes import TOLERANCES, precision_name
from ...engine.artifact import Artifact
from ...errors import BuildFailed, CompilerBug
from ...log import STEPS, log
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..contract import Candidate
from .configure import check_options, configure, save_timing_cache
from .convert import OnnxGraph, convert_segment
from .data_types import short_name
from .library import Library, import_builder
from .network import ParsedNetwork, describe_layers, describe_ports, parse_network
from .onnx_check import make_stand_in, onnx_error

_NO_GPU_HINT = "Refittable and weight-stripped plans are compiled in part while they are built: TensorRT-RTX does that on a machine with a GPU only."


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """The plan for all targets of ``candidate``, its ONNX graph checked against PyTorch before.

    Raises:
        BuildFailed: the graph cannot be converted, parsed or built (with the library's messages), or ONNX Runtime's result of it is too far from
            PyTorch's.
        UnsupportedOption: a setting that this library cannot honour.
    """
    library = import_builder(candidate.targets)
    check_options(library, settings)
    weightless, refittable = settings.strip_engine_weights, settings.takes_new_weights
    graph = convert_segment(segment, candidate.precision, all_weights=refittable)
    # Unchecked by request: where the engine itself can run, ONNX Runtime has nothing to do.
    stand_in = make_stand_in(graph, settings.num_threads) if settings.verify is not False or not candidate.is_here else None
    error = None
    if stand_in is not None and settings.verify is not False:
        error = onnx_error(stand_in, segment)
        _check_error(error, segment, candidate, settings)
    parsed = parse_network(library, graph)
    if parsed.network is None:
        raise BuildFailed(f"TensorRT's parser refuses {segment.name}: {parsed.errors}")
    plan, build_s = _build_plan(parsed, graph, candidate, settings, segment.name)
    inputs, outputs = describe_ports(parsed.network)
    _compare(parsed.network, inputs, outputs, graph)
    for port, ranges in zip(inputs, zip(*graph.segment.profiles, strict=True), strict=True):
        port["profiles"] = [{"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for r in ranges]
    metadata: dict[str, Any] = {
        "library": library.flavor,
        "version": library.version,
        "targets": _target_names(library, candidate, settings),
        "precision": precision_name(candidate.precision),
        "call_plan": graph.plan.as_json(),
        "inputs": inputs,
        "outputs": outputs,
        "layers": describe_layers(parsed.network),
        "onnx_error": error,
        "build_s": round(build_s, 3),
        "workspace_size": settings.workspace_size,
        "weightless": weightless,
        "refittable": refittable,
        "version_compatible": settings.version_compatible,
    }
    if refittable:
        metadata |= {"graph_sha256": graph.sha256, "weights_sha256": graph.weight_digests()}
    tensors = {**graph.constants, **(graph.weights if weightless else {})}
    return Artifact(plan, tensors, metadata, native_code=True, stand_in=None if candidate.is_here else stand_in)


def _check_error(error: float, segment: Segment, candidate: Candidate, settings: CompileSettings) -> None:
    log(STEPS, "tensorrt: %s: ONNX graph in %s: relative error %.3g", segment.name, precision_name(candidate.precision), error)
    own = TOLERANCES[torch.int8 if candidate.quantized else candidate.precision]
    limit = own if settings.verify is True else float(settings.verify or 0.0)
    if not error <= limit:
        raise BuildFailed(
            f"tensorrt: the ONNX graph of {segment.name}, run by ONNX Runtime, has relative error {error:.3g} against PyTorch in fp32, "
            f"more than {limit:.3g} for {precision_name(candidate.precision)}: allow a wider precision, or a larger error with verify="
        )


def _build_plan(parsed: ParsedNetwork, graph: OnnxGraph, candidate: Candidate, settings: CompileSettings, name: str) -> tuple[bytes, float]:
    start = time.perf_counter()
    config = configure(parsed, graph.segment, candidate, settings)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        stripped = settings.strip_engine_weights or not settings.immutable_weights
        hint = f" {_NO_GPU_HINT}" if stripped and parsed.library.is_rtx and not torch.cuda.is_available() else ""
        raise BuildFailed(f"TensorRT cannot build {name}: {parsed.logger.errors() or 'it gives no reason'}.{hint}")
    save_timing_cache(config, settings)
    build_s = time.perf_counter() - start
    data = bytes(plan)
    log(STEPS, "tensorrt: %s: %d layers, plan of %.1f MB in %.2f s", name, parsed.network.num_layers, len(data) / 1e6, build_s)
    return data, build_s


def _target_names(library: Library, candidate: Candidate, settings: CompileSettings) -> list[str]:
    if settings.hardware_compatible and not library.is_rtx:
        return ["sm_80+"]
    return [target.name for target in candidate.targets]


def _compare(network: Any, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], graph: OnnxGraph) -> None:
    """The network takes and gives what the segment does: names, types, ranks, and room for every profile. Raises CompilerBug."""
    segment = graph.segment
    placeholders = segment.graph_module.graph.find_nodes(op="placeholder")
    results = segment.graph_module.graph.output_node().args[0]
    for what, ports, names, values in (
        ("input", inputs, graph.inputs, [node.meta["val"] for node in placeholders]),
        ("output", outputs, graph.outputs, [node.meta["val"] for node in results]),  # type: ignore[union-attr]
    ):
        if [port["name"] for port in ports] != names or len(names) != len(values):
            raise CompilerBug(
                f"{segment.name}: TensorRT's {what}s are {[p['name'] for p in ports]}, the graph's {names}, the segment's {len(values)}"
            )
        for port, value in zip(ports, values, strict=True):
            if port["dtype"] != short_name(value.dtype) or len(port["shape"]) != value.dim():
                found = f"{port['dtype']} of {len(port['shape'])} dimensions"
                raise CompilerBug(f"{segment.name}: {what} {port['name']}: expected {value.dtype} of {value.dim()} dimensions, got {found}")
    for profile in segment.profiles:
        for port, shapes in zip(inputs, profile, strict=True):
            for d, size in enumerate(port["shape"]):
                if size != -1 and not shapes.min[d] == shapes.max[d] == size:
                    raise CompilerBug(f"{segment.name}: input {port['name']}: dimension {d} is {size} in TensorRT, {shapes} in the profile")
    if network.num_layers == 0:
        raise CompilerBug(f"{segment.name}: TensorRT's network has no layers")
