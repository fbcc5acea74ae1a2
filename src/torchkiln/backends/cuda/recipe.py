"""What a tactic is asked and what it answers: Problem -> Recipe. Plain data, so that it can be hashed, cached, sent to a worker and stored.

A recipe names its operands: "x0", "x1", ... are the problem's inputs, "y0", ... its outputs, "scratch.NAME" temporaries, "packed.NAME" weights laid
out at build time, "counters" int32 counters that are zero before the recipe runs and after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...dtypes import dtype_name

Config = dict[str, Any]

#: What kernels compute in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
#: Kernels take pointers that are aligned to this.
ALIGNMENT_BYTES = 16
#: Kernels count elements in 32 bits.
MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's shape, strides (in elements) and dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorSpec:
        return TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @staticmethod
    def contiguous(shape: Sequence[int], dtype: torch.dtype) -> TensorSpec:
        return TensorSpec.of(torch.empty(tuple(shape), dtype=dtype, device="meta"))

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def span(self) -> int:
        """Elements from the first to the last, both counted; 0 when empty."""
        if self.numel == 0:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements (not of the span)."""
        return self.numel * self.dtype.itemsize

    @property
    def is_channels_last(self) -> bool:
        """Whether [N, C, *spatial] lies densely with the channels innermost."""
        return self.strides == channels_last_strides(self.shape)

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def as_json(self) -> list[Any]:
        return [list(self.shape), list(self.strides), dtype_name(self.dtype)]


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of [N, C, *spatial] stored densely as [N, *spatial, C]."""
    strides = [0] * len(shape)
    step = 1
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


@dataclass(frozen=True)
class Problem:
    """One fused op at given shapes.

    Attributes:
        op: "conv", "linear", ...: an operator of the dialect, or "aten.max_pool2d.default".
        inputs: the tensor arguments in schema order, None for those left out.
        outputs: what must be written; the strides are the planner's choice and must be kept.
        attributes: the other arguments, JSON values, by schema name.
        constants: for each input, whether it is a weight (known at build time; may be packed).
        math: "ieee" or "tf32": how float32 products are computed.
        device: compute capability times ten (90) and the number of multiprocessors.
    """

    op: str
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: dict[str, Any] = field(hash=False)
    constants: tuple[bool, ...] = ()
    math: str = "ieee"
    capability: int = 90
    multiprocessors: int = 132

    def key(self) -> str:
        """The same text for the same problem."""
        tensors = [None if spec is None else spec.as_json() for spec in self.inputs], [spec.as_json() for spec in self.outputs]
        return json.dumps([self.op, *tensors, self.attributes, self.constants, self.math, self.capability, self.multiprocessors], sort_keys=True)


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel with all but its pointers fixed.

    Attributes:
        function: "module:name" under ``torchkiln.backends.cuda.kernels``, as "conv:conv_gemm"; or the name of the kernel in ``source``.
        pointers: the dtype each pointer argument points to, in order; the pointers come first and are 16-byte aligned.
        constants: every other argument: int, float, bool or str.
        source: generated text of the kernel, when it is not in a module.
    """

    function: str
    pointers: tuple[torch.dtype, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int = 4
    num_stages: int = 2
    source: str = ""


@dataclass(frozen=True)
class Launch:
    """A kernel on a grid, with the operands its pointers take."""

    kernel: Kernel
    grid: tuple[int, int, int]
    operands: tuple[str, ...]


@dataclass(frozen=True)
class TorchCall:
    """An operator of torch, called as it is. Arguments that are operands are ``Ref(name)``.

    Attributes:
        results: the operand each result is, in order ("" drops it). With ``out`` the operator writes into them; without, torch allocates them
            and they must have the spec's shape and strides.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    results: tuple[str, ...] = ("y0",)
    out: bool = False


@dataclass(frozen=True)
class Ref:
    """An operand, as an argument of a TorchCall; ``shape``: viewed as that shape and those strides first (both or neither)."""

    name: str
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0


def refs_in(value: Any) -> list[Ref]:
    """The Refs in an argument, nested as it may be."""
    if isinstance(value, Ref):
        return [value]
    return [ref for part in value for ref in refs_in(part)] if isinstance(value, (list, tuple)) else []


@dataclass(frozen=True)
class Packed:
    """A tensor made of weights at build time: ``function(*operands)``. The function must not depend on anything else."""

    function: Callable[..., torch.Tensor]
    operands: tuple[str, ...]


@dataclass
class Recipe:
    """How to run a problem: launches in order, and the buffers they need besides the operands.

    Attributes:
        in_place: (input, output) operands that may be one memory: every program reads of the input, besides what nothing depends on, only the
            elements that it writes of the output, and before it writes them. The same strides and element size are the tactic's to check;
            that nothing else reads the input is the plan's.
    """

    launches: tuple[Launch | TorchCall, ...]
    scratch: dict[str, TensorSpec] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)
    counters: int = 0
    in_place: tuple[tuple[str, str], ...] = ()


class Tactic(Protocol):
    """One way to run one op. A module of ``tactics/`` has an instance for each and lists them in ``TACTICS``."""

    name: str
    ops: tuple[str, ...]

    def reject(self, problem: Problem) -> str:
        """Why it cannot run the problem; "" when it can."""
        ...

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """What to try at an effort of 0 (only the best guess) to 5 (everything sensible), best guess first. JSON values."""
        ...

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        """The launches for one of ``configs``."""
        ...
