"""tolerance: how far an engine of each precision may be from the float32 model."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..dtypes import TOLERANCES
from ..fp32_math import SWITCHES, uses_tf32
from ..quantized_ops import WEIGHT4, WEIGHT8

#: float32 on a GPU where torch allows TF32, whose products have 10 bits of mantissa as fp16's.
TF32_TOLERANCE = 1e-2

#: Weights alone in 8 or in 4 bits, by kind: rounding them is an error of some 0.7 % and 10 % a layer (docs/quantization.md).
WEIGHT_TOLERANCES = {WEIGHT8: 5e-2, WEIGHT4: 0.4}

#: A graph with quantize/dequantize pairs against itself: a value that lies between two integers may be rounded to the other one.
SAME_PAIRS_TOLERANCE = 5e-2


def precisions_in(compute: Iterable[torch.dtype], model: torch.dtype, output: torch.dtype | None) -> list[torch.dtype]:
    """What rounds an engine's numbers: the precisions it computes in, the model's own, and the outputs' where one was asked for."""
    return [*compute, model, *([output] if output is not None else [])]


def tolerance_for(
    verify: bool | float | None, precisions: Iterable[torch.dtype], device: torch.device, *, checks_itself: bool = False, kind: str = ""
) -> float | None:
    """The tolerance for an engine in which these precisions have a part; None when checking is off.

    They are the precision computed in, and those of the model's own parameters and of the outputs: a result rounded to half precision cannot be
    closer to float32 than that precision allows. ``checks_itself``: the reference
    has the same quantize/dequantize pairs. ``kind``: what the engine's graph has quantized, if the reference has not (quantized_ops).
    """
    if verify is False or verify is None:
        return None
    if verify is not True:
        return float(verify)
    tolerance = max(TOLERANCES.get(precision, 0.0) for precision in precisions)
    tolerance = max(tolerance, WEIGHT_TOLERANCES.get(kind, 0.0), SAME_PAIRS_TOLERANCE if checks_itself else 0.0)
    tf32 = device.type == "cuda" and any(uses_tf32(switch) for switch in SWITCHES)
    return max(tolerance, TF32_TOLERANCE) if tf32 else tolerance
