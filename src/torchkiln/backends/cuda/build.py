"""build: a segment as plans: fuse, lay out, choose tactics by measuring, place memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.fx import GraphModule

from ...dtypes import precision_name
from ...engine.artifact import Artifact
from ...errors import BuildFailed
from ...fp32_math import CONV, MATMUL, uses_tf32
from ...log import STEPS, log
from ...partition.segment import Segment
from ...settings import CompileSettings
from ..contract import Candidate
from .assemble_plan import Codes, Constants, assemble_plans
from .batch_sizes import batch_sizes, check_rows_independent
from .choose_fusions import choose_fusions
from .choose_streams import choose_streams
from .count_int8 import count_int8, int8_rejects
from .cusparselt import version as cusparselt_version
from .describe_sparse import describe_sparse
from .mark_two_of_four import mark_two_of_four
from .passes.pipeline import PASSES, fuse
from .plan import Bundle, Plan, encode_bundle
from .refine_choices import refine_choices
from .runtime import describe_target
from .specialize import specialize
from .step_order import MAX_STREAMS
from .tactics.registry import TORCH
from .tactics.sparse import CuSparseLt
from .timing_cache import TimingCache
from .trace import Trace, trace
from .tuner import DEFAULT_LEVEL, tune
from .worker_pool import WorkerPool

#: Numbers of streams that a plan is measured on, from this optimization level on.
STREAMS = (1, 2, MAX_STREAMS)
STREAMS_LEVEL = 3


def build(segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
    """Build the segment in the candidate's precision, for each batch size of a dynamic one. Raises BuildFailed."""
    device = segment.example_inputs[0].device if segment.example_inputs else torch.device("cuda", torch.cuda.current_device())
    sizes = batch_sizes(segment)
    dynamic_outputs = check_rows_independent(segment) if sizes else ()
    codes, constants, rejects = Codes(), Constants(), list[tuple[str, str]]()
    major, minor = torch.cuda.get_device_capability(device)
    capability = major * 10 + minor
    index = device.index if device.index is not None else torch.cuda.current_device()
    # A file of its own: TensorRT, asked in the same build, keeps its timings under the name itself, in another format.
    cache = TimingCache(f"{settings.timing_cache_path}.cuda" if settings.timing_cache_path else None)
    sparse_layers: dict[int, list[dict[str, Any]]] = {}
    with WorkerPool(capability, index) as pool:
        plans = [
            _plan(segment, size, candidate, settings, device, capability, cache, pool, codes, constants, rejects, sparse_layers)
            for size in sizes or (0,)
        ]
    target = describe_target(device)
    if any(info.tactic == CuSparseLt.name for plan in plans for info in plan.infos):
        target["cusparselt"] = cusparselt_version()
    bundle = Bundle(plans, codes.held, target, sizes, dynamic_outputs, rejects)
    tensors = {name: tensor.detach() for name, tensor in constants.held.items() if any(name in plan.constants for plan in plans)}
    metadata = {
        "precision": precision_name(candidate.precision),
        "arena_bytes": max(p.arena_bytes for p in plans),
        "steps": len(plans[0].steps),
        "streams": max(p.streams for p in plans),
    }
    if candidate.quantized:
        metadata["int8_layers"] = count_int8(plans[0])
        metadata["int8_rejects"] = int8_rejects(rejects)
    if settings.sparse_weights:
        metadata["sparse_layers"] = sparse_layers[segment.example_inputs[0].shape[0] if sizes else 0]
    return Artifact(encode_bundle(bundle), tensors, metadata, native_code=True)


def _plan(
    segment: Segment,
    size: int,
    candidate: Candidate,
    settings: CompileSettings,
    device: torch.device,
    capability: int,
    cache: TimingCache,
    pool: WorkerPool,
    codes: Codes,
    constants: Constants,
    rejects: list[tuple[str, str]],
    sparse_layers: dict[int, list[dict[str, Any]]],
) -> Plan:
    """The plan at one batch size (0: the shapes are fixed). What there is to say of 2:4 goes into ``sparse_layers`` under that size."""
    began = time.perf_counter()
    shapes = [(size, *t.shape[1:]) if size else tuple(t.shape) for t in segment.example_inputs]
    graph_module = specialize(segment.graph_module, shapes)
    if candidate.precision is not torch.float32:
        from ...lower.convert_precision import convert_precision

        convert_precision(graph_module, candidate.precision)
    fuse(graph_module, PASSES)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    level = settings.optimization_level if settings.optimization_level is not None else DEFAULT_LEVEL
    began_tuning = time.perf_counter()
    fused = choose_fusions(
        graph_module,
        lambda module: _trace(module, capability, multiprocessors, settings),
        lambda operations: tune(operations, device, level, cache, pool),
    )
    traced, found = fused.traced, fused.rejects
    choices = refine_choices(traced, fused.choices, level, cache, pool, device)
    if settings.sparse_weights:
        sparse_layers[size] = describe_sparse(traced, choices, level, cache, device)
    by_torch = [(operation, choice) for operation, choice in zip(traced.operations, choices, strict=True) if choice.option.tactic == TORCH]
    found += [(operation.label, reason) for operation, choice in by_torch for reason in choice.rejects]
    rejects += [reject for reject in found if reject not in rejects]
    if not traced.operations and not traced.outputs:
        raise BuildFailed(f"{segment.name}: nothing to compute")
    plans = assemble_plans(traced, choices, codes, constants, STREAMS if level >= STREAMS_LEVEL else (1,))
    plan = choose_streams(plans, codes.held, constants.held, cache, device)
    log(
        STEPS,
        "cuda: %s: fused in %.1f s, tuned in %.1f s, %d steps",
        segment.name,
        began_tuning - began,
        time.perf_counter() - began_tuning,
        len(plan.steps),
    )
    return plan


def _trace(graph_module: GraphModule, capability: int, multiprocessors: int, settings: CompileSettings) -> Trace:
    """The graph as operations; those with 2:4 weights are marked where sparse kernels may run them."""
    traced = trace(graph_module, capability, multiprocessors, lambda op: _math(op, settings))
    if settings.sparse_weights:
        mark_two_of_four(traced)
    return traced


def _math(op: str, settings: CompileSettings) -> str:
    """How float32 products are computed: as torch's own switches say, unless TF32 was turned off for this build."""
    if settings.disable_tf32:
        return "ieee"
    return "tf32" if uses_tf32(CONV if "conv" in op else MATMUL) else "ieee"
