"""fake_quantize_shapes: the result shapes of torch's fake_quantize kernels, which torch itself does not tell torch.export.

Without them a model with fake_quantize operators can be exported at fixed sizes only.
"""

from __future__ import annotations

from functools import cache

import torch

_OPERATORS = (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
)


@cache
def register_fake_quantize_shapes() -> torch.library.Library:
    """Give each of these operators that has no shape function one, for the process."""
    library = torch.library.Library("aten", "IMPL")
    for name in _OPERATORS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, _result_and_mask, "Meta")
    return library  # what it registered lasts as long as it does


def _result_and_mask(values: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(values), torch.empty_like(values, dtype=torch.bool)
