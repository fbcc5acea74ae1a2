"""gemm_tma: linear layers and 1x1 convolutions on a persistent matrix product that moves tiles with the tensor memory accelerator."""

from __future__ import annotations

from functools import partial

import torch

from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import pack_weight, residual_in_place
from .conv_geometry import conv_geometry
from .epilogue import rows_of
from .matrices import Matrices, matrices_of, round_up, rows_reject, tile_count
from .spread import spread


class GemmTma:
    """A product of a matrix and a constant weight with bias, residual and activation, where rows have one stride."""

    name = "gemm_tma"
    ops: tuple[str, ...] = ("linear", "conv")

    def reject(self, problem: Problem) -> str:
        if problem.capability < 90:
            return "needs TMA (compute capability 9.0)"
        if not problem.constants[1]:
            return "the weight is computed: it cannot be laid out at build time"
        if problem.op == "conv":
            if problem.attributes["transposed"] or problem.inputs[4] is not None:
                return "transposed convolutions and a scale are not its own"
            geometry = conv_geometry(problem)
            if not geometry.is_pointwise or geometry.groups > 1 or any(stride > 1 for stride in geometry.stride):
                return "convolutions only of 1x1, stride 1, no padding, ungrouped"
        x, weight, y = problem.inputs[0], problem.inputs[1], problem.outputs[0]
        assert x is not None
        assert weight is not None
        if x.dtype != weight.dtype or x.dtype not in (torch.float16, torch.bfloat16):
            return f"multiplies fp16 and bf16, not {x.dtype} by {weight.dtype}"
        if y.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"writes fp16, bf16 and fp32, not {y.dtype}"
        bias = problem.inputs[2]
        if bias is not None and not bias.is_contiguous:
            return "a bias whose elements do not lie next to each other"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return rows_reject(_rows_of(problem))

    def configs(self, problem: Problem, level: int) -> list[Config]:
        shape = matrices_of(_rows_of(problem))
        if level < 5 and -(-shape.rows // 128) * -(-shape.columns // 128) < problem.multiprocessors:
            return []  # a program has a tile at most: to make the descriptors takes longer than they save
        ranked = sorted(_candidates(problem, shape), key=lambda config: _estimate(problem, shape, config))
        return spread(ranked, ("BM", "BN", "loop"), 24)[: (1, 3, 8, 16, 32, 64)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        shape = matrices_of(_rows_of(problem))
        given = [spec is not None for spec in problem.inputs]
        operands = ("x0", "packed.weight", "x2" if given[2] else "x0", "x3" if given[3] else "x0", "y0")
        dtypes = {f"x{i}": spec.dtype for i, spec in enumerate(problem.inputs) if spec is not None}
        dtypes |= {"packed.weight": dtypes["x1"], "y0": problem.outputs[0].dtype}
        tiles = tile_count(shape, config)
        programs = min(tiles, problem.multiprocessors * config["programs"]) if config["programs"] else tiles
        constants = {
            "M": shape.rows,
            "N": shape.columns,
            "K": shape.depth,
            "XS": shape.x_stride,
            "WS": round_up(shape.depth, 2),
            "RS": shape.residual_stride,
            "YS": shape.y_stride,
            "HAS_BIAS": given[2],
            "RESIDUAL": config["residual"],
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "BM": config["BM"],
            "BN": config["BN"],
            "BK": config["BK"],
            "GROUP_M": 8,
            "PROGRAMS": programs,
            "LOOP": config["loop"],
            "STAGES": config["stages"],
            "HALVES": config["halves"],
            "PDL": problem.capability >= 90,
        }
        pointers = tuple(dtypes[name] for name in operands)
        kernel = Kernel("gemm_tma:gemm_tma", pointers, tuple(constants.items()), config["warps"], config["stages"])
        packed = Packed(partial(pack_weight, block=round_up(1, 2), flat=False), ("x1",))
        return Recipe((Launch(kernel, (programs, 1, 1), operands),), packed={"weight": packed}, in_place=residual_in_place(problem))


def _rows_of(problem: Problem) -> list[TensorSpec]:
    """x, the residual where there is one, and y, their channels last."""
    return [rows_of(spec, problem.op) for spec in (problem.inputs[0], problem.inputs[3], problem.outputs[0]) if spec is not None]


#: BM, BN, warps. A group of four warps multiplies 64 rows at a time.
_TILES = (
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
    (256, 32, 8),
    (256, 64, 8),
    (256, 128, 8),
)
#: Shared memory of a multiprocessor, and what a program takes of it beside its tiles: the system's KiB, and barriers.
_SHARED_BYTES = 228 * 1024
_PROGRAM_BYTES = 1024 + 512
#: An unrolled loop has at most so many blocks of K.
_UNROLLED = 4
_STAGES = 6


def _candidates(problem: Problem, shape: Matrices) -> list[Config]:
    """What fits: for every tile, the ways to loop over tiles, each with as many stages as the shared memory of so many programs holds."""
    found: list[Config] = []
    for bm, bn, warps in _TILES:
        if (bm > 64 and bm >= 2 * shape.rows) or (bn > 32 and bn >= 2 * shape.columns):
            continue
        for bk in (16, 32, 64, 128):
            steps = -(-shape.depth // bk)
            if (bk > 16 and bk >= 2 * shape.depth) or (bk < 64 and steps > 1):
                continue
            for loop in ("unrolled", "flat", "nested"):
                if loop == "unrolled" and steps > _UNROLLED:
                    continue
                # With one block of K a nested loop is a flat one.
                several = (1, 2, 3, 4, 6, 8) if steps > 1 or loop != "nested" else ()
                for programs in (0, *several) if loop == "nested" else several:
                    base = {"BM": bm, "BN": bn, "BK": bk, "warps": warps, "loop": loop, "programs": programs}
                    for halves in (False, True) if bn >= 128 else (False,):
                        for residual in _residuals(shape, bm, bn, warps, halves) if shape.has_residual else ("none",):
                            found += _staged({**base, "halves": halves, "residual": residual}, problem, steps)
    return found


def _residuals(shape: Matrices, bm: int, bn: int, warps: int, halves: bool) -> tuple[str, ...]:
    """How the residual may be fetched: before the products it takes registers of its own."""
    a_thread = bm * bn // (32 * warps)
    if a_thread > 64:
        return ("late",)
    return ("late", "early") if halves else ("late", "early", "pointers")


def _staged(config: Config, problem: Problem, steps: int) -> list[Config]:
    """The configuration with the most stages that fit, and with one less; none when two do not fit."""
    programs = config["programs"] or 2
    a_thread = config["BM"] * config["BN"] // (32 * config["warps"])
    if programs * config["warps"] * 32 * (a_thread + 44) > 65536:
        return []
    size = problem.outputs[0].dtype.itemsize
    held = config["BM"] * config["BN"] * size // (2 if config["halves"] else 1)
    stage = (config["BM"] + config["BN"]) * config["BK"] * 2
    has_residual = config["residual"] != "none"
    if config["loop"] == "unrolled":
        stage = stage * steps + (config["BM"] * config["BN"] * size if has_residual else 0)
    elif has_residual and (config["residual"], config["loop"]) != ("late", "nested"):
        held *= 2  # the residual's tile beside the result's
    room = _SHARED_BYTES // programs - _PROGRAM_BYTES - held
    most = min(room // stage, _STAGES, max(steps, 2) if config["loop"] == "nested" else _STAGES)
    return [{**config, "stages": stages} for stages in (most, most - 1) if stages >= 2]


#: Instructions of an element's epilogue, beside the 6 of bias and conversion.
_ACTIVATION_COST = {"none": 0, "relu": 1, "gelu": 12, "gelu_tanh": 9, "silu": 5}


def _estimate(problem: Problem, shape: Matrices, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    bm, bn = config["BM"], config["BN"]
    depth = -(-shape.depth // config["BK"]) * config["BK"]
    resident = config["programs"] or 2
    waves = -(-tile_count(shape, config) // (problem.multiprocessors * resident))
    # A multiprocessor does 2048 products of halves a cycle, and gets about 56 bytes from L2 and 19 from memory.
    products = bm * bn * depth / (2048 * min(0.9, 0.45 + bm * bn / 65536))
    feed = (bm + bn) * depth * 2 / 56
    epilogue = bm * bn * (6 + _ACTIVATION_COST.get(problem.attributes["activation"], 5) + 3 * shape.has_residual) / 128
    latency = {"unrolled": 200, "flat": 300, "nested": 1000}[config["loop"]]
    latency += {"late": 800, "early": 400}.get(config["residual"], 0) if config["loop"] != "unrolled" else 0
    latency += 2000 if not config["programs"] else 0
    main = max(products, feed)
    # A tile costs some 200 cycles of instructions beside, and waits of which other programs fill what they can.
    tile = max(resident * (max(main, epilogue) + 200), main + epilogue + latency + 500)
    size = problem.outputs[0].dtype.itemsize
    moved = shape.rows * (shape.depth * 2 + shape.columns * size * (1 + shape.has_residual)) + shape.columns * shape.depth * 2
    return max(waves * tile, moved / (19 * problem.multiprocessors)) + 0.2 * waves * tile - config["stages"]


TACTICS: tuple[Tactic, ...] = (GemmTma(),)
