"""Strict JSON: what torchkiln writes any JSON reader can read, and what it reads fails with one typed error."""

from __future__ import annotations

import json
import math
from typing import Any

from ..errors import CompilerBug, CorruptEngineFile

#: JSON has no infinity or NaN; a report has (a relative error of a failed candidate), and so has a graph (masks filled with -inf).
_TAG = "$float"
_NON_FINITE = ("inf", "-inf", "nan")


def dump_json(value: Any, where: str) -> bytes:
    """``value`` as UTF-8 JSON. Raises CompilerBug naming ``where`` for a value JSON cannot hold."""
    try:
        return json.dumps(_tag_floats(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise CompilerBug(f"{where}: expected JSON values: {error}") from error


def load_json(data: bytes, where: str) -> Any:
    """The value of UTF-8 JSON text. Raises CorruptEngineFile naming ``where``, also for nesting or numbers beyond Python's limits."""
    try:
        return json.loads(data.decode("utf-8"), object_hook=_untag, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptEngineFile(f"{where}: not valid JSON: {error}") from None


def _tag_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: str(value)}
    if isinstance(value, dict):
        return {key: _tag_floats(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tag_floats(part) for part in value]
    return value


def _untag(pairs: dict[str, Any]) -> Any:
    if len(pairs) == 1 and pairs.get(_TAG) in _NON_FINITE:
        return float(pairs[_TAG])
    return pairs


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
