"""layer_times: what each node of a segment takes, by the plugin's own counters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from ...engine.artifact import Artifact
from ..call_plan import CallPlan
from .layer_table import fused_layers, node_of
from .runtime import Session, compile_ir

#: Calls that are measured, after one that is not.
_CALLS = 7


def layer_times(artifact: Artifact, inputs: Sequence[torch.Tensor], num_threads: int | None) -> dict[str, float]:
    """Microseconds of each node of the segment: the median over several calls on ``inputs``.

    A layer that several nodes were fused into counts for the first of them. Conversions between layouts belong to no node and are left out.
    Raises TargetMismatch, as loading does.
    """
    compiled = compile_ir(artifact, str(artifact.metadata["precision"]), num_threads, {"PERF_COUNT": True})
    renamed = artifact.metadata.get("nodes") or {}
    owners = {layer: node_of(names[0]) for layer, _, names in fused_layers(compiled) if names}
    plan = CallPlan.from_json(artifact.metadata["call_plan"])
    request = compiled.create_infer_request()
    held = Session(compiled, artifact.tensors.get("weights"))._bind(request, [inputs[i] for i in plan.used_inputs])
    samples: dict[str, list[float]] = {}
    for call in range(_CALLS + 1):
        request.infer(share_outputs=True)
        for info in request.profiling_info if call else ():
            samples.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e6)
    del held
    times: dict[str, float] = {}
    for layer, found in samples.items():
        if layer in owners:
            node = renamed.get(owners[layer], owners[layer])
            times[node] = times.get(node, 0.0) + statistics.median(found)
    return times
