"""softmax: tactic for a softmax over any dimension whose rows fit on chip."""

from __future__ import annotations

from ..recipe import Config, Kernel, Launch, Problem, Recipe, Tactic
from .reduce import MAX_DIMS, Dims, collapse, only, power_of_two, refuse, unique

LONGEST_ROW = 32768


def row_dims(problem: Problem, dims: list[int]) -> Dims:
    """The dimensions besides ``dims``, with the strides of x and y."""
    x, y = only(problem)
    others = [d for d in range(len(x.shape)) if d not in dims]
    return collapse([x.shape[d] for d in others], [x.strides[d] for d in others], [y.strides[d] for d in others])


def row_configs(rows: int, cols: int, itemsize: int, col_stride: int, multiprocessors: int, level: int) -> list[Config]:
    """Tilings of a kernel that holds whole rows: rows in a program and its warps.

    Where columns are strided, threads lie across rows: then a program has rows for 32 bytes or more.
    """
    width = power_of_two(cols)
    least = min(32 // itemsize, power_of_two(rows)) if col_stride != 1 else 1
    found = []
    # 16 elements a thread: one or two vector loads of float16. Fewer warps for a row mean less to exchange between them.
    for elements in (16, 32, 8, 64):
        for first in (4, 2, 8, 1, 16):
            warps = first
            while warps < 32 and 32 * warps * elements < width:
                warps *= 2  # a long row
            block_rows = max(32 * warps * elements // width, least)
            while block_rows > least and -(-rows // block_rows) < 2 * multiprocessors:
                block_rows //= 2
            if block_rows * width > 32 * warps * 64:
                continue  # it would not stay in registers
            while warps > 1 and block_rows * width < 32 * warps * min(elements, 8):
                warps //= 2
            found.append({"rows": block_rows, "warps": warps})
    if not found:
        found.append({"rows": 1, "warps": 32})
    return unique(found, level)


class Softmax:
    """Several short rows or one long row to a program, read once."""

    name = "softmax"
    ops: tuple[str, ...] = ("softmax",)

    def reject(self, problem: Problem) -> str:
        if reason := refuse(problem):
            return reason
        x, _ = only(problem)
        if not x.shape:
            return "a scalar"
        if x.shape[problem.attributes["dim"]] > LONGEST_ROW:
            return f"rows of more than {LONGEST_ROW} elements"
        if len(row_dims(problem, [problem.attributes["dim"] % len(x.shape)]).sizes) > MAX_DIMS:
            return f"more than {MAX_DIMS} separate dimensions"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, _ = only(problem)
        dim = problem.attributes["dim"] % len(x.shape)
        return row_configs(row_dims(problem, [dim]).numel, x.shape[dim], x.dtype.itemsize, x.strides[dim], problem.multiprocessors, level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, y = only(problem)
        dim = problem.attributes["dim"] % len(x.shape)
        rows = row_dims(problem, [dim])
        constants = (
            ("ROWS", rows.numel),
            ("COLS", x.shape[dim]),
            ("X_COL", x.strides[dim]),
            ("Y_COL", y.strides[dim]),
            *rows.constants("R", "XR", "YR"),
            ("BLOCK_ROWS", config["rows"]),
            ("BLOCK_COLS", power_of_two(x.shape[dim])),
            ("PDL", problem.capability >= 90),
        )
        kernel = Kernel("softmax:softmax", (x.dtype, y.dtype), constants, num_warps=config["warps"])
        return Recipe((Launch(kernel, (-(-rows.numel // config["rows"]), 1, 1), ("x0", "y0")),))


TACTICS: tuple[Tactic, ...] = (Softmax(),)
