"""network: an ONNX graph parsed into TensorRT's network, and what the network says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .convert import OnnxGraph
from .data_types import data_type_name
from .library import Library
from .logger import make_logger


@dataclass
class ParsedNetwork:
    """A network, and what must live as long as it. ``network`` is None when the parser refuses the graph; ``errors`` says why."""

    library: Library
    logger: Any
    builder: Any
    parser: Any
    network: Any
    errors: str = ""
    weights: list[Any] = field(default_factory=list)


def parse_network(library: Library, graph: OnnxGraph) -> ParsedNetwork:
    """Parse the graph into a strongly typed network: its types are the precision. The parser reads the weights where they are; they are kept."""
    trt = library.module
    logger = make_logger(library, needs_gpu=not library.is_rtx)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    weights = [(name, weight.contiguous().cpu()) for name, weight in graph.weights.items()]
    parsed = ParsedNetwork(library, logger, builder, parser, network, weights=weights)
    accepted = parser.load_model_proto(graph.proto) and all(parser.load_initializer(name, w.data_ptr(), w.nbytes) for name, w in weights)
    if not (accepted and parser.parse_model_proto()):
        parsed.network = None
        parsed.errors = _parser_errors(parser) or logger.errors() or "the parser gives no reason"
    logger.errors()
    return parsed


def describe_layers(network: Any) -> list[dict[str, Any]]:
    """Each layer's name, type, and the precision and shape of its first output: the network as it is built, before TensorRT fuses it."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        output = layer.get_output(0) if layer.num_outputs else None
        dtype = output.dtype.name if output is not None else ""
        layers.append({"name": layer.name, "type": layer.type.name.lower(), "dtype": data_type_name(dtype), "shape": _shape_of(output)})
    return layers


def _shape_of(output: Any) -> list[int]:
    """-1 for what varies; [] where the library does not know the shape."""
    try:
        return list(output.shape) if output is not None else []
    except RuntimeError:  # "Could not get tensor shape"
        return []


def describe_ports(network: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs: name, dtype, and shape with -1 for what varies."""

    def describe(tensor: Any) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": data_type_name(tensor.dtype.name), "shape": list(tensor.shape)}

    inputs = [describe(network.get_input(index)) for index in range(network.num_inputs)]
    return inputs, [describe(network.get_output(index)) for index in range(network.num_outputs)]


def _parser_errors(parser: Any) -> str:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}".strip()
        found.append(f"{where}: {error.desc()}" if where else error.desc())
    return "; ".join(dict.fromkeys(found))
