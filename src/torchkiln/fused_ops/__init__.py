"""The fused-op dialect: operators that one kernel can do, each registered with torch as ``torch.ops.torchkiln.NAME`` and meant by its reference.

A graph of them runs in plain PyTorch; the CUDA backend has tactics for each.
"""

from . import attention, conv, conv_excite, int8, linear, norms, quantize, squeeze_excite

__all__ = ["attention", "conv", "conv_excite", "int8", "linear", "norms", "quantize", "squeeze_excite"]
