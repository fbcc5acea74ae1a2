"""assemble: steps and their artifacts -> EngineContents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from ..dtypes import precision_name
from ..engine.artifact import Artifact
from ..engine.contents import EngineContents, EngineSegment
from ..engine.report import Report
from ..partition.extract import Step
from ..program import Program


def assemble(
    program: Program, steps: Sequence[Step], built: Sequence[tuple[torch.dtype, Artifact]], device: torch.device, report: Report
) -> EngineContents:
    """Number the values that pass between segments and put the engine together."""
    graph = program.graph_module.graph
    slots: dict[Node, int] = {node: i for i, node in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    segments = []
    for step, (precision, artifact) in zip(steps, built, strict=True):
        for node in step.outputs:
            slots[node] = len(slots)
        segments.append(
            EngineSegment(
                name=step.segment.name,
                backend=step.backend,
                precision=precision_name(precision),
                inputs=tuple(slots[n] for n in step.inputs),
                outputs=tuple(slots[n] for n in step.outputs),
                artifact=artifact,
            )
        )
    contents = EngineContents(
        device=str(device),
        inputs=program.inputs,
        args_structure=program.args_structure,
        outputs_structure=program.outputs_structure,
        output_names=program.output_names,
        output_slots=tuple(slots[n] for n in graph.output_node().args[0]),  # type: ignore[union-attr, index]
        slot_count=len(slots),
        segments=tuple(segments),
        report=report,
        equal_dims=program.equal_dims,
    )
    contents.check()
    return contents
