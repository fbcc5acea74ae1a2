"""The lowering pipeline: one ordered list of passes, each timed, logged, checked and (on request) dumped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch.fx import GraphModule

from ..dump import Dump
from ..log import STEPS, log
from ..program import Program
from .convert_affine import convert_affine
from .convert_fake_quantize import convert_fake_quantize
from .copy_constant_outputs import copy_constant_outputs
from .decompose_batch_norm import decompose_batch_norm
from .fold_batch_norm import fold_batch_norm
from .fold_constants import fold_constants
from .fold_quantize import fold_quantize
from .merge_common_subexpressions import merge_common_subexpressions
from .remove_dead_code import remove_dead_code
from .remove_no_ops import remove_no_ops
from .remove_redundant_casts import remove_redundant_casts
from .remove_size_assertions import remove_size_assertions
from .simplify_views import simplify_views

#: A pass changes the graph in place and returns the number of rewrites.
Pass = Callable[[GraphModule], int]

#: The passes in the order they run. Each sees the graph that the one before left.
PASSES: tuple[Pass, ...] = (
    remove_size_assertions,
    remove_dead_code,  # so that "nothing else reads it" is true in the passes below
    remove_no_ops,
    convert_fake_quantize,  # before weights are folded: a weight that is quantized stays so
    convert_affine,
    fold_constants,  # weights that are computed (weight norm, a transposed table) are constants from here on
    fold_quantize,
    fold_batch_norm,
    decompose_batch_norm,
    remove_redundant_casts,
    simplify_views,
    remove_no_ops,  # what became a no-op by the three before
    merge_common_subexpressions,
    copy_constant_outputs,  # after the passes that would fold the copy away
    remove_dead_code,
)


@dataclass(frozen=True)
class PassResult:
    """What one pass did."""

    name: str
    rewrites: int
    time_ms: float


@dataclass
class LoweringResult:
    """The lowered program (the same object) and what each pass did, in order."""

    program: Program
    passes_report: list[PassResult] = field(default_factory=list)


def lower(program: Program, passes: tuple[Pass, ...] = PASSES) -> LoweringResult:
    """Run ``passes`` over ``program.graph_module``, in place.

    With TORCHKILN_DUMP=dir, the graph before the first pass and after each one is written there. Raises CompilerBug when a pass
    leaves a graph that is not well formed.
    """
    result = LoweringResult(program)
    dump = Dump.from_environment()
    dump.write("captured", program.graph_module)
    for run in passes:
        result.passes_report.append(run_pass(run, program.graph_module, dump))
    return result


def run_pass(run: Pass, graph_module: GraphModule, dump: Dump | None = None) -> PassResult:
    """Run one pass: time it, log it, check the graph it leaves, and dump that. Raises CompilerBug for a malformed graph."""
    name = run.__name__
    start = time.perf_counter()
    rewrites = run(graph_module)
    time_ms = (time.perf_counter() - start) * 1e3
    log(STEPS, "lower: %s: %d rewrites in %.1f ms", name, rewrites, time_ms)
    path = dump.write(name, graph_module, f"{rewrites} rewrites in {time_ms:.1f} ms") if dump is not None else None
    _check(graph_module, name, path)
    return PassResult(name, rewrites, time_ms)


def _check(graph_module: GraphModule, name: str, path: object) -> None:
    from ..errors import CompilerBug

    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        where = f"; the graph is in {path}" if path else "; set TORCHKILN_DUMP=dir to see the graph"
        raise CompilerBug(f"pass {name} left a malformed graph: {error}{where}") from error
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and not hasattr(graph_module, str(node.target)):
            raise CompilerBug(f"pass {name} left {node.name} reading {node.target!r}, which the module does not have")
