"""fences: what Triton before 3.8 leaves out between asynchronous copies and Hopper's matrix products.

``cp.async`` writes shared memory through the generic proxy, ``wgmma`` reads it through the asynchronous one: without a fence between them a product
may read what was there before, rarely and without a trace. Source: PTX ISA, asynchronous proxy and ``fence.proxy``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

_PRODUCT = "wgmma.fence.sync.aligned;"
_FENCE = "fence.proxy.async.shared::cta;"
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared")


def lacks_fence(ptx: str) -> bool:
    """Whether products read what was copied asynchronously with no fence anywhere."""
    return _PRODUCT in ptx and _COPY.search(ptx) is not None and "fence.proxy.async" not in ptx


def with_fences(ptx: str) -> str:
    """The same code with a fence in front of the products, where it has none."""
    return ptx.replace(_PRODUCT, f"{_FENCE}\n\t{_PRODUCT}") if lacks_fence(ptx) else ptx


@contextmanager
def fenced() -> Iterator[None]:
    """Within the block Triton compiles with fences. Not for several threads at once."""
    from triton.backends.nvidia.compiler import CUDABackend

    backend: Any = CUDABackend
    make_ptx, digest = backend.make_ptx, backend.hash

    @wraps(make_ptx)
    def fenced_ptx(self: Any, *args: Any, **kwargs: Any) -> str:
        return with_fences(make_ptx(self, *args, **kwargs))

    # Triton's own cache must not give code that was compiled without.
    backend.make_ptx, backend.hash = fenced_ptx, lambda self: f"{digest(self)} fenced"
    try:
        yield
    finally:
        backend.make_ptx, backend.hash = make_ptx, digest
