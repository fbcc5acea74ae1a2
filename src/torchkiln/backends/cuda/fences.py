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
#: After these, shared memory may hold what a fence before them did not cover: copies that have arrived, stores, what another block of code did.
_WRITTEN = re.compile(r"\bcp\.async\.wait|\bst\.shared|\bstmatrix|^\$L__BB\w*:")


def lacks_fence(ptx: str) -> bool:
    """Whether a product reads what was copied asynchronously, or stored, with no fence in between."""
    return with_fences(ptx) != ptx


def with_fences(ptx: str) -> str:
    """The same code with a fence in front of every product that has none since shared memory was written. Code without asynchronous copies is as it
    was: Triton itself puts fences after stores."""
    if _PRODUCT not in ptx or not _COPY.search(ptx):
        return ptx
    lines, is_fenced = [], False
    for line in ptx.split("\n"):
        if _WRITTEN.search(line):
            is_fenced = False
        elif "fence.proxy.async" in line:
            is_fenced = True
        elif _PRODUCT in line and not is_fenced:
            lines.append(f"\t{_FENCE}")
            is_fenced = True
        lines.append(line)
    return "\n".join(lines)


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
