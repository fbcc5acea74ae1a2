"""int8_conv: int8 convolutions and matrix products on an implicit GEMM of their own, with the whole epilogue."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import TILES, estimate_us, is_flat, k_splits, k_steps, pack_weight
from .conv_geometry import Geometry, conv_geometry, leading_dims, linear_geometry, merge_positions
from .int8_problem import (
    INT8_OPS,
    has_bias,
    has_residual_scale,
    int8_constants,
    int8_in_place,
    int8_operands,
    int8_reject,
    plain_problem,
    residual_of,
)
from .multiprocessor import TILE_BYTES
from .spread import spread

#: What tiles may take of the shared memory of GPUs that have less than Hopper.
_TILE_BYTES = {80: 160 << 10, 86: 96 << 10, 87: 160 << 10, 89: 96 << 10, 120: 96 << 10, 121: 96 << 10}


class Int8Conv:
    """An ungrouped convolution or a product, of any strides, in one launch; split over K where rows are few."""

    name = "int8_conv"
    ops: tuple[str, ...] = INT8_OPS

    def reject(self, problem: Problem) -> str:
        reason = int8_reject(problem)
        if reason or problem.op != "int8_linear":
            return reason
        specs = [spec for spec in (problem.inputs[0], residual_of(problem), problem.outputs[0]) if spec is not None]
        return "rows in more than four dimensions that no common stride walks" if len(leading_dims(specs)[0]) > 4 else ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = _geometry(problem)
        found: list[Config] = []
        for bm, bn, bk, warps, stages in _tile_shapes(problem, geometry):
            tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn)
            for split in k_splits(tiles, k_steps(geometry, bk, is_flat(geometry)), problem.multiprocessors):
                config: Config = {"BM": bm, "BN": bn, "BK": bk, "warps": warps, "stages": stages, "split": split, "early": False}
                found.append(config)
                if residual_of(problem) is not None and split == 1 and bm * bn <= 128 * 128:
                    found.append({**config, "early": True})
        plain = plain_problem(problem)
        ranked = sorted(found, key=lambda config: estimate_us(plain, geometry, config, is_flat(geometry)))
        return spread(ranked, ("BM", "BN"), 16)[: (1, 4, 10, 20, 40, 80)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry, flat = _geometry(problem), is_flat(_geometry(problem))
        bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
        tiles = -(-geometry.rows // bm) * -(-geometry.output_channels // bn)
        scratch = {"partial": TensorSpec.contiguous((tiles * split * bm * bn,), torch.int32)} if split > 1 else {}
        names, dtypes = int8_operands(problem)
        names += ("scratch.partial", "counters") if split > 1 else ("x0", "x0")
        dtypes += (torch.int32, torch.int32) if split > 1 else (torch.int8, torch.int8)
        axes = ("N", "C", "D", "H", "W")
        constants = {
            "M": geometry.rows,
            "CI": geometry.input_channels,
            "CO": geometry.output_channels,
            **dict(zip(("D", "H", "W"), geometry.spatial, strict=True)),
            **dict(zip(("OD", "OH", "OW"), geometry.out_spatial, strict=True)),
            **dict(zip(("KD", "KH", "KW"), geometry.kernel, strict=True)),
            **dict(zip(("SD", "SH", "SW"), geometry.stride, strict=True)),
            **dict(zip(("PD", "PH", "PW"), geometry.padding, strict=True)),
            **dict(zip(("DD", "DH", "DW"), geometry.dilation, strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, geometry.x_strides, strict=True)},
            **{f"Y{axis}": stride for axis, stride in zip(axes, geometry.y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, geometry.residual_strides, strict=True)},
            "WK": k_steps(geometry, bk, flat) * bk,
            "HAS_BIAS": has_bias(problem),
            "HAS_RESIDUAL": residual_of(problem) is not None,
            "HAS_RESIDUAL_SCALE": has_residual_scale(problem),
            "POINTWISE": geometry.is_pointwise,
            "FLAT": flat,
            **int8_constants(problem),
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "GROUP_M": 8,
            "SPLIT": split,
            "EARLY": config["early"],
            "PREFETCH": problem.capability >= 90 and tiles * split <= 2 * problem.multiprocessors,
            "PDL": problem.capability >= 90,
        }
        kernel = Kernel("int8_conv:int8_conv", dtypes, tuple(constants.items()), config["warps"], config["stages"])
        packed = {"weight": Packed(partial(pack_weight, block=bk, flat=flat), ("x1",))}
        return Recipe((Launch(kernel, (tiles, 1, split), names),), scratch, packed, tiles if split > 1 else 0, int8_in_place(problem))


def _geometry(problem: Problem) -> Geometry:
    plain = plain_problem(problem)
    return linear_geometry(plain) if plain.op == "linear" else merge_positions(conv_geometry(plain), keep_batch=False)


def _tile_shapes(problem: Problem, geometry: Geometry) -> list[tuple[int, int, int, int, int]]:
    """(BM, BN, BK, warps, stages) that suit the sizes: a tile at most one step larger than the problem. An instruction multiplies 32 of K."""
    flat = is_flat(geometry)
    depth = geometry.input_channels * (geometry.taps if flat else 1)
    room = _TILE_BYTES.get(problem.capability, TILE_BYTES)
    found = []
    for bm, bn, warps in TILES:
        if bn & (bn - 1) or (bm > 16 and bm >= 2 * geometry.rows) or (bn > 16 and bn >= 2 * geometry.output_channels):
            continue
        for bk in (32, 64, 128, 256):
            if (bk > 32 and bk >= 2 * depth) or (bk == 32 and depth > 32 and not flat):
                continue
            for stages in (2, 3, 4, 5):
                if stages <= max(2, k_steps(geometry, bk, flat)) and (bm + bn) * bk * stages <= room:
                    found.append((bm, bn, bk, warps, stages))
    return found


TACTICS: tuple[Tactic, ...] = (Int8Conv(),)
