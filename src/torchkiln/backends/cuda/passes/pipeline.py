"""pipeline: the fusion passes in the order they run."""

from __future__ import annotations

from torch.fx import GraphModule

from ....dump import Dump
from ....lower.pipeline import Pass, run_pass
from .commute_quantize import commute_quantize
from .convert_quantize import convert_quantize
from .emit import refresh_strides
from .fold_dequantize import fold_dequantize
from .fuse_attention import fuse_attention
from .fuse_conv import fuse_conv
from .fuse_int8 import fuse_int8
from .fuse_int8_epilogues import fuse_int8_epilogues
from .fuse_int8_norms import fuse_int8_norms
from .fuse_linear import fuse_linear
from .fuse_moments import fuse_moments
from .fuse_norms import fuse_norms
from .fuse_squeeze_excite import fuse_squeeze_excite
from .hoist_linear_views import hoist_linear_views
from .split_heads import split_heads

#: int8 layers before all others, so that what is left of a quantized graph is floating; what follows them when views are out of the way.
#: Attention before the softmax in it becomes an op of its own; the gates of squeeze-and-excite blocks, and norms, before the convolutions
#: around them take what follows; views are moved out of the way before linear layers look for what follows them.
PASSES: tuple[Pass, ...] = (
    convert_quantize,
    commute_quantize,
    fuse_int8,
    fold_dequantize,
    fuse_attention,
    fuse_squeeze_excite,
    fuse_norms,
    fuse_conv,
    split_heads,
    hoist_linear_views,
    fuse_int8_epilogues,
    fuse_int8_norms,
    fuse_linear,
)
#: Passes over their result that do not always pay: all of them are run or none (see choose_fusions).
OPTIONAL_PASSES: tuple[Pass, ...] = (fuse_moments,)


def fuse(graph_module: GraphModule, passes: tuple[Pass, ...] = PASSES + OPTIONAL_PASSES) -> list[tuple[str, int]]:
    """Rewrite ``graph_module``, core ATen with static shapes, into the fused dialect, in place. Returns (pass, rewrites) in order.

    What looked like a pattern but was refused is in ``graph_module.meta["rejects"]``, as (node, reason). With TORCHKILN_DUMP=dir, the graph
    after each pass is written there. Raises CompilerBug when a pass leaves a graph that is not well formed.
    """
    refresh_strides(graph_module)  # passes ask them whether a view is possible
    dump = Dump.from_environment()
    dump.write("captured", graph_module, "as the fusion passes get it")
    results = [run_pass(run, graph_module, dump) for run in passes]
    return [(result.name, result.rewrites) for result in results]
