"""An engine made by hand, small enough to write and read a thousand times: two segments that share a weight, a dict of outputs."""

from __future__ import annotations

import hashlib
import json
import zipfile
from io import BytesIO

import torch
from torch.fx import Graph, GraphModule

from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.engine.contents import EngineContents, EngineSegment
from torchkiln.engine.engine import Engine
from torchkiln.engine.report import CandidateReport, ParityReport, RejectReport, Report, SegmentReport
from torchkiln.engine.structure import Structure
from torchkiln.inputs import Input
from torchkiln.partition.segment import Segment
from torchkiln.settings import CompileSettings

aten = torch.ops.aten
CPU = torch.device("cpu")


def graph_module(tensors, write, inputs=("x",)):
    """A GraphModule with the invariants of program.py; ``write(graph, {name: node})`` returns the output nodes."""
    root = torch.nn.Module()
    graph = Graph()
    nodes = {name: graph.placeholder(name) for name in inputs}
    for name, tensor in tensors.items():
        root.register_buffer(name, tensor)
        nodes[name] = graph.get_attr(name)
    graph.output(tuple(write(graph, nodes)))
    return GraphModule(root, graph)


def torch_segment(name, module, examples, inputs, outputs):
    segment = Segment(name, module, tuple({} for _ in examples), tuple(examples), 1)
    artifact = get_backend("torch").build(segment, Candidate("torch", torch.float32), CompileSettings())
    return EngineSegment(name, "torch", "fp32", inputs, outputs, artifact)


def tiny_contents(seed=0):
    torch.manual_seed(seed)
    weight, bias = torch.randn(17, 19), torch.randn(17)
    x, y = torch.randn(5, 19), torch.randn(1, 19)

    def first(graph, n):
        transposed = graph.call_function(aten.t.default, (n["weight"],))
        linear = graph.call_function(aten.addmm.default, (n["bias"], n["x"], transposed))
        return [graph.call_function(aten.relu.default, (linear,))]

    def second(graph, n):
        product = graph.call_function(aten.mm.default, (n["h"], n["weight"]))
        return [graph.call_function(aten.add.Tensor, (product, n["y"]), {"alpha": 2})]

    h = torch.randn(5, 17)
    args, _ = Structure.of(((x,), {"y": y}))
    outputs, _ = Structure.of({"out": x, "rest": [h, 3, None]})
    return EngineContents(
        device="cpu",
        inputs=(Input(min_shape=(1, 19), opt_shape=(5, 19), max_shape=(7, 19), name="x"), Input.of(y, "y")),
        args_structure=args,
        outputs_structure=outputs,
        output_names=("out", "h"),
        output_slots=(3, 2),
        slot_count=4,
        segments=(
            torch_segment("segment_0", graph_module({"weight": weight, "bias": bias}, first), [x], (0,), (2,)),
            torch_segment("segment_1", graph_module({"weight": weight}, second, ("h", "y")), [h, y], (2, 1), (3,)),
        ),
        report=Report(
            model="tiny",
            device="cpu",
            backend="torch",
            precision="fp32",
            enabled_precisions=["fp32"],
            segments=[SegmentReport("segment_0", "torch", "fp32", 3), SegmentReport("segment_1", "torch", "fp32", 2)],
            rejects=[RejectReport("aten.mm.default", "mm (tiny.py:1)", "openvino", "made for the test")],
            candidates=[CandidateReport("openvino fp32", "failed", relative_error=float("inf"))],
            parity=ParityReport(True, "float32", 1e-4, 1e-7, 1e-6, 1.0, ["5x19"]),
            phases_s={"build": 0.5},
        ),
    )


def call(engine: Engine):
    """The engine's tensors on fixed inputs, in order."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(3, 19, generator=generator), torch.randn(1, 19, generator=generator)
    return Structure.of(engine(x, y=y))[1]


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members) -> bytes:
    """An archive of (name or ZipInfo, bytes) pairs, as any zip program would write it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return buffer.getvalue()


def signed(members: dict[str, bytes], manifest=None) -> bytes:
    """The archive with every size and digest made right again, as a forger would."""
    manifest = json.loads(members["manifest.json"]) if manifest is None else manifest
    if isinstance(manifest, dict) and isinstance(manifest.get("members"), dict):
        for name, entry in manifest["members"].items():
            if name in members and isinstance(entry, dict):
                entry.update(size=len(members[name]), sha256=hashlib.sha256(members[name]).hexdigest())
    text = json.dumps(manifest).encode()
    return zip_of({**members, "manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode()})
