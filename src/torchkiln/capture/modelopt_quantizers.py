"""modelopt_quantizers: the quantizers of nvidia-modelopt, for the time of an export, as torch's fake_quantize operators.

modelopt's own code for the CPU looks at the numbers while it runs, which torch.export cannot follow; with its CUDA extension it is an operator of
its own (see lower/convert_fake_quantize.py). What a TensorQuantizer computes: ``clamp(round(x * bound / amax), low, bound) * amax / bound``, with
bound 127 for signed and 255 for unsigned integers of 8 bits. modelopt is not imported: a quantizer is known by its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

_CLASS = "TensorQuantizer"
#: A scale where all that was seen is zero: values become zero.
_SMALLEST_SCALE = 1e-12


@contextmanager
def plain_quantizers(model: object) -> Iterator[None]:
    """Within the block, each of modelopt's quantizers in ``model`` computes by torch's operators. Raises UserError for those that are not int8."""
    found = [(name, module) for name, module in model.named_modules() if _is_quantizer(module)] if isinstance(model, nn.Module) else []
    forwards = [(module, _forward_of(name, module)) for name, module in found]
    own = {module: module.__dict__["forward"] for module, _ in forwards if "forward" in module.__dict__}
    for module, forward in forwards:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, _ in forwards:
            del module.__dict__["forward"]
            if module in own:
                module.__dict__["forward"] = own[module]


def _is_quantizer(module: nn.Module) -> bool:
    return any(kind.__name__ == _CLASS and kind.__module__.startswith("modelopt.") for kind in type(module).__mro__)


def _forward_of(name: str, quantizer: Any) -> Callable[[Tensor], Tensor]:
    """What the quantizer computes, read from its attributes."""
    before = getattr(quantizer, "pre_quant_scale", None)
    scaled = (lambda x: x * before) if before is not None else (lambda x: x)
    is_off = quantizer._disabled or not quantizer._if_quant
    reason = _rotation(quantizer) if is_off else _refusal(quantizer)
    if reason:
        raise UserError(
            f"{name}: a quantizer of modelopt {reason}: torchkiln takes quantizers of 8-bit integers with fixed ranges (INT8_DEFAULT_CFG, "
            "INT8_SMOOTHQUANT_CFG); disable this one, or quantize the model anew"
        )
    if is_off:
        return scaled
    unsigned, narrow = bool(quantizer.unsigned), bool(quantizer.narrow_range)
    high = 255 if unsigned else 127
    low = 0 if unsigned else -127 if narrow else -128
    amax = quantizer.amax.detach().float()
    scales = (amax / high).clamp(min=_SMALLEST_SCALE)
    if amax.numel() == 1:
        scale = float(scales)
        return lambda x: torch.fake_quantize_per_tensor_affine(scaled(x), scale, 0, low, high)
    axis = next(d for d, size in enumerate(amax.shape) if size == amax.numel())
    spread, zeros = scales.reshape(-1), torch.zeros(amax.numel(), dtype=torch.int32, device=amax.device)
    return lambda x: torch.fake_quantize_per_channel_affine(scaled(x), spread, zeros, axis, low, high)


def _rotation(quantizer: Any) -> str:
    """A quantizer that is off still rotates its input, unless it rotates back."""
    is_rotated = getattr(quantizer, "rotate_is_enabled", False) and not getattr(quantizer, "rotate_back_is_enabled", False)
    return "rotates its input" if is_rotated else ""


def _refusal(quantizer: Any) -> str:
    """Why this quantizer cannot be said by fake_quantize of 8 bits; "" when it can."""
    bits, amax = quantizer.num_bits, getattr(quantizer, "amax", None)
    if isinstance(bits, tuple):
        return f"rounds to floating point (fp{1 + sum(bits)}: {bits[0]} bits of exponent, {bits[1]} of mantissa)"
    if bits != 8:
        return f"rounds to {bits} bits"
    if getattr(quantizer, "block_sizes", None):
        return f"has scales by blocks ({quantizer.block_sizes})"
    if getattr(quantizer, "rotate_is_enabled", False):
        return "rotates its input"
    if getattr(quantizer, "bias", None):
        return "has a bias"
    if not quantizer.fake_quant:
        return "holds weights that are packed already"
    if quantizer._if_calib:
        return "is still calibrating"
    if amax is None:
        return "takes its range from each input"
    if not bool(amax.isfinite().all()) or bool((amax < 0).any()):
        return "has a range that is no number"
    if amax.numel() > 1 and amax.numel() not in amax.shape:
        return f"has scales along several dimensions ({'x'.join(map(str, amax.shape))})"
    return ""
