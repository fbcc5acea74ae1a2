"""define: register an operator of the fused dialect from its reference, which is its meaning, its CPU path and the oracle of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "torchkiln"

_library = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, reference: Callable[..., Any]) -> None:
    """Register ``torchkiln::schema``. The reference runs on every device, and on fake tensors to give shapes and dtypes."""
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", reference, lib=_library)
