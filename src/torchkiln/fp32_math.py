"""fp32_math: torch's switches of how float32 products are computed on a GPU: in full ("ieee") or on tensor cores in TF32 ("tf32").

Only these switches are read and set, never the older ``allow_tf32``: torch raises where both have been used and disagree.
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


def uses_tf32(switch: Any) -> bool:
    """Whether products of that kind are computed in TF32."""
    return bool(switch.fp32_precision == "tf32")


def set_fp32_math(math: str) -> None:
    """Set all switches: "ieee" or "tf32"."""
    for switch in SWITCHES:
        switch.fp32_precision = math


@contextmanager
def fp32_math(math: str | None) -> Iterator[None]:
    """All switches set within the block, and as they were after it; None: left as they are, but restored all the same."""
    before = [switch.fp32_precision for switch in SWITCHES]
    if math is not None:
        set_fp32_math(math)
    try:
        yield
    finally:
        for switch, was in zip(SWITCHES, before, strict=True):
            switch.fp32_precision = was
