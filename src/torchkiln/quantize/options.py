"""QuantizeOptions: which layers become int8."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Which layers become int8. All others stay in the engine's floating precision; the report says which and why.

    Attributes:
        stem: quantize layers that read an input of the model. Off: they are few, see the widest range of values and cost the most accuracy.
        head: quantize layers whose result is an output of the model, or becomes one by pointwise operators and views alone. Off.
        depthwise: quantize convolutions with one input channel a group. Off: they are bound by memory, and channels differ in range.
        residuals: where a convolution's result is added to another tensor, quantize that tensor too, by the scale that its other readers use. On:
            the sum is then one step of an int8 convolution.
        skip: names of layers to keep in floating point, with wildcards as in file names (``"layer4.*"``).
    """

    stem: bool = False
    head: bool = False
    depthwise: bool = False
    residuals: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stem", "head", "depthwise", "residuals"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"QuantizeOptions: {name}: expected True or False, got {getattr(self, name)!r}")
        skip = (self.skip,) if isinstance(self.skip, str) else self.skip
        if not isinstance(skip, (tuple, list)) or not all(isinstance(pattern, str) for pattern in skip):
            raise UserError(f"QuantizeOptions: skip: expected names of layers, got {self.skip!r}")
        object.__setattr__(self, "skip", tuple(skip))

    def as_json(self) -> dict[str, Any]:
        return {f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value for f in fields(self)}

    @classmethod
    def from_json(cls, data: Any) -> QuantizeOptions:
        """Raises UserError for anything that ``as_json`` does not give."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not data.keys() <= known:
            raise UserError(f"QuantizeOptions: expected an object with {', '.join(sorted(known))}, got {data!r:.200}")
        return cls(**data)
