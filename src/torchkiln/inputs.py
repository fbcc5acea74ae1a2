"""What the caller promises to pass: shapes (fixed or a range), dtype and name of each input tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .dtypes import dtype_name
from .errors import UserError

Shape = tuple[int, ...]


class ShapeRange(NamedTuple):
    """The shapes of one tensor in one optimization profile: all equal where the shape is fixed."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True, init=False)
class Input:
    """One input tensor of a model, as the caller will pass it.

    ``Input((1, 3, 224, 224))`` has one fixed shape. ``Input(min_shape=..., opt_shape=..., max_shape=...)`` has a range:
    every shape between min and max (inclusive, dimension by dimension) must run, and the engine is tuned for opt.

    Attributes:
        min_shape, opt_shape, max_shape: equal for a fixed shape.
        dtype: what the caller passes (not what the engine computes in). Default: torch.float32, with ``any_float``.
        any_float: whether the engine takes any floating dtype and casts it to ``dtype``; so when no dtype was given.
        name: the input's name in errors and reports; the model's parameter name when empty.
        tensor_domain: (low, high) of the values drawn for checking and timing; low inclusive, high exclusive.
            Default: a standard normal for floating dtypes, {0, 1} for integers and booleans.
    """

    min_shape: Shape
    opt_shape: Shape
    max_shape: Shape
    dtype: torch.dtype
    any_float: bool
    name: str
    tensor_domain: tuple[float, float] | None

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        *,
        min_shape: Sequence[int] | None = None,
        opt_shape: Sequence[int] | None = None,
        max_shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        any_float: bool | None = None,
        name: str = "",
        tensor_domain: tuple[float, float] | None = None,
    ) -> None:
        ranged = (min_shape, opt_shape, max_shape)
        if shape is not None:
            if any(s is not None for s in ranged):
                raise UserError(f"Input {name!r}: give either shape or min_shape/opt_shape/max_shape, not both")
            fixed = _as_shape(shape, name, "shape")
            lo = opt = hi = fixed
        else:
            if any(s is None for s in ranged):
                raise UserError(
                    f"Input {name!r}: expected shape, or all three of min_shape, opt_shape and max_shape; "
                    f"got min_shape={min_shape}, opt_shape={opt_shape}, max_shape={max_shape}"
                )
            lo, opt, hi = (_as_shape(s, name, label) for s, label in zip(ranged, ("min_shape", "opt_shape", "max_shape"), strict=True))
            if not len(lo) == len(opt) == len(hi):
                raise UserError(f"Input {name!r}: min_shape {lo}, opt_shape {opt} and max_shape {hi} differ in rank")
            for d, (a, b, c) in enumerate(zip(lo, opt, hi, strict=True)):
                if not a <= b <= c:
                    raise UserError(f"Input {name!r}: dimension {d}: expected min <= opt <= max, got {a}, {b}, {c}")
        any_float = dtype is None if any_float is None else any_float
        dtype = torch.float32 if dtype is None else dtype
        dtype_name(dtype)
        if any_float and not dtype.is_floating_point:
            raise UserError(f"Input {name!r}: any_float: expected a floating dtype beside it, got {dtype}")
        if tensor_domain is not None and not tensor_domain[0] < tensor_domain[1]:
            raise UserError(f"Input {name!r}: tensor_domain: expected low < high, got {tensor_domain}")
        for field, value in (
            ("min_shape", lo),
            ("opt_shape", opt),
            ("max_shape", hi),
            ("dtype", dtype),
            ("any_float", any_float),
            ("name", name),
            ("tensor_domain", tensor_domain),
        ):
            object.__setattr__(self, field, value)

    @classmethod
    def of(cls, tensor: torch.Tensor, name: str = "") -> Input:
        """The Input that describes ``tensor``: its exact shape and dtype."""
        return cls(tuple(tensor.shape), dtype=tensor.dtype, name=name)

    @property
    def is_dynamic(self) -> bool:
        return self.min_shape != self.max_shape

    @property
    def dynamic_dims(self) -> tuple[int, ...]:
        """The dimensions whose size may vary."""
        return tuple(d for d, (lo, hi) in enumerate(zip(self.min_shape, self.max_shape, strict=True)) if lo != hi)

    def random(self, shape: Sequence[int] | None = None, *, seed: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
        """A seeded random tensor of ``shape`` (default: opt_shape), drawn from ``tensor_domain``."""
        size = tuple(self.opt_shape if shape is None else shape)
        generator = torch.Generator().manual_seed(seed)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            if self.tensor_domain is None:
                wide = torch.complex64 if self.dtype.is_complex else torch.float32
                value = torch.randn(size, generator=generator, dtype=wide)
            else:
                low, high = self.tensor_domain
                value = torch.rand(size, generator=generator) * (high - low) + low
        else:
            low, high = self.tensor_domain or (0, 2)
            value = torch.randint(int(low), int(high), size, generator=generator)
        return value.to(device=device, dtype=self.dtype)

    def __repr__(self) -> str:
        shape = f"{self.opt_shape}" if not self.is_dynamic else f"min_shape={self.min_shape}, opt_shape={self.opt_shape}, max_shape={self.max_shape}"
        name = f", name={self.name!r}" if self.name else ""
        return f"Input({shape}, dtype={dtype_name(self.dtype)}{name})"


def _as_shape(value: Sequence[int] | None, name: str, label: str) -> Shape:
    try:
        shape = tuple(int(v) for v in value)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise UserError(f"Input {name!r}: {label}: expected a sequence of integers, got {value!r}") from None
    if any(v < 0 for v in shape):
        raise UserError(f"Input {name!r}: {label}: expected sizes >= 0, got {shape}")
    return shape


#: One optimization profile: the range of each input, in order.
Profile = tuple[ShapeRange, ...]


def resolve_profiles(profiles: Sequence[Mapping[str, Any]], inputs: Sequence[Input]) -> tuple[Profile, ...]:
    """The optimization profiles a user asked for, for the inputs of a program; without any, one over the inputs' whole ranges.

    Args:
        profiles: for each profile, {input name: (min, opt, max)} or {input name: a fixed shape}; an input that is left out has its whole range.

    Raises UserError for an unknown name, and for a range that leaves the input's own.
    """
    whole = tuple(ShapeRange(i.min_shape, i.opt_shape, i.max_shape) for i in inputs)
    if not profiles:
        return (whole,)
    positions = {spec.name: index for index, spec in enumerate(inputs)}
    resolved = []
    for number, profile in enumerate(profiles):
        ranges = list(whole)
        for name, shapes in profile.items():
            where = f"profiles[{number}]"
            if name not in positions:
                raise UserError(f"{where}: there is no input {name!r}: expected names among {', '.join(positions)}")
            ranges[positions[name]] = _profile_range(shapes, inputs[positions[name]], where)
        resolved.append(tuple(ranges))
    return tuple(resolved)


def _profile_range(shapes: Any, spec: Input, where: str) -> ShapeRange:
    nested = isinstance(shapes, Sequence) and len(shapes) == 3 and all(isinstance(s, Sequence) for s in shapes)
    low, opt, high = (_as_shape(s, spec.name, where) for s in (shapes if nested else [shapes] * 3))
    if not len(low) == len(opt) == len(high) == len(spec.opt_shape):
        raise UserError(f"{where}: input {spec.name!r}: expected shapes of {len(spec.opt_shape)} dimensions, got {low}, {opt}, {high}")
    for d, bounds in enumerate(zip(spec.min_shape, low, opt, high, spec.max_shape, strict=True)):
        if list(bounds) != sorted(bounds):
            raise UserError(
                f"{where}: input {spec.name!r}, dimension {d}: expected {spec.min_shape[d]} <= min <= opt <= max <= {spec.max_shape[d]} "
                f"(the input's range), got {low[d]}, {opt[d]}, {high[d]}"
            )
    return ShapeRange(low, opt, high)
