"""conv_gemm: convolutions and matrix products on torchkiln's own implicit-GEMM kernel."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_geometry import Geometry, conv_geometry, linear_geometry, uniform_rows

#: Fewer input channels than this are packed next to each other over the taps: blocks of channels would be mostly padding.
FLAT_CHANNELS = 16
MAX_ELEMENTS = 2**31 - 1


class ConvGemm:
    """A convolution (grouped too, of any strides) with scale, bias, residual and activation in one launch; split over K where rows are few."""

    name = "conv_gemm"
    ops: tuple[str, ...] = ("conv", "linear")

    def reject(self, problem: Problem) -> str:
        x, weight, *_ = problem.inputs
        assert x is not None and weight is not None
        if not problem.constants[1]:
            return "the weight is computed: it cannot be laid out at build time"
        if problem.op == "conv":
            if problem.attributes["transposed"]:
                return "transposed convolutions have a tactic of their own"
            geometry = conv_geometry(problem)
            if geometry.input_channels < 4 and geometry.groups > 1:
                return "depthwise: a GEMM would be mostly padding"
            if problem.inputs[4] is not None and (geometry.groups > 1 or not geometry.is_pointwise):
                return "scales its input only for ungrouped 1x1 convolutions"
        else:
            for spec in (x, problem.inputs[3], problem.outputs[0]):
                if spec is not None and not uniform_rows(spec):
                    return "rows that no single stride walks"
        if problem.outputs[0].dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"computes in fp16, bf16 and fp32, not in {problem.outputs[0].dtype}"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = _geometry(problem)
        wide = problem.outputs[0].dtype.itemsize == 4
        k = geometry.input_channels * geometry.taps
        shapes = _tile_shapes(geometry, k, wide)
        found: list[Config] = []
        for bm, bn, bk, warps, stages in shapes:
            tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn) * geometry.groups
            for split in _splits(tiles, _steps(geometry, bk), problem.multiprocessors, bm * bn):
                found.append({"BM": bm, "BN": bn, "BK": bk, "warps": warps, "stages": stages, "split": split})
        ranked = sorted(found, key=lambda config: _estimate(problem, geometry, config))
        return ranked[: (1, 4, 8, 16, 28, 60)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = _geometry(problem)
        bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
        flat = _is_flat(geometry)
        wk = _steps(geometry, bk) * bk
        tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn)
        scratch, packed = {}, {"weight": Packed(partial(pack_weight, block=bk, flat=flat), ("x1",))}
        if split > 1:
            scratch["partial"] = TensorSpec.contiguous((tiles * geometry.groups * split * bm * bn,), torch.float32)
        given = [spec is not None for spec in problem.inputs] + [False]
        has = dict(zip(("bias", "residual", "scale"), given[2:5], strict=True))
        operands = (
            "x0",
            "packed.weight",
            "x2" if has["bias"] else "x0",
            "x3" if has["residual"] else "x0",
            "x4" if has["scale"] else "x0",
            "y0",
            "scratch.partial" if split > 1 else "x0",
            "counters" if split > 1 else "x0",
        )
        dtypes = {"scratch.partial": torch.float32, "counters": torch.int32, "y0": problem.outputs[0].dtype, "packed.weight": _spec(problem, 1).dtype}
        axes = ("N", "C", "D", "H", "W")
        constants = {
            "M": geometry.rows,
            "CI": geometry.input_channels,
            "CO": geometry.output_channels,
            "GROUPS": geometry.groups,
            **dict(zip(("D", "H", "W"), geometry.spatial, strict=True)),
            **dict(zip(("OD", "OH", "OW"), geometry.out_spatial, strict=True)),
            **dict(zip(("KD", "KH", "KW"), geometry.kernel, strict=True)),
            **dict(zip(("SD", "SH", "SW"), geometry.stride, strict=True)),
            **dict(zip(("PD", "PH", "PW"), geometry.padding, strict=True)),
            **dict(zip(("DD", "DH", "DW"), geometry.dilation, strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, geometry.x_strides, strict=True)},
            **{f"Y{axis}": stride for axis, stride in zip(axes, geometry.y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, geometry.residual_strides, strict=True)},
            "WK": wk,
            "HAS_BIAS": has["bias"],
            "HAS_RESIDUAL": has["residual"],
            "HAS_SCALE": has["scale"],
            "POINTWISE": geometry.is_pointwise,
            "FLAT": flat,
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "PRECISION": problem.math,
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "GROUP_M": 8,
            "SPLIT": split,
            "PDL": problem.capability >= 90,
        }
        pointers = tuple(dtypes[o] if o in dtypes else _spec(problem, int(o[1:])).dtype for o in operands)
        kernel = Kernel("conv:conv_gemm", pointers, tuple(constants.items()), config["warps"], config["stages"])
        launch = Launch(kernel, (tiles, geometry.groups, split), operands)
        return Recipe((launch,), scratch, packed, counters=tiles * geometry.groups if split > 1 else 0)


def pack_weight(weight: torch.Tensor, block: int, flat: bool) -> torch.Tensor:
    """[CO, CI, *kernel] or [CO, CI] -> [CO, K], K being (tap, channel); channels padded with zeros to a multiple of ``block`` for each tap, or, flat,
    the whole of K."""
    by_tap = weight.reshape(weight.shape[0], weight.shape[1], -1).transpose(1, 2)
    if not flat:
        by_tap = torch.nn.functional.pad(by_tap, (0, -by_tap.shape[2] % block))
    rows = by_tap.reshape(weight.shape[0], -1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % block)).contiguous()


def _geometry(problem: Problem) -> Geometry:
    return conv_geometry(problem) if problem.op == "conv" else linear_geometry(problem)


def _spec(problem: Problem, index: int) -> TensorSpec:
    spec = problem.inputs[index]
    assert spec is not None
    return spec


def _is_flat(geometry: Geometry) -> bool:
    return geometry.taps > 1 and geometry.input_channels < FLAT_CHANNELS


def _steps(geometry: Geometry, bk: int) -> int:
    """Blocks of K."""
    if _is_flat(geometry):
        return -(-geometry.input_channels * geometry.taps // bk)
    return geometry.taps * -(-geometry.input_channels // bk)


#: BM, BN, warps: tiles that tensor cores fill. BM below 64 takes the smaller matrix instructions, which few rows are served by better.
_TILES = (
    (16, 16, 2),
    (16, 32, 4),
    (16, 64, 4),
    (16, 128, 4),
    (32, 32, 4),
    (32, 64, 4),
    (32, 128, 4),
    (64, 16, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 128, 4),
    (64, 256, 4),
    (128, 32, 4),
    (128, 48, 4),
    (128, 64, 4),
    (128, 128, 4),
    (128, 128, 8),
    (128, 256, 8),
    (256, 32, 8),
    (256, 64, 8),
    (256, 128, 8),
)
_SHARED_BYTES = 220 * 1024


def _tile_shapes(geometry: Geometry, k: int, wide: bool) -> list[tuple[int, int, int, int, int]]:
    """(BM, BN, BK, warps, stages) that suit the sizes: a tile at most one step larger than the problem."""
    size = 4 if wide else 2
    found = []
    for bm, bn, warps in _TILES:
        if bn & (bn - 1):
            continue
        if (bm > 16 and bm >= 2 * geometry.rows) or (bn > 16 and bn >= 2 * geometry.output_channels):
            continue
        if wide and bm * bn > 128 * 128:
            continue
        for bk in (32, 64, 128):
            depth = k if _is_flat(geometry) else geometry.input_channels
            if bk > 32 and bk >= 2 * depth:
                continue
            for stages in (2, 3, 4, 5):
                if stages > max(2, _steps(geometry, bk)) or (bm + bn) * bk * size * stages > _SHARED_BYTES:
                    continue
                found.append((bm, bn, bk, warps, stages))
    return found


def _splits(tiles: int, steps: int, multiprocessors: int, tile_elements: int) -> list[int]:
    """Ways to split K: not at all, and so that about one or two waves of programs run."""
    found = {1}
    for waves in (1, 2):
        wanted = waves * multiprocessors // tiles
        for split in (wanted, wanted // 2):
            # At least two blocks of K each: a split costs a round trip through memory.
            if 2 <= split <= min(steps // 2, 32):
                per_split = -(-steps // split)
                found.add(-(-steps // per_split))
    return sorted(found)


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the time in microseconds, for the order in which configurations are tried."""
    bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
    size = problem.outputs[0].dtype.itemsize
    tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn) * geometry.groups * split
    resident = max(1, min(3, 8 // config["warps"], _SHARED_BYTES // max(1, (bm + bn) * bk * size * config["stages"])))
    waves = -(-tiles // (problem.multiprocessors * resident))
    steps = -(-_steps(geometry, bk) // split)
    # A multiprocessor does about 1024 fp16 products a cycle, less with small tiles, and loads about 40 bytes a cycle from L2.
    efficiency = min(1.0, 0.25 + bm * bn / 16384) * (0.7 if bm < 64 else 1.0)
    rate = 1024 * efficiency * (2 / size) * (0.5 if problem.math == "ieee" and size == 4 else 1)
    compute = steps * bm * bn * bk / rate * resident
    traffic = steps * (bm + bn) * bk * size / 40 * resident
    latency = 600 * steps / min(config["stages"], 3) / resident
    cycles = waves * (max(compute, traffic, latency) + 1200) + (1500 + bm * bn * split * 4 / 30 if split > 1 else 0)
    stages_bonus = 1 - 0.01 * config["stages"]
    return cycles * stages_bonus / 1700


TACTICS: tuple[Tactic, ...] = (ConvGemm(),)
