"""fp32_math: torch's switches of how float32 products are computed on a GPU: in full ("ieee") or on tensor cores in TF32 ("tf32").

torch has switches of two generations and raises when the older ones (``allow_tf32``) are read while the two disagree: here the newer ones are
read, and both are set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CONV: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009  (the module's type lacks it)
RNN: Any = getattr(torch.backends.cudnn, "rnn")  # noqa: B009
MATMUL: Any = torch.backends.cuda.matmul
SWITCHES = (CONV, RNN, MATMUL)
#: The CPU's: torch.set_float32_matmul_precision sets it too, and torch.get_float32_matmul_precision raises where it disagrees.
_CPU_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009


def uses_tf32(switch: Any) -> bool:
    """Whether products of that kind are computed in TF32."""
    return bool(switch.fp32_precision == "tf32")


def set_fp32_math(math: str) -> None:
    """Set all switches: "ieee" or "tf32"; the CPU's to full precision."""
    # Through the older switches, which set these too: what torch itself reads (torch.export, Inductor) raises where the two disagree.
    torch.backends.cuda.matmul.allow_tf32 = math == "tf32"
    torch.backends.cudnn.allow_tf32 = math == "tf32"
    _CPU_MATMUL.fp32_precision = "ieee"
    for switch in SWITCHES:
        switch.fp32_precision = math


@contextmanager
def fp32_math(math: str | None) -> Iterator[None]:
    """All switches set within the block, and as they were after it; None: left as they are, but restored all the same."""
    before = read_fp32_math()
    if math is not None:
        set_fp32_math(math)
    try:
        yield
    finally:
        restore_fp32_math(before)


def read_fp32_math() -> tuple[dict[Any, bool], str, list[str]]:
    """For ``restore_fp32_math``: the older switches and the older precision of products, as far as they can be read, and all the newer ones."""
    older = {}
    for module in (torch.backends.cuda.matmul, torch.backends.cudnn):
        try:
            older[module] = bool(module.allow_tf32)
        except RuntimeError:  # the caller set the two kinds differently
            continue
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = ""
    return older, products, [switch.fp32_precision for switch in (*SWITCHES, _CPU_MATMUL)]


def restore_fp32_math(before: tuple[dict[Any, bool], str, list[str]]) -> None:
    older, products, newer = before
    for module, allowed in older.items():
        module.allow_tf32 = allowed
    if products:
        torch.set_float32_matmul_precision(products)  # "medium" is lost in allow_tf32
    for switch, math in zip((*SWITCHES, _CPU_MATMUL), newer, strict=True):
        switch.fp32_precision = math
