"""conv_transposed: transposed convolutions on an implicit-GEMM kernel: all output phases of a cell are columns of one product."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic
from .conv_geometry import Geometry, Triple, conv_geometry
from .multiprocessor import MEMORY_BYTES, REGISTERS, TILE_BYTES


class ConvTransposed:
    """A transposed convolution (grouped too, of any strides) with bias, residual and activation in one launch; best where kernel == stride."""

    name = "conv_transposed"
    ops: tuple[str, ...] = ("conv",)

    def reject(self, problem: Problem) -> str:
        x, weight, *_ = problem.inputs
        assert x is not None
        assert weight is not None
        if not problem.attributes["transposed"]:
            return "not a transposed convolution"
        if not problem.constants[1]:
            return "the weight is computed: it cannot be laid out at build time"
        if problem.inputs[4] is not None:
            return "does not scale its input"
        if any(d > 1 and s > 1 for d, s in zip(problem.attributes["dilation"], problem.attributes["stride"], strict=True)):
            return "dilated with a stride: the positions read depend on the phase"
        if problem.outputs[0].dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"computes in fp16, bf16 and fp32, not in {problem.outputs[0].dtype}"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = _geometry(problem)
        rows, columns, _ = _sizes(geometry)
        size = problem.outputs[0].dtype.itemsize
        found: list[Config] = []
        for bm, bn, warps in _TILES:
            if (bm > 16 and bm >= 2 * rows) or (bn > 16 and bn >= 2 * columns) or (size == 4 and bm * bn > 128 * 128):
                continue
            for bk in (16, 32, 64, 128):
                if (bk > 16 and bk >= 2 * geometry.input_channels) or (bk == 16 and geometry.input_channels > 16):
                    continue
                if bk > 64 and bm * bn >= 128 * 32 * warps and max(_depths(geometry)) > 1:
                    continue  # accumulators, pointers and masks would not fit the registers
                for stages in (2, 3, 4):
                    if stages <= max(2, _steps(geometry, bk)) and (bm + bn) * bk * size * stages <= TILE_BYTES:
                        found.append({"BM": bm, "BN": bn, "BK": bk, "warps": warps, "stages": stages})
        ranked = sorted(found, key=lambda config: _estimate(problem, geometry, config))
        return ranked[: (1, 4, 8, 16, 28, 60)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = _geometry(problem)
        bm, bn, bk = config["BM"], config["BN"], config["BK"]
        rows, columns, cells = _sizes(geometry)
        has_bias, has_residual = problem.inputs[2] is not None, problem.inputs[3] is not None
        operands = ("x0", "packed.weight", "x2" if has_bias else "x0", "x3" if has_residual else "x0", "y0")
        axes = ("N", "C", "D", "H", "W")
        constants: dict[str, Any] = {
            "M": rows,
            "CI": geometry.input_channels,
            "CO": geometry.output_channels,
            **dict(zip(("D", "H", "W"), geometry.spatial, strict=True)),
            **dict(zip(("OD", "OH", "OW"), geometry.out_spatial, strict=True)),
            **dict(zip(("QD", "QH", "QW"), cells, strict=True)),
            **dict(zip(("TD", "TH", "TW"), _depths(geometry), strict=True)),
            **dict(zip(("SD", "SH", "SW"), geometry.stride, strict=True)),
            **dict(zip(("PD", "PH", "PW"), geometry.padding, strict=True)),
            **dict(zip(("DD", "DH", "DW"), geometry.dilation, strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, geometry.x_strides, strict=True)},
            **{f"Y{axis}": stride for axis, stride in zip(axes, geometry.y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, geometry.residual_strides, strict=True)},
            "WK": _steps(geometry, bk) * bk,
            "HAS_BIAS": has_bias,
            "HAS_RESIDUAL": has_residual,
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "PRECISION": problem.math,
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "GROUP_M": 8,
            "PDL": problem.capability >= 90,
        }
        specs = {"packed.weight": problem.inputs[1], "y0": problem.outputs[0], **{f"x{i}": spec for i, spec in enumerate(problem.inputs)}}
        pointers = tuple(spec.dtype for name in operands if (spec := specs[name]) is not None)
        kernel = Kernel("conv_transposed:conv_transposed", pointers, tuple(constants.items()), config["warps"], config["stages"])
        launch = Launch(kernel, (-(-rows // bm) * -(-columns // bn), geometry.groups, 1), operands)
        pack = partial(pack_weight, groups=geometry.groups, stride=geometry.stride, block=bk)
        return Recipe((launch,), packed={"weight": Packed(pack, ("x1",))})


def pack_weight(weight: torch.Tensor, groups: int, stride: Triple, block: int) -> torch.Tensor:
    """[groups * CI, CO, *kernel] -> [groups, phases * CO, K]: phase f's j-th tap is f + j * stride; K is (j, channel), the channels of each j
    padded with zeros to a multiple of ``block``."""
    inputs, outputs, *kernel = weight.shape
    channels = inputs // groups
    kernel = [1] * (3 - len(kernel)) + kernel
    w = weight.reshape(groups, channels, outputs, *kernel)
    padding = [p for size, step in zip(reversed(kernel), reversed(stride), strict=True) for p in (0, -size % step)]
    w = torch.nn.functional.pad(w, padding)
    sizes = [n for size, step in zip(w.shape[3:], stride, strict=True) for n in (size // step, step)]
    w = w.reshape(groups, channels, outputs, *sizes)  # [group, channel, output, jd, fd, jh, fh, jw, fw]
    w = w.permute(0, 4, 6, 8, 2, 3, 5, 7, 1)
    w = torch.nn.functional.pad(w, (0, -channels % block))
    return w.reshape(groups, stride[0] * stride[1] * stride[2] * outputs, -1).contiguous()


def _geometry(problem: Problem) -> Geometry:
    weight = problem.inputs[1]
    assert weight is not None
    return replace(conv_geometry(problem), output_channels=weight.shape[1])


def _depths(geometry: Geometry) -> Triple:
    """Taps of a phase in each dimension."""
    td, th, tw = (-(-size // step) for size, step in zip(geometry.kernel, geometry.stride, strict=True))
    return td, th, tw


def _sizes(geometry: Geometry) -> tuple[int, int, Triple]:
    """Rows, columns and the cells of each dimension."""
    qd, qh, qw = ((size - 1 + pad) // step + 1 for size, pad, step in zip(geometry.out_spatial, geometry.padding, geometry.stride, strict=True))
    phases = geometry.stride[0] * geometry.stride[1] * geometry.stride[2]
    return geometry.batch * qd * qh * qw, phases * geometry.output_channels, (qd, qh, qw)


def _steps(geometry: Geometry, bk: int) -> int:
    td, th, tw = _depths(geometry)
    return td * th * tw * -(-geometry.input_channels // bk)


#: BM, BN, warps.
_TILES = (
    (16, 32, 2),
    (16, 64, 4),
    (16, 128, 4),
    (32, 16, 2),
    (32, 32, 4),
    (32, 64, 4),
    (32, 128, 4),
    (64, 16, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 128, 4),
    (64, 256, 4),
    (128, 16, 4),
    (128, 32, 4),
    (128, 64, 4),
    (128, 128, 4),
    (128, 128, 8),
    (128, 256, 8),
    (256, 64, 8),
    (256, 128, 8),
)


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    bm, bn, bk, warps, stages = (config[name] for name in ("BM", "BN", "BK", "warps", "stages"))
    rows, columns, _ = _sizes(geometry)
    size = problem.outputs[0].dtype.itemsize
    tiles = -(-rows // bm) * -(-columns // bn) * geometry.groups
    steps = _steps(geometry, bk)
    a_multiprocessor = -(-tiles // problem.multiprocessors)
    resident = max(1, min(2048 // (warps * 32), TILE_BYTES // ((bm + bn) * bk * size * stages), REGISTERS // (bm * bn + warps * 32 * 60)))
    efficiency = min(1.0, 0.25 + bm * bn / 16384) * (0.7 if bm < 64 else 1.0)
    compute = steps * bm * bn * bk / (1024 * efficiency * (2 / size) * (0.5 if problem.math == "ieee" and size == 4 else 1))
    traffic = steps * (bm + bn) * bk * size / 40
    store = bm * bn * size * (2 if problem.inputs[3] is not None else 1) / MEMORY_BYTES  # the output is the larger part of what moves: memory's pace
    latency = (1500 + 700 * steps / min(stages, 3)) * -(-a_multiprocessor // resident)
    return (a_multiprocessor * max(compute, traffic, store) + latency) * (1 + 0.01 * stages)


TACTICS: tuple[Tactic, ...] = (ConvTransposed(),)
