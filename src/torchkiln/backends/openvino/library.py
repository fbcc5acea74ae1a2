"""The one place that imports openvino, and the one Core of the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from ...errors import MissingPackage

_TELEMETRY = "openvino_telemetry"
_lock = Lock()


def import_openvino() -> Any:
    """The openvino module. Raises MissingPackage.

    openvino sends a message over the network when it is imported and whenever it converts a model, if the package openvino_telemetry can be
    imported. An inference library must not: it is hidden for the time of the import, and openvino then uses its own empty stand-in.
    """
    with _lock:
        hidden = _TELEMETRY not in sys.modules and "openvino" not in sys.modules
        if hidden:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python keeps for a module that must not be imported
        try:
            import openvino
        except ImportError as error:
            if "openvino" not in str(error):
                raise
            raise MissingPackage(f"the openvino backend needs the package openvino ({error}): pip install openvino") from error
        finally:
            if hidden:
                sys.modules.pop(_TELEMETRY, None)
    return openvino


@cache
def core() -> Any:
    """The process's ``openvino.Core``. Raises MissingPackage."""
    return import_openvino().Core()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Converting sends nothing, also when the caller's own code imported openvino first, with its telemetry."""
    import_openvino()
    users = [module for name, module in sys.modules.items() if name.startswith("openvino.tools.ovc") and getattr(module, "tm", None) is not None]
    from openvino.tools.ovc import telemetry_stub

    before = [(module, getattr(module, "tm")) for module in users]  # noqa: B009
    for module in users:
        setattr(module, "tm", telemetry_stub)  # noqa: B010
    try:
        yield
    finally:
        for module, telemetry in before:
            setattr(module, "tm", telemetry)  # noqa: B010
