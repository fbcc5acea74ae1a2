"""conv_gemm: convolutions and matrix products on torchkiln's own implicit-GEMM kernel, and the moments of their results as a by-product."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_geometry import Geometry, conv_geometry, leading_dims, linear_geometry, merge_positions, weight_of
from .moments import combine_launch
from .spread import spread

#: Fewer input channels than this are packed next to each other over the taps: blocks of channels would be mostly padding.
FLAT_CHANNELS = 16


class ConvGemm:
    """A convolution (grouped too, of any strides) with scale, bias, residual and activation in one launch; split over K where rows are few."""

    name = "conv_gemm"
    ops: tuple[str, ...] = ("conv", "linear", "conv_moments")

    def reject(self, problem: Problem) -> str:
        x, weight, *_ = problem.inputs
        assert x is not None
        assert weight is not None
        if not problem.constants[1]:
            return "the weight is computed: it cannot be laid out at build time"
        if problem.op != "linear":
            if problem.attributes["transposed"]:
                return "transposed convolutions have a tactic of their own"
            geometry = _geometry(problem)
            if geometry.input_channels < 4 and geometry.groups > 1:
                return "depthwise: a GEMM would be mostly padding"
            if problem.inputs[4] is not None and (geometry.groups > 1 or not geometry.is_pointwise):
                return "scales its input only for ungrouped 1x1 convolutions"
        else:
            specs = [spec for spec in (x, problem.inputs[3], problem.outputs[0]) if spec is not None]
            if len(leading_dims(specs)[0]) > 4:
                return "rows in more than four dimensions that no common stride walks"
        bias = problem.inputs[2]
        if bias is not None and not bias.is_contiguous:
            return "a bias whose elements do not lie next to each other"
        if problem.outputs[0].dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"computes in fp16, bf16 and fp32, not in {problem.outputs[0].dtype}"
        if problem.op == "conv_moments" and problem.outputs[0].numel == 0:
            return "the moments of nothing"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = _geometry(problem)
        return gemm_configs(problem, geometry, level, flat=is_flat(geometry))

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = _geometry(problem)
        packed = Packed(partial(pack_weight, block=config["BK"], flat=is_flat(geometry)), ("x1",))
        return gemm_recipe(problem, geometry, config, "x0", _spec(problem, 0).dtype, packed, flat=is_flat(geometry))


def gemm_configs(problem: Problem, geometry: Geometry, level: int, *, flat: bool) -> list[Config]:
    """What to try, the best guess first."""
    wide = weight_of(problem).dtype.itemsize == 4
    has_residual = len(problem.inputs) > 3 and problem.inputs[3] is not None
    found: list[Config] = []
    for bm, bn, bk, warps, stages in _tile_shapes(geometry, wide, flat):
        tiles = _row_tiles(problem, geometry, bm) * -(-geometry.output_channels // bn) * geometry.groups
        for split in k_splits(tiles, k_steps(geometry, bk, flat), problem.multiprocessors):
            config = {"BM": bm, "BN": bn, "BK": bk, "warps": warps, "stages": stages, "split": split, "early": False}
            found.append(config)
            if has_residual and split == 1 and bm * bn <= 128 * 128:
                found.append({**config, "early": True})
    ranked = sorted(found, key=lambda config: estimate_us(problem, geometry, config, flat))
    return spread(ranked, ("BM", "BN"), 16)[: (1, 4, 10, 20, 40, 80)[level]]


def gemm_recipe(problem: Problem, geometry: Geometry, config: Config, x: str, x_dtype: torch.dtype, weight: Packed, *, flat: bool) -> Recipe:
    """One launch of the kernel; for "conv_moments" another, which combines the moments of its tiles.

    Args:
        geometry: of the operand ``x``, which may be another than the problem's first input.
        weight: gives [CO, K] as the kernel takes it.
    """
    bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
    wk = k_steps(geometry, bk, flat) * bk
    row_tiles = _row_tiles(problem, geometry, bm)
    tiles = row_tiles * -(-geometry.output_channels // bn)
    moments = problem.op == "conv_moments"
    scratch, packed = {}, {"weight": weight}
    if split > 1:
        scratch["partial"] = TensorSpec.contiguous((tiles * geometry.groups * split * bm * bn,), torch.float32)
    if moments:
        scratch["parts"] = TensorSpec.contiguous((row_tiles, 3, geometry.groups * geometry.output_channels), torch.float32)
    given = [spec is not None for spec in problem.inputs] + [False]
    has = dict(zip(("bias", "residual", "scale"), given[2:5], strict=True))
    operands = (
        x,
        "packed.weight",
        "x2" if has["bias"] else x,
        "x3" if has["residual"] else x,
        "x4" if has["scale"] else x,
        "y0",
        "scratch.partial" if split > 1 else x,
        "counters" if split > 1 else x,
        "scratch.parts" if moments else x,
    )
    dtypes = {
        "scratch.parts": torch.float32,
        "scratch.partial": torch.float32,
        "counters": torch.int32,
        "y0": problem.outputs[0].dtype,
        "packed.weight": weight_of(problem).dtype,
        x: x_dtype,
    }
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
        "MOMENTS": moments,
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
        "EARLY": config["early"],
        "PREFETCH": problem.capability >= 90 and tiles * geometry.groups * split <= 2 * problem.multiprocessors,
        "PDL": problem.capability >= 90,
    }
    pointers = tuple(dtypes[o] if o in dtypes else _spec(problem, int(o[1:])).dtype for o in operands)
    kernel = Kernel("conv:conv_gemm", pointers, tuple(constants.items()), config["warps"], config["stages"])
    launches = [Launch(kernel, (tiles, geometry.groups, split), operands)]
    counters = tiles * geometry.groups if split > 1 else 0
    if moments:
        combine, counted = combine_launch(problem, row_tiles // geometry.batch, scratch)
        launches.append(combine)
        counters = max(counters, counted)
    return Recipe(tuple(launches), scratch, packed, counters, in_place=residual_in_place(problem))


def residual_in_place(problem: Problem) -> tuple[tuple[str, str], ...]:
    """The result may take the residual's memory where the two lie alike: a program reads of the residual, before it writes, what it writes."""
    residual, y = problem.inputs[3], problem.outputs[0]
    if residual is None or (residual.shape, residual.strides, residual.dtype) != (y.shape, y.strides, y.dtype):
        return ()
    return (("x3", "y0"),)


def pack_weight(weight: torch.Tensor, block: int, flat: bool) -> torch.Tensor:
    """[CO, CI, *kernel] or [CO, CI] -> [CO, K], K being (tap, channel); channels padded with zeros to a multiple of ``block`` for each tap, or, flat,
    the whole of K."""
    by_tap = weight.reshape(weight.shape[0], weight.shape[1], -1).transpose(1, 2)
    if not flat:
        by_tap = torch.nn.functional.pad(by_tap, (0, -by_tap.shape[2] % block))
    rows = by_tap.reshape(weight.shape[0], -1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % block)).contiguous()


def _geometry(problem: Problem) -> Geometry:
    if problem.op == "linear":
        return linear_geometry(problem)
    # Scales and moments are of an image.
    return merge_positions(conv_geometry(problem), keep_batch=problem.op == "conv_moments" or problem.inputs[4] is not None)


def _row_tiles(problem: Problem, geometry: Geometry, bm: int) -> int:
    """Tiles of rows. Those that moments are taken of have rows of one image only."""
    images = geometry.batch if problem.op == "conv_moments" else 1
    return images * -(-(geometry.rows // images) // bm)


def _spec(problem: Problem, index: int) -> TensorSpec:
    spec = problem.inputs[index]
    assert spec is not None
    return spec


def is_flat(geometry: Geometry) -> bool:
    return geometry.taps > 1 and geometry.input_channels < FLAT_CHANNELS


def k_steps(geometry: Geometry, bk: int, flat: bool) -> int:
    """Blocks of K."""
    if flat:
        return -(-geometry.input_channels * geometry.taps // bk)
    return geometry.taps * -(-geometry.input_channels // bk)


#: BM, BN, warps: tiles that tensor cores fill. BM below 64 takes the smaller matrix instructions, which few rows are served by better.
TILES = (
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


def _tile_shapes(geometry: Geometry, wide: bool, flat: bool) -> list[tuple[int, int, int, int, int]]:
    """(BM, BN, BK, warps, stages) that suit the sizes: a tile at most one step larger than the problem."""
    size = 4 if wide else 2
    found = []
    for bm, bn, warps in TILES:
        if bn & (bn - 1):
            continue
        if (bm > 16 and bm >= 2 * geometry.rows) or (bn > 16 and bn >= 2 * geometry.output_channels):
            continue
        if wide and bm * bn > 128 * 128:
            continue
        depth = geometry.input_channels * (geometry.taps if flat else 1)
        for bk in (16, 32, 64, 128):
            if (bk > 16 and bk >= 2 * depth) or (bk == 16 and depth > 16):
                continue
            for stages in (2, 3, 4, 5):
                if stages > max(2, k_steps(geometry, bk, flat)) or (bm + bn) * bk * size * stages > _SHARED_BYTES:
                    continue
                found.append((bm, bn, bk, warps, stages))
    return found


def k_splits(tiles: int, steps: int, multiprocessors: int) -> list[int]:
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


def estimate_us(problem: Problem, geometry: Geometry, config: Config, flat: bool) -> float:
    """A guess of the time in microseconds, for the order in which configurations are tried."""
    bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
    size = weight_of(problem).dtype.itemsize
    tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn) * geometry.groups * split
    resident = max(1, min(3, 8 // config["warps"], _SHARED_BYTES // max(1, (bm + bn) * bk * size * config["stages"])))
    waves = -(-tiles // (problem.multiprocessors * resident))
    steps = -(-k_steps(geometry, bk, flat) // split)
    # A multiprocessor does about 1024 fp16 products a cycle, less with small tiles, and loads about 40 bytes a cycle from L2.
    efficiency = min(1.0, 0.3 + bm * bn / 46000) * (0.7 if bm < 64 else 1.0)
    rate = 1024 * efficiency * (2 / size) * (0.5 if problem.math == "ieee" and size == 4 else 1)
    compute = steps * bm * bn * bk / rate * resident
    traffic = steps * (bm + bn) * bk * size / 40 * resident
    latency = 600 * steps / min(config["stages"], 3) / resident
    cycles = waves * (max(compute, traffic, latency) + 1200) + (1500 + bm * bn * split * 4 / 30 if split > 1 else 0)
    stages_bonus = 1 - 0.01 * config["stages"]
    return cycles * stages_bonus / 1700


TACTICS: tuple[Tactic, ...] = (ConvGemm(),)
