"""torch.export without work that changes no result: a capture of a small model then takes half the time.

* To collect the composite operators, it lists them anew for each of some 30 namespaces.
* To put a kernel of Python on a dispatch key, of which it does some 6,000 a capture, it builds the types of annotations that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._export.utils as utils
from torch._ops import OperatorBase
from torch.export import decomp_utils, exported_program


def quicken() -> None:
    """Change torch of this process; a second call changes nothing."""
    if utils._collect_all_valid_cia_ops.__module__ == __name__:
        return
    original, list_composite = utils._collect_all_valid_cia_ops, utils._materialize_cpp_cia_ops

    def _collect_all_valid_cia_ops() -> set[OperatorBase]:
        list_composite()
        utils._materialize_cpp_cia_ops = lambda: None
        try:
            return original()
        finally:
            utils._materialize_cpp_cia_ops = list_composite

    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = _collect_all_valid_cia_ops
    put_any = OperatorBase.py_impl

    def py_impl(self: OperatorBase, key: Any) -> Callable[[Any], Any]:
        if not isinstance(key, torch._C.DispatchKey) or key == torch._C.DispatchKey.Python or key in self.py_kernels:
            return put_any(self, key)

        def put(function):
            self.py_kernels[key] = function
            self._dispatch_cache.clear()
            return function

        return put

    OperatorBase.py_impl = py_impl
