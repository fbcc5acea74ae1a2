"""decompose: which operators are split into core ATen when a model is captured, and which are kept whole.

Core ATen is the common tongue of the passes. Splitting everything to it would lose what backends do best, though: a
``scaled_dot_product_attention`` split into matmul, softmax, matmul is slower everywhere and no pattern finds it again surely.
Each operator below was given whole to OpenVINO's PyTorch frontend, to the ONNX exporter and to Inductor, and all three took it
(tests/lower/test_decompose.py keeps checking).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch._ops import OpOverload

if TYPE_CHECKING:
    from torch.export.decomp_utils import CustomDecompTable

#: Operator -> why it stays whole. Names, not operators: a torch version that lacks one simply does not have it.
KEPT_WHOLE: dict[str, str] = {
    # One library call each; split, the weight is transposed in the graph and batched inputs are reshaped to 2-D and back.
    "aten.linear.default": "one GEMM with bias; addmm would need permute and view around it",
    "aten.matmul.default": "broadcasts by itself; split, it becomes expand, clone, view, bmm, view",
    "aten.scaled_dot_product_attention.default": "one fused attention kernel; the split form writes the score matrix to memory",
    # Activations that backends fuse into the operator before: the split form is 2 to 5 pointwise operators.
    "aten.silu.default": "fused as one activation (Swish)",
    "aten.hardswish.default": "fused as one activation; split: add, clamp, mul, div",
    "aten.hardsigmoid.default": "fused as one activation; split: add, clamp, div",
    "aten.mish.default": "fused as one activation; split, exp overflows in fp16",
    "aten.softplus.default": "keeps its threshold, beyond which exp overflows in fp16",
    "aten.prelu.default": "fused as one activation; split: gt, mul, where",
    # Normalisations and softmax: backends accumulate them in float32; split, each step is rounded to the compute precision.
    "aten.layer_norm.default": "one fused kernel with float32 statistics",
    "aten.group_norm.default": "one fused kernel with float32 statistics",
    "aten.instance_norm.default": "one fused kernel; split: repeat of the weights and a training-mode batch norm",
    "aten.rms_norm.default": "one fused kernel with float32 statistics",
    "aten.softmax.int": "one kernel that subtracts the maximum",
    "aten.log_softmax.int": "one kernel that subtracts the maximum",
    "aten.logsumexp.default": "one kernel that subtracts the maximum",
    # Resampling: split, an index table and several gathers for each corner.
    "aten.upsample_nearest1d.vec": "one resize",
    "aten.upsample_nearest2d.vec": "one resize",
    "aten.upsample_nearest3d.vec": "one resize",
    "aten.upsample_linear1d.vec": "one resize",
    "aten.upsample_bilinear2d.vec": "one resize",
    "aten.upsample_trilinear3d.vec": "one resize",
    "aten.upsample_bicubic2d.vec": "one resize; split: 16 gathers",
    # Data movement with a native form; split, index tables and gathers.
    "aten.pad.default": "one pad in every mode; reflect and replicate split into gathers",
    "aten.roll.default": "two slices and a concatenation; split: an index table and a gather",
    "aten.pixel_shuffle.default": "one depth-to-space",
    # Pooling: split, max_pool returns indices that nobody reads, and backends without them refuse it.
    "aten.max_pool1d.default": "no indices",
    "aten.max_pool2d.default": "no indices",
    "aten.max_pool3d.default": "no indices",
    "aten.adaptive_avg_pool2d.default": "the form that frontends know; split: a private operator or a loop of slices",
}

#: Operators that a pass of the lowering replaces: split, it would not find them.
KEPT_FOR_PASSES: dict[str, str] = {
    "aten.fake_quantize_per_tensor_affine.default": "convert_fake_quantize",
    "aten.fake_quantize_per_tensor_affine.tensor_qparams": "convert_fake_quantize",
    "aten.fake_quantize_per_channel_affine.default": "convert_fake_quantize",
    "torchao.dequantize_affine.default": "convert_affine",
}


def decomposition_table() -> CustomDecompTable:
    """The table for ``ExportedProgram.run_decompositions``: torch's default core ATen decompositions less KEPT_WHOLE and KEPT_FOR_PASSES."""
    from torch.export import default_decompositions

    table = default_decompositions()
    for op in (*kept_ops(), *kept_ops(KEPT_FOR_PASSES)):
        if op in table:
            table.pop(op)
    return table


def kept_ops(names: Iterable[str] = KEPT_WHOLE) -> list[OpOverload]:
    """The operators among ``names`` that this torch has."""
    found = []
    for name in names:
        namespace, packet, overload = name.split(".")
        op = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
        if isinstance(op, OpOverload):
            found.append(op)
    return found
