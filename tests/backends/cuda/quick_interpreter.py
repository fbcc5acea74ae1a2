"""Triton's interpreter without work that changes no result: its kernels then take a third of the time.

* Overflow of integers: it computes each sum, difference and product again in 64 bits and compares, for an assertion that it makes only with
  ``debug``, which is off.
* Each call of a device function looks through ``triton.language`` for what to replace, although the launch that it is part of has replaced it.
* A table of dtypes is made whenever one is asked for.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from types import FunctionType, ModuleType

from triton import language
from triton.runtime import interpreter


class _Patched:
    """What a launch replaced, while it runs."""

    def __init__(self) -> None:
        self.modules: set[ModuleType] = set()
        self.scope = None

    def restore(self) -> None:
        self.modules.clear()
        scope, self.scope = self.scope, None
        scope.restore()


def quicken() -> None:
    """Change the interpreter of this process; a second call changes nothing."""
    if interpreter._patch_lang.__module__ == __name__:
        return
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)
    of_any = interpreter._get_np_dtype
    of_number = cache(of_any)
    interpreter._get_np_dtype = lambda dtype: of_any(dtype) if dtype.scalar.is_ptr() else of_number(dtype.scalar)
    original, launch = interpreter._patch_lang, _Patched()

    def patch_lang(function: FunctionType) -> _Patched:
        modules = _languages(function)
        if launch.scope is None:
            launch.scope = original(function)
        elif not modules <= launch.modules:
            original(function)
        launch.modules |= modules
        return launch

    interpreter._patch_lang = patch_lang


@cache
def _languages(function: FunctionType) -> set[ModuleType]:
    """The modules of the language that a function of Triton sees."""
    return {value for value in function.__globals__.values() if inspect.ismodule(value) and value in (language, language.core)}
