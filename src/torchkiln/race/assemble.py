"""assemble: steps and their artifacts -> EngineContents."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from ..engine.artifact import Artifact
from ..engine.contents import EngineContents, EngineSegment
from ..engine.report import Report
from ..partition.extract import Step
from ..program import Program
from ..target import Target


def assemble(
    program: Program, steps: Sequence[Step], built: Sequence[tuple[str, Artifact]], targets: Sequence[Target], report: Report
) -> EngineContents:
    """Number the values that pass between segments and put the engine together, for ``targets`` (of one kind of device)."""
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
                precision=precision,
                inputs=tuple(slots[n] for n in step.inputs),
                outputs=tuple(slots[n] for n in step.outputs),
                artifact=artifact,
            )
        )
    contents = EngineContents(
        device=str(targets[0].device or targets[0].device_type),
        inputs=program.inputs,
        args_structure=program.args_structure,
        outputs_structure=program.outputs_structure,
        output_names=program.output_names,
        output_slots=tuple(slots[n] for n in graph.output_node().args[0]),  # type: ignore[union-attr, index]
        slot_count=len(slots),
        segments=tuple(segments),
        report=report,
        equal_dims=program.equal_dims,
        targets=_target_names(targets, [artifact for _, artifact in built]),
    )
    contents.check()
    return contents


def _target_names(targets: Sequence[Target], artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """What the engine runs on: what it was built for, unless a backend says that its artifact runs on more."""
    for artifact in artifacts:
        if "targets" in artifact.metadata:
            return tuple(artifact.metadata["targets"])
    return tuple(target.name for target in targets)
