"""keep_precise: nodes of a segment that stay in float32 while the plugin computes in bf16 or fp16.

The inference precision is one for a whole model, but the plugin leaves alone the layers that the IR calls ``precise``. Two things undo that, and the
compiled model tells: a layer may be fused into another, whose precision it then has, so that one is kept as well; and some layers (matrix products
with constant weights, which become another operation) lose the mark. Those cannot be kept. Nor can those that the compiled model does not name, for
what became of them is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from xml.etree import ElementTree

import torch
from torch.fx import GraphModule

from ...engine.artifact import Artifact
from ...lower.keep_float32 import is_kept_float32, moves_only
from ..contract import Candidate
from .layer_table import fused_layers, node_of
from .runtime import compile_ir

#: Each round adds what the round before was fused with; chains of fused layers are short.
_ROUNDS = 4
_LOW = ("bf16", "fp16")
#: Types of layers that compute nothing: of these the plugin drops what is not needed.
_MOVES = {"Const", "Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Split", "VariadicSplit", "Slice", "StridedSlice", "Broadcast"}


def kept_nodes(graph_module: GraphModule, candidate: Candidate) -> dict[str, bool]:
    """Names of the nodes that must stay in float32 though the candidate's precision is lower -> whether they compute, or are views."""
    if candidate.precision is torch.float32:
        return {}
    return {node.name: not moves_only(node) for node in graph_module.graph.nodes if node.op == "call_function" and is_kept_float32(node)}


def keep_precise(artifact: Artifact, kept: Mapping[str, bool], nodes: dict[str, str], num_threads: int | None) -> tuple[bytes, set[str]]:
    """The artifact's IR with the nodes ``kept`` in float32, and those of them that OpenVINO computes in a low precision all the same.

    Args:
        kept: see ``kept_nodes``.
        nodes: see ``Converted``.

    Raises TargetMismatch where the IR cannot be compiled.
    """
    asked = {name for name, node in nodes.items() if node in kept}
    marked = set(asked)
    xml, low, named = artifact.payload, set[str](), set[str]()
    for _ in range(_ROUNDS):
        xml = _mark(artifact.payload, marked)
        compiled = compile_ir(replace(artifact, payload=xml), str(artifact.metadata["precision"]), num_threads, {})
        fused = fused_layers(compiled)
        named = {name for _, _, names in fused for name in names}
        layers = [{node_of(name) for name in names} for _, precision, names in fused if precision in _LOW]
        low = {name for names in layers if not asked.isdisjoint(names) for name in names}
        if low <= marked:
            break
        marked |= low
    known = {nodes.get(node_of(name), "") for name in named & _computing(artifact.payload)}
    return xml, {nodes[name] for name in low & asked} | {nodes[name] for name in asked if kept[nodes[name]] and nodes[name] not in known}


def _computing(xml: bytes) -> set[str]:
    return {layer.get("name", "") for layer in ElementTree.fromstring(xml).iterfind("layers/layer") if layer.get("type") not in _MOVES}


def _mark(xml: bytes, names: Collection[str]) -> bytes:
    root = ElementTree.fromstring(xml)  # OpenVINO itself has just written it
    for layer in root.iterfind("layers/layer"):
        if node_of(layer.get("name", "")) in names and layer.get("type") != "Const":
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
