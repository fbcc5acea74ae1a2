"""conv_lines: convolutions of few channels, which would read their input once a tap: loaded once for all taps along the innermost dimension, and for
those along the next one too where a tile has several neighbouring output lines."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import ConvGemm
from .conv_geometry import Geometry, conv_geometry, weight_of
from .moments import combine_launch
from .multiprocessor import REGISTERS, TILE_BYTES
from .spread import spread

#: Accumulators, one a tap, share the registers.
_MAX_TAPS = 5
#: Lines of a band, BM, BN, warps; of two that are guessed alike the first is tried first.
_TILES = (
    (1, 64, 32, 4),
    (1, 64, 64, 4),
    (1, 128, 16, 4),
    (1, 128, 32, 4),
    (1, 128, 64, 8),
    (1, 128, 64, 4),
    (1, 128, 128, 8),
    (1, 256, 16, 8),
    (1, 256, 32, 8),
    (1, 256, 64, 16),
    (1, 256, 64, 8),
    (1, 512, 32, 16),
    (2, 64, 32, 4),
    (2, 64, 64, 4),
    (2, 128, 16, 4),
    (2, 128, 32, 8),
    (2, 128, 64, 8),
    (4, 64, 16, 4),
    (4, 64, 32, 4),
    (4, 128, 32, 8),
)


class ConvLines:
    """An ungrouped convolution, stride 1 along the innermost dimension, with bias, residual and activation in one launch; for
    "conv_moments" another, which combines the moments of its tiles."""

    name = "conv_lines"
    ops: tuple[str, ...] = ("conv", "conv_moments")

    def reject(self, problem: Problem) -> str:
        reason = ConvGemm().reject(problem)
        if reason:
            return reason
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        geometry = conv_geometry(problem)
        if geometry.groups > 1:
            return "takes ungrouped convolutions"
        if not 2 <= geometry.kernel[2] <= _MAX_TAPS:
            return f"takes 2 to {_MAX_TAPS} taps in a row"
        if geometry.stride[2] != 1 or geometry.dilation[2] != 1:
            return "takes stride 1 and dilation 1 in the last dimension"
        if problem.inputs[4] is not None:
            return "takes no scale"
        if geometry.x_strides[1] != 1:
            return "reads channels that lie next to each other"
        if x.dtype != weight.dtype:
            return "takes input and weight of one dtype"
        if weight.dtype.itemsize == 4 and problem.math == "ieee":
            return "computes fp32 in TF32 only"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = conv_geometry(problem)
        size = weight_of(problem).dtype.itemsize
        found = [
            {"band": band, "BM": bm, "BN": bn, "BK": bk, "warps": warps, "stages": stages}
            for band, bm, bn, warps in _TILES
            for bk in (16, 32, 64)
            if _fits(geometry, band, bm, bn, bk, warps, size)
            for stages in (2, 3, 4, 5)
            if stages <= max(2, _steps(geometry, band, bk)) and _stage_bytes(geometry, band, bm, bn, bk, size) * stages <= TILE_BYTES
        ]
        ranked = sorted(found, key=lambda config: _estimate(problem, geometry, config))
        return spread(ranked, ("band", "BM", "BN", "warps"), 8)[: (1, 2, 4, 8, 16, 32)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = conv_geometry(problem)
        band, bm, bn, bk = config["band"], config["BM"], config["BN"], config["BK"]
        specs = [problem.inputs[0], problem.inputs[1], *problem.inputs[2:4], problem.outputs[0]]
        has_bias, has_residual = specs[2] is not None, specs[3] is not None
        moments = problem.op == "conv_moments"
        images = geometry.batch if moments else 1
        tiles = _tiles(geometry, band, bm, images)
        parts = tiles * band
        programs = images * tiles * -(-geometry.output_channels // bn)
        names = ("x0", "packed.weight", "x2" if has_bias else "x0", "x3" if has_residual else "x0", "y0", "scratch.parts" if moments else "x0")
        dtype = problem.outputs[0].dtype
        pointers = (*(dtype if spec is None else spec.dtype for spec in specs), torch.float32 if moments else dtype)
        axes = ("N", "C", "D", "H", "W")
        constants = {
            "BANDS": _bands(geometry, band),
            "LENGTH": _length(geometry),
            "CI": geometry.input_channels,
            "CO": geometry.output_channels,
            **dict(zip(("D", "H", "W"), geometry.spatial, strict=True)),
            **dict(zip(("OD", "OH", "OW"), geometry.out_spatial, strict=True)),
            **dict(zip(("KD", "KH", "KW"), geometry.kernel, strict=True)),
            **dict(zip(("SD", "SH"), geometry.stride[:2], strict=True)),
            **dict(zip(("PD", "PH", "PW"), geometry.padding, strict=True)),
            **dict(zip(("DD", "DH"), geometry.dilation[:2], strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, geometry.x_strides, strict=True)},
            **{f"Y{axis}": stride for axis, stride in zip(axes, geometry.y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, geometry.residual_strides, strict=True)},
            "WK": -(-_k(geometry) // bk) * bk,
            "HAS_BIAS": has_bias,
            "HAS_RESIDUAL": has_residual,
            "MOMENTS": moments,
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "PRECISION": problem.math,
            "BAND": band,
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "FOLD": _fold(bm, config["warps"]),
            "PREFETCH": problem.capability >= 90 and programs <= 2 * problem.multiprocessors,
            "PDL": problem.capability >= 90,
        }
        kernel = Kernel("conv_lines:conv_lines", pointers, tuple(constants.items()), config["warps"], config["stages"])
        launches = [Launch(kernel, (programs, 1, 1), names)]
        scratch: dict[str, TensorSpec] = {}
        counters = 0
        if moments:
            scratch["parts"] = TensorSpec.contiguous((images * parts, 3, geometry.output_channels), torch.float32)
            combine, counters = combine_launch(problem, parts, scratch)
            launches.append(combine)
        return Recipe(tuple(launches), scratch, {"weight": Packed(partial(pack_lines, block=bk), ("x1",))}, counters)


def _fold(bm: int, warps: int) -> int:
    """Rows of a tile that a thread holds of a product's result: Hopper's products give each warp 16 of 64, each thread two of them."""
    return max(1, min(4, bm // (8 * warps)))


def pack_lines(weight: torch.Tensor, block: int) -> torch.Tensor:
    """[CO, CI, *outer, KW] -> [CO, KW, K], K being (*outer, channel) and padded with zeros to a multiple of ``block``."""
    co, ci, kw = weight.shape[0], weight.shape[1], weight.shape[-1]
    rows = weight.reshape(co, ci, -1, kw).permute(0, 3, 2, 1).reshape(co, kw, -1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[2] % block)).contiguous()


def _length(geometry: Geometry) -> int:
    """Positions from one line to the next: the zeros in front of a line are also those behind the line before."""
    return max(geometry.spatial[2] + geometry.padding[2], geometry.out_spatial[2])


def _bands(geometry: Geometry, band: int) -> int:
    """Groups of ``band`` neighbouring output lines, of all images."""
    return geometry.batch * geometry.out_spatial[0] * -(-geometry.out_spatial[1] // band)


def _tiles(geometry: Geometry, band: int, bm: int, images: int) -> int:
    """Tiles of positions of all bands, or of those of an image, with one of ``images``."""
    positions = (_bands(geometry, band) // images - 1) * _length(geometry) + geometry.out_spatial[2]
    return -(-positions // (bm - geometry.kernel[2] + 1))


def _k(geometry: Geometry) -> int:
    return geometry.kernel[0] * geometry.kernel[1] * geometry.input_channels


def _steps(geometry: Geometry, band: int, bk: int) -> int:
    """Blocks of K; with a band of several lines, those of a channel block and all its taps along H."""
    steps = -(-_k(geometry) // bk)
    return steps if band == 1 else steps // geometry.kernel[1]


def _stage_bytes(geometry: Geometry, band: int, bm: int, bn: int, bk: int, size: int) -> int:
    """Shared memory of one block of K."""
    taps = geometry.kernel[1] if band > 1 else 1
    return ((band + taps - 1) * bm + taps * geometry.kernel[2] * bn) * bk * size


def _thread_registers(geometry: Geometry, band: int, bm: int, bn: int, bk: int, warps: int, size: int) -> int:
    """A guess: the accumulators, and the addresses of the 16-byte pieces of a step (with a band of several lines, some follow from others)."""
    threads = warps * 32
    pieces = _stage_bytes(geometry, band, bm, bn, bk, size) // (16 * threads * (1 if band == 1 else 2))
    return band * geometry.kernel[2] * bm * bn // threads + 16 - (-12 * pieces // 5)


def _fits(geometry: Geometry, band: int, bm: int, bn: int, bk: int, warps: int, size: int) -> bool:
    """Whether the kernel takes it, it fits the registers, and the tile is at most one step larger than the problem."""
    if band > 1:
        shares_lines = geometry.kernel[1] > 1 and geometry.stride[1] == 1 and geometry.dilation[1] == 1
        if not shares_lines or geometry.input_channels % bk or geometry.out_spatial[1] < band:
            return False
        # In a loop of one step the input would be loaded in front of the loop, whose copies Triton then leaves without a fence (see fences.py).
        if _steps(geometry, band, bk) < 2:
            return False
    # Each thread copies at least 4 bytes of the weights of a tap: fewer cannot be copied asynchronously.
    if bk * bn * size < 4 * 32 * warps:
        return False
    registers = _thread_registers(geometry, band, bm, bn, bk, warps, size)
    if registers > 250 or registers * warps * 32 > REGISTERS:
        return False
    positions = _bands(geometry, band) * _length(geometry)
    return (bm == 64 or bm < 2 * positions) and (bn <= 32 or bn < 2 * geometry.output_channels) and (bk == 16 or bk < 2 * _k(geometry))


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the time in cycles, for the order in which configurations are tried."""
    band, bm, bn, bk, warps, stages = (config[name] for name in ("band", "BM", "BN", "BK", "warps", "stages"))
    size = weight_of(problem).dtype.itemsize
    steps = _steps(geometry, band, bk)
    by_registers = REGISTERS // (_thread_registers(geometry, band, bm, bn, bk, warps, size) * warps * 32)
    resident = max(1, min(3, by_registers, TILE_BYTES // (_stage_bytes(geometry, band, bm, bn, bk, size) * stages)))
    tiles = _tiles(geometry, band, bm, 1) * -(-geometry.output_channels // bn)
    waves = -(-tiles // (problem.multiprocessors * resident))
    # A multiprocessor does about 1400 fp16 products a cycle (tiles of 64 columns and more) and loads about 32 bytes a cycle from L2, fewer in short
    # pieces; each step has two barriers, and in a band of several lines Triton has each product wait for the one before.
    taps = geometry.kernel[1] if band > 1 else 1
    products = band * taps * geometry.kernel[2] * bm * bn * bk
    compute = resident * steps * products * size / (2 * 1400 * min(1.0, bn / 64))
    loaded = _stage_bytes(geometry, band, bm, min(bn, geometry.output_channels), bk, size)
    traffic = resident * steps * loaded / (32 if bk * size >= 64 else 24)
    latency = 700 * steps / (stages - 1)
    waits = 60 * steps if band == 1 else (60 + 4 * band * taps * geometry.kernel[2]) * steps
    # The end of a tile: its shifts and stores, which another resident tile's products hide.
    end = 1500 + band * bm * bn * geometry.kernel[2] / 24
    return waves * (max(compute, traffic, latency) + waits + end) * (1 + 0.01 * abs(stages - 4))


TACTICS: tuple[Tactic, ...] = (ConvLines(),)
