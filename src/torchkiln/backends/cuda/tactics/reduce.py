"""reduce: tactics for sums, means, maxima and adaptive average pooling; and how dimensions are collapsed for kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..recipe import FLOATS, Config, Kernel, Launch, Problem, Recipe, Tactic, TensorSpec

MAX_DIMS = 5


@dataclass(frozen=True)
class Dims:
    """Some dimensions that several tensors share, adjacent ones merged where all strides allow it.

    Attributes:
        sizes: none of them 1, outermost first.
        strides: for each tensor, as many.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def numel(self) -> int:
        count = 1
        for size in self.sizes:
            count *= size
        return count

    def constants(self, sizes: str, *strides: str) -> tuple[tuple[str, int], ...]:
        """The arguments of ``kernels.reduce.strided``: D1 to D4 for ``sizes`` "D", S0 to S4 for each name of ``strides``."""
        padding = MAX_DIMS - len(self.sizes)
        found = [(f"{sizes}{i}", size) for i, size in enumerate((*self.sizes, *[1] * padding)) if i]
        for name, steps in zip(strides, self.strides, strict=True):
            found += [(f"{name}{i}", step) for i, step in enumerate((*steps, *[0] * padding))]
        return tuple(found)

    def contiguous(self, tensor: int) -> bool:
        """Whether the innermost dimension of that tensor has neighbours in memory."""
        return bool(self.sizes) and self.strides[tensor][-1] == 1


def collapse(sizes: Sequence[int], *strides: Sequence[int], reorder: bool = True) -> Dims:
    """Merge dimensions; with ``reorder`` after sorting them by the first tensor's strides, where their order does not matter."""
    dims = [(size, tuple(s)) for size, *s in zip(sizes, *strides, strict=True) if size != 1]
    if reorder:
        dims.sort(key=lambda dim: -dim[1][0] if dim[1][0] else float("-inf"))
    merged: list[tuple[int, tuple[int, ...]]] = []
    for size, steps in dims:
        if merged and all(outer == step * size for outer, step in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    return Dims(tuple(size for size, _ in merged), tuple(tuple(steps[i] for _, steps in merged) for i in range(len(strides))))


def refuse(problem: Problem, dtypes: Sequence[torch.dtype] = FLOATS) -> str:
    """What no kernel here can do, on tensors of ``dtypes``."""
    for spec in (*problem.inputs, *problem.outputs):
        if spec is None:
            continue
        if spec.dtype not in dtypes:
            return f"dtype {spec.dtype}"
        if spec.numel == 0:
            return "an empty tensor"
        if spec.span >= 2**31:
            return "a tensor of 2**31 elements or more"
    return ""


def only(problem: Problem) -> tuple[TensorSpec, TensorSpec]:
    """The first input, which is never left out, and the first output."""
    x = problem.inputs[0]
    assert x is not None
    return x, problem.outputs[0]


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def unique(configs: list[Config], level: int) -> list[Config]:
    """Without repetitions; only the first at level 0, up to four more for each further level."""
    kept: list[Config] = []
    for config in configs:
        if config not in kept:
            kept.append(config)
    return kept[: 1 + 4 * level]


def reduced(problem: Problem) -> tuple[list[int], bool]:
    """The dimensions a problem reduces, and whether they stay in the output with size 1."""
    x, _ = only(problem)
    rank = len(x.shape)
    if "adaptive" in problem.op:
        spatial = 2 if "2d" in problem.op else 3
        return list(range(rank - spatial, rank)), True
    dim: Any = problem.attributes.get("dim")
    dim = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return sorted({d % max(rank, 1) for d in dim} if dim else range(rank)), bool(problem.attributes.get("keepdim", False))


def rows_and_columns(problem: Problem) -> tuple[Dims, Dims]:
    """Kept dimensions (strides of x and y) and reduced ones (strides of x)."""
    x, y = only(problem)
    dims, keepdim = reduced(problem)
    kept = [d for d in range(len(x.shape)) if d not in dims]
    y_strides = [y.strides[d] for d in kept] if keepdim else list(y.strides)
    rows = collapse([x.shape[d] for d in kept], [x.strides[d] for d in kept], y_strides)
    return rows, collapse([x.shape[d] for d in dims], [x.strides[d] for d in dims])


class Reduce:
    """One program for each block of outputs; where that leaves too few or too long programs, partial results in float32 and a second pass."""

    name = "reduce"
    ops: tuple[str, ...] = (
        "aten.mean.dim",
        "aten.sum.dim_IntList",
        "aten.amax.default",
        "aten.adaptive_avg_pool2d.default",
        "aten._adaptive_avg_pool2d.default",
        "aten.adaptive_avg_pool3d.default",
        "aten._adaptive_avg_pool3d.default",
    )

    def reject(self, problem: Problem) -> str:
        if reason := refuse(problem):
            return reason
        _, y = only(problem)
        if "adaptive" in problem.op and any(y.shape[d] != 1 for d in reduced(problem)[0]):
            return "an adaptive pool to more than one position"
        if any(len(dims.sizes) > MAX_DIMS for dims in rows_and_columns(problem)):
            return f"more than {MAX_DIMS} separate dimensions"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, _ = only(problem)
        rows, cols = rows_and_columns(problem)
        vector = 16 // x.dtype.itemsize
        found = []
        for across in (64, 32, 128, 16, 256) if rows.contiguous(0) else (1, 2, 4, 8, 16):
            # Threads lie along the rows of x where those are contiguous, along what is reduced otherwise.
            block_rows = min(power_of_two(rows.numel), across)
            for elements, warps in ((2048, 4), (4096, 4), (1024, 2), (1024, 4), (512, 1), (4096, 8), (8192, 8)):
                block_cols = max(min(power_of_two(cols.numel), elements // block_rows), 1)
                programs = -(-rows.numel // block_rows)
                tiles = -(-cols.numel // block_cols)
                for splits in sorted({self._splits(programs, tiles, problem.multiprocessors), 1}, reverse=True):
                    if block_rows * block_cols >= 32 * warps or warps == 1:
                        found.append({"rows": block_rows, "cols": block_cols, "splits": splits, "warps": warps})

        def cost(config: Config) -> float:
            """Too few programs for the machine, loads narrower than 32 bytes, too much for one program to walk, another launch."""
            programs = -(-rows.numel // config["rows"]) * config["splits"]
            walked = -(-cols.numel // config["cols"]) / config["splits"]
            filled = min(1.0, programs * config["warps"] / (4 * problem.multiprocessors))
            narrow = rows.contiguous(0) and config["rows"] < min(2 * vector, rows.numel)
            idle = config["rows"] * config["cols"] / max(min(rows.numel, config["rows"]) * min(cols.numel, config["cols"]), 1)
            each = config["rows"] * config["cols"] / (32 * config["warps"]) / vector
            return walked * max(each, 1) * idle + 4 / filled + 4 * narrow + 4 * (config["splits"] > 1)

        if not found:
            found = [{"rows": 1, "cols": 32, "splits": 1, "warps": 1}]
        return unique(sorted(found, key=cost), level)

    @staticmethod
    def _splits(programs: int, tiles: int, multiprocessors: int) -> int:
        """Programs along the reduced dimensions: about eight blocks a multiprocessor, two tiles or more each."""
        return max(1, min(8 * multiprocessors // max(programs, 1), tiles // 2, 1024))

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        rows, cols = rows_and_columns(problem)
        x, y = only(problem)
        operation = "max" if "amax" in problem.op else "sum"
        scale = 1.0 / cols.numel if "mean" in problem.op or "adaptive" in problem.op else 1.0
        tiles = -(-cols.numel // config["cols"])
        split = -(-tiles // config["splits"]) * config["cols"]
        splits = -(-cols.numel // split)
        pdl = problem.capability >= 90
        if splits == 1:
            kernel = reduce_kernel(x.dtype, y.dtype, rows, cols, split, 0, scale, operation, config, pdl)
            return Recipe((Launch(kernel, (-(-rows.numel // config["rows"]), 1, 1), ("x0", "y0")),))
        # The partial results lie as [splits, rows], rows in the order of ``rows``.
        flat = TensorSpec.contiguous(rows.sizes, torch.float32).strides
        partial = Dims(rows.sizes, (rows.strides[0], flat))
        first = reduce_kernel(x.dtype, torch.float32, partial, cols, split, rows.numel, 1.0, operation, config, pdl)
        final_rows = Dims(rows.sizes, (flat, rows.strides[1]))
        final = {"rows": min(power_of_two(rows.numel), 32), "cols": min(power_of_two(splits), 32 if rows.numel > 4 else 1024), "warps": 4}
        down = -(-splits // final["cols"]) * final["cols"]
        merge = collapse([splits], [rows.numel])
        second = reduce_kernel(torch.float32, y.dtype, final_rows, merge, down, 0, scale, operation, final, pdl)
        return Recipe(
            (
                Launch(first, (-(-rows.numel // config["rows"]), splits, 1), ("x0", "scratch.partial")),
                Launch(second, (-(-rows.numel // final["rows"]), 1, 1), ("scratch.partial", "y0")),
            ),
            scratch={"partial": TensorSpec.contiguous((splits, rows.numel), torch.float32)},
        )


def reduce_kernel(
    source: torch.dtype,
    target: torch.dtype,
    rows: Dims,
    cols: Dims,
    split: int,
    y_split: int,
    scale: float,
    operation: str,
    config: Config,
    pdl: bool,
) -> Kernel:
    """``kernels.reduce.reduce``; the columns of one program are ``split``."""
    constants = (
        ("ROWS", rows.numel),
        ("COLS", cols.numel),
        ("SPLIT", split),
        ("Y_SPLIT", y_split),
        ("SCALE", scale),
        ("OPERATION", operation),
        *rows.constants("R", "XR", "YR"),
        *cols.constants("C", "XC"),
        ("BLOCK_ROWS", config["rows"]),
        ("BLOCK_COLS", config["cols"]),
        ("PDL", pdl),
    )
    return Kernel("reduce:reduce", (source, target), constants, num_warps=config["warps"])


def volume(spec: TensorSpec, spatial: int) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int, int, int]]:
    """Sizes and strides as [N, C, D, H, W] of a tensor with ``spatial`` dimensions, batched or not."""
    sizes, strides = list(spec.shape), list(spec.strides)
    if len(sizes) == spatial + 1:
        sizes, strides = [1, *sizes], [0, *strides]
    missing = 3 - spatial
    padded_sizes = (*sizes[:2], *[1] * missing, *sizes[2:])
    padded_strides = (*strides[:2], *[0] * missing, *strides[2:])
    return padded_sizes, padded_strides  # type: ignore[return-value]


class AdaptiveAveragePool:
    """Adaptive average pooling to any size: one pass over each window."""

    name = "adaptive_avg_pool"
    ops: tuple[str, ...] = tuple(op for op in Reduce.ops if "adaptive" in op)

    def reject(self, problem: Problem) -> str:
        return refuse(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, y = only(problem)
        (_, channels, *_), strides = volume(x, 2 if "2d" in problem.op else 3)
        widest = power_of_two(channels)
        positions = max(y.numel // channels, 1)
        found = []
        for block_c, block_p in ((64, 4), (64, 1), (32, 4), (32, 1), (128, 4), (64, 16), (128, 1)):
            if strides[1] != 1:
                block_c, block_p = block_p, block_c
            block_p, block_c = min(block_p, power_of_two(positions)), min(block_c, widest)
            found.append({"positions": block_p, "channels": block_c, "warps": max(1, min(block_p * block_c // 256, 4))})
        return unique(found, level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, y = only(problem)
        spatial = 2 if "2d" in problem.op else 3
        (n, c, *inner), x_strides = volume(x, spatial)
        (_, _, *outer), y_strides = volume(y, spatial)
        windows = [max(-(-(o + 1) * size // out) - o * size // out for o in range(out)) for size, out in zip(inner, outer, strict=True)]
        constants = (
            ("N", n),
            ("C", c),
            *zip("DHW", inner, strict=True),
            *zip(("OD", "OH", "OW"), outer, strict=True),
            *zip(("KD", "KH", "KW"), windows, strict=True),
            *zip(("XN", "XC", "XD", "XH", "XW"), x_strides, strict=True),
            *zip(("YN", "YC", "YD", "YH", "YW"), y_strides, strict=True),
            ("BLOCK_P", config["positions"]),
            ("BLOCK_C", config["channels"]),
            ("PDL", problem.capability >= 90),
        )
        kernel = Kernel("reduce:adaptive_avg_pool", (x.dtype, y.dtype), constants, num_warps=config["warps"])
        positions = n * outer[0] * outer[1] * outer[2]
        return Recipe((Launch(kernel, (-(-positions // config["positions"]), -(-c // config["channels"]), 1), ("x0", "y0")),))


TACTICS: tuple[Tactic, ...] = (Reduce(), AdaptiveAveragePool())
