"""What the way through ONNX gets wrong, one small rewrite of the segment's graph a file, each with the upstream reason."""

from __future__ import annotations

from torch.fx import GraphModule

from .split_hardswish import split_hardswish

#: Run over a copy of the segment's graph, in its compute precision, before it is exported.
FIXES = (split_hardswish,)


def fix_graph(graph_module: GraphModule) -> int:
    """Run every fix, in place. Returns the number of rewrites."""
    return sum(fix(graph_module) for fix in FIXES)
