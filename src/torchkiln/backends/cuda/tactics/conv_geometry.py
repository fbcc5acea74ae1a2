"""conv_geometry: what a convolution or a matrix product is as an implicit GEMM, whatever its number of spatial dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..recipe import Problem, TensorSpec

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Sizes and strides of a grouped convolution over three spatial dimensions (1 where the problem has fewer).

    Attributes:
        input_channels, output_channels: of one group.
        x_strides, y_strides, residual_strides: of [N, C, D, H, W], in elements.
    """

    batch: int
    groups: int
    input_channels: int
    output_channels: int
    spatial: Triple
    out_spatial: Triple
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    residual_strides: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Output positions: the rows of the GEMM."""
        return self.batch * self.out_spatial[0] * self.out_spatial[1] * self.out_spatial[2]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position reads one input position, and none outside."""
        return self.taps == 1 and not any(self.padding)


def conv_geometry(problem: Problem) -> Geometry:
    """Of a "conv" or "conv_pooled" problem (not a transposed one)."""
    x, weight, y = problem.inputs[0], problem.inputs[1], problem.outputs[0]
    assert x is not None
    assert weight is not None
    residual = problem.inputs[3] if problem.op in ("conv", "conv_moments") else None
    groups = problem.attributes["groups"]
    return Geometry(
        batch=x.shape[0],
        groups=groups,
        input_channels=x.shape[1] // groups,
        output_channels=weight.shape[0] // groups,
        spatial=_triple(x.shape[2:], 1),
        out_spatial=_triple(y.shape[2:], 1),
        kernel=_triple(weight.shape[2:], 1),
        stride=_triple(problem.attributes["stride"], 1),
        padding=_triple(problem.attributes["padding"], 0),
        dilation=_triple(problem.attributes["dilation"], 1),
        x_strides=_five(x),
        y_strides=_five(y),
        residual_strides=_five(residual) if residual is not None else (0,) * 5,
    )


def merge_positions(geometry: Geometry, *, keep_batch: bool) -> Geometry:
    """The same pointwise convolution with fewer dimensions: neighbours that every tensor walks with one stride are one, so that kernels divide less.

    Args:
        keep_batch: leave the batch a dimension of its own.
    """
    if not geometry.is_pointwise or geometry.stride != (1, 1, 1):
        return geometry
    tensors = (geometry.x_strides, geometry.y_strides, geometry.residual_strides)
    sizes: list[int] = []
    strides: list[tuple[int, ...]] = []
    for dim, size in zip((2, 3, 4), geometry.spatial, strict=True):
        own = tuple(five[dim] for five in tensors)
        if size == 1:
            continue
        if sizes and all(outer == inner * size for outer, inner in zip(strides[-1], own, strict=True)):
            sizes[-1], strides[-1] = sizes[-1] * size, own
        else:
            sizes, strides = [*sizes, size], [*strides, own]
    batch, by_batch = geometry.batch, tuple(five[0] for five in tensors)
    if not keep_batch and sizes and all(outer == inner * sizes[0] for outer, inner in zip(by_batch, strides[0], strict=True)):
        sizes[0] *= batch
        batch = 1
    missing = 3 - len(sizes)
    spatial = _triple(sizes, 1)
    fives = [(five[0], five[1], *(0,) * missing, *(own[index] for own in strides)) for index, five in enumerate(tensors)]
    return replace(geometry, batch=batch, spatial=spatial, out_spatial=spatial, x_strides=fives[0], y_strides=fives[1], residual_strides=fives[2])


def linear_geometry(problem: Problem) -> Geometry:
    """Of a "linear" problem: the leading dimensions are batch and positions, see ``leading_dims``."""
    x, weight, _, residual = problem.inputs
    y = problem.outputs[0]
    assert x is not None
    assert weight is not None
    specs = [x, residual, y]
    sizes, strides = leading_dims([spec for spec in specs if spec is not None])
    by_spec = iter(strides)
    five = [(0,) * 5 if spec is None else _with_channels(next(by_spec), spec.strides[-1]) for spec in specs]
    batch, *spatial = [1] * (4 - len(sizes)) + sizes
    at = (spatial[0], spatial[1], spatial[2])
    one = (1, 1, 1)
    return Geometry(batch, 1, weight.shape[1], weight.shape[0], at, at, one, one, (0, 0, 0), one, five[0], five[2], five[1])


def _with_channels(leading: list[int], channel: int) -> tuple[int, ...]:
    """Strides of [N, C, D, H, W] from those of the leading dimensions."""
    filled = [0] * (4 - len(leading)) + leading
    return filled[0], channel, *filled[1:]


def leading_dims(specs: Sequence[TensorSpec]) -> tuple[list[int], list[list[int]]]:
    """The sizes of all but the last dimension, those merged that every tensor walks with one stride, and the strides of each tensor."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in specs]
    for dim, size in enumerate(specs[0].shape[:-1]):
        if size == 1:
            continue
        if sizes and all(own[-1] == spec.strides[dim] * size for own, spec in zip(strides, specs, strict=True)):
            sizes[-1] *= size
            for own, spec in zip(strides, specs, strict=True):
                own[-1] = spec.strides[dim]
            continue
        sizes.append(size)
        for own, spec in zip(strides, specs, strict=True):
            own.append(spec.strides[dim])
    return sizes, strides


def uniform_rows(spec: TensorSpec) -> bool:
    """Whether all but the last dimension can be walked with one stride."""
    sizes = [(size, stride) for size, stride in zip(spec.shape[:-1], spec.strides[:-1], strict=True) if size != 1]
    return all(outer == inner * size for (_, outer), (size, inner) in itertools.pairwise(sizes))


def row_stride(spec: TensorSpec) -> int:
    """That stride, in elements."""
    sizes = [stride for size, stride in zip(spec.shape[:-1], spec.strides[:-1], strict=True) if size != 1]
    return sizes[-1] if sizes else spec.shape[-1]


def _triple(values: tuple[int, ...] | list[int], fill: int) -> Triple:
    filled = [fill] * (3 - len(values)) + list(values)
    return filled[0], filled[1], filled[2]


def _five(spec: TensorSpec) -> tuple[int, ...]:
    """Strides of [N, C, D, H, W]: the missing dimensions have size 1."""
    return spec.strides[:2] + (0,) * (5 - len(spec.strides)) + spec.strides[2:]


def weight_of(problem: Problem) -> TensorSpec:
    """The weight. Operands are of its dtype; a result may be wider, and an image that is padded first of any."""
    weight = problem.inputs[1]
    assert weight is not None
    return weight
