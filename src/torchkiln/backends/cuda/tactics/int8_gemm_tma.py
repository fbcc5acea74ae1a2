"""int8_gemm_tma: int8 linear layers and 1x1 convolutions on a persistent product that moves tiles with the tensor memory accelerator."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import ALIGNMENT_BYTES, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import pack_weight
from .conv_geometry import conv_geometry
from .epilogue import rows_of
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
from .matrices import Matrices, matrices_of, round_up, rows_reject, tile_count
from .multiprocessor import MEMORY_BYTES, REGISTERS, SHARED_BYTES
from .spread import spread


class Int8GemmTma:
    """A product of an int8 matrix and a constant weight with its whole epilogue, where rows have one stride."""

    name = "int8_gemm_tma"
    ops: tuple[str, ...] = INT8_OPS

    def reject(self, problem: Problem) -> str:
        if problem.capability < 90:
            return "needs TMA (compute capability 9.0)"
        reason = int8_reject(problem)
        if reason:
            return reason
        if problem.op == "int8_conv":
            geometry = conv_geometry(plain_problem(problem))
            if not geometry.is_pointwise or any(stride > 1 for stride in geometry.stride):
                return "convolutions only of 1x1, stride 1, no padding"
        return rows_reject(_rows(problem))

    def configs(self, problem: Problem, level: int) -> list[Config]:
        shape = matrices_of(_rows(problem))
        if level < 5 and -(-shape.rows // 128) * -(-shape.columns // 128) < problem.multiprocessors:
            return []  # a program has a tile at most: to make the descriptors takes longer than they save
        ranked = sorted(_candidates(problem, shape), key=lambda config: _estimate(problem, shape, config))
        return spread(ranked, ("BM", "BN", "flatten"), 24)[: (1, 3, 8, 16, 32, 64)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        shape = matrices_of(_rows(problem))
        names, dtypes = int8_operands(problem)
        tiles = tile_count(shape, config)
        programs = min(tiles, problem.multiprocessors * config["programs"]) if config["programs"] else tiles
        constants = {
            "M": shape.rows,
            "N": shape.columns,
            "K": shape.depth,
            "XS": shape.x_stride,
            "WS": round_up(shape.depth, 1),
            "RS": shape.residual_stride,
            "YS": shape.y_stride,
            "HAS_BIAS": has_bias(problem),
            "RESIDUAL": config["residual"],
            "HAS_RESIDUAL_SCALE": has_residual_scale(problem),
            **int8_constants(problem),
            "BM": config["BM"],
            "BN": config["BN"],
            "BK": config["BK"],
            "GROUP_M": 8,
            "PROGRAMS": programs,
            "FLATTEN": config["flatten"],
            "PDL": problem.capability >= 90,
        }
        kernel = Kernel("int8_gemm_tma:int8_gemm_tma", dtypes, tuple(constants.items()), config["warps"], config["stages"])
        packed = {"weight": Packed(partial(pack_weight, block=ALIGNMENT_BYTES, flat=False), ("x1",))}
        return Recipe((Launch(kernel, (programs, 1, 1), names),), packed=packed, in_place=int8_in_place(problem))


def _rows(problem: Problem) -> list[TensorSpec]:
    """x, the residual where there is one, and y, their channels last."""
    op = plain_problem(problem).op
    return [rows_of(spec, op) for spec in (problem.inputs[0], residual_of(problem), problem.outputs[0]) if spec is not None]


#: BM, BN, warps. A group of four warps multiplies 64 rows at a time.
_TILES = (
    (64, 64, 4),
    (64, 128, 4),
    (64, 256, 4),
    (128, 32, 4),
    (128, 64, 4),
    (128, 128, 4),
    (128, 128, 8),
    (128, 256, 8),
    (256, 64, 8),
    (256, 128, 8),
)
#: What a program takes of the shared memory beside its tiles: the system's KiB, and barriers.
_PROGRAM_BYTES = 1024 + 512
_STAGES = 6


def _candidates(problem: Problem, shape: Matrices) -> list[Config]:
    """What fits: for every tile and number of programs the most stages that the shared memory holds, and one less."""
    found: list[Config] = []
    for bm, bn, warps in _TILES:
        if (bm > 64 and bm >= 2 * shape.rows) or (bn > 32 and bn >= 2 * shape.columns):
            continue
        for bk in (32, 64, 128):
            steps = -(-shape.depth // bk)
            if (bk > 32 and bk >= 2 * shape.depth) or (bk < 64 and steps > 1):
                continue
            for flatten in (True, False):
                for programs in (1, 2, 3, 4) if flatten or steps > 1 else ():
                    for residual in _residuals(shape, bm, bn, warps):
                        base = {"BM": bm, "BN": bn, "BK": bk, "warps": warps, "flatten": flatten, "programs": programs, "residual": residual}
                        found += _staged(base, problem, shape, steps)
    return found


def _residuals(shape: Matrices, bm: int, bn: int, warps: int) -> tuple[str, ...]:
    """How the residual may be fetched: before the products it takes registers of its own."""
    if not shape.has_residual:
        return ("none",)
    return ("late",) if bm * bn // (32 * warps) > 64 else ("late", "early")


def _staged(config: Config, problem: Problem, shape: Matrices, steps: int) -> list[Config]:
    """The configuration with the most stages that fit, and with one less; none when two do not fit."""
    programs = config["programs"]
    a_thread = config["BM"] * config["BN"] // (32 * config["warps"])
    if programs * config["warps"] * 32 * (a_thread + 48) > REGISTERS:
        return []
    residual = residual_of(problem)
    held = config["BM"] * config["BN"] * (problem.outputs[0].dtype.itemsize + (0 if residual is None else residual.dtype.itemsize))
    room = SHARED_BYTES // programs - _PROGRAM_BYTES - held
    most = min(room // ((config["BM"] + config["BN"]) * config["BK"]), _STAGES, _STAGES if config["flatten"] else max(steps, 2))
    return [{**config, "stages": stages} for stages in (most, most - 1) if stages >= 2]


def _estimate(problem: Problem, shape: Matrices, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    bm, bn, resident = config["BM"], config["BN"], config["programs"]
    depth = -(-shape.depth // config["BK"]) * config["BK"]
    waves = -(-tile_count(shape, config) // (problem.multiprocessors * resident))
    # A multiprocessor does 4096 products of 8 bits a cycle, and gets about 56 bytes from L2.
    products = bm * bn * depth / (4096 * min(0.9, 0.45 + bm * bn / 65536))
    feed = (bm + bn) * depth / 56
    integers = problem.outputs[0].dtype is torch.int8
    epilogue = bm * bn * (8 + 5 * integers + 5 * (problem.attributes["activation"] not in ("none", "relu")) + 4 * shape.has_residual) / 128
    main = max(products, feed)
    tile = max(resident * (max(main, epilogue) + 200), main + epilogue + (300 if config["flatten"] else 1000) + 500)
    size = problem.outputs[0].dtype.itemsize
    moved = shape.rows * (shape.depth + shape.columns * size * (1 + shape.has_residual)) + shape.columns * shape.depth
    return max(waves * tile, moved / (MEMORY_BYTES * problem.multiprocessors)) + 0.2 * waves * tile - config["stages"]


TACTICS: tuple[Tactic, ...] = (Int8GemmTma(),)
