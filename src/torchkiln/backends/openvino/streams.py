"""streams: an OpenVINO artifact as a Runner whose concurrent calls run side by side, on cores of their own and with one copy of the weights."""

from __future__ import annotations

from ...engine.artifact import Artifact
from ..call_plan import CallPlan
from ..contract import Runner
from .runtime import Session, compile_ir, tuned_properties


def load_streams(artifact: Artifact, num_threads: int, streams: int) -> Runner:
    """Like ``runtime.load``, for ``streams`` calls at a time that share ``num_threads`` threads.

    Models compiled one by one would each be pinned to the first cores of the machine; the streams of one are pinned to different ones. Raises
    TargetMismatch, CorruptEngineFile.
    """
    plan = CallPlan.from_json(artifact.metadata.get("call_plan"))
    precision = str(artifact.metadata.get("precision"))
    compiled = compile_ir(artifact, precision, num_threads, {**tuned_properties(artifact), "NUM_STREAMS": streams})
    plan.check("openvino segment", len(compiled.inputs), len(compiled.outputs), artifact.tensors)
    return plan.wrap(Session(compiled, artifact.tensors.get("weights")), artifact.tensors)
