"""upsample: tactic for nearest and linear resampling in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import torch

from ..recipe import Config, Kernel, Launch, Problem, Recipe, Tactic
from .reduce import only, power_of_two, refuse, unique, volume
from .spread import spread

_NEAREST = tuple(f"aten.{name}{rank}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3))
_LINEAR = ("aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_trilinear3d")

#: (whether a run of columns and channels, columns, channels, warps)
_TILES = (
    *((True, columns, 1, warps) for columns, warps in ((512, 2), (1024, 4), (256, 1), (2048, 8), (512, 4))),
    *((False, columns, 1, warps) for columns, warps in ((512, 4), (256, 2), (1024, 4), (128, 1), (512, 2))),
    *((False, 1024 // channels, channels, 4) for channels in (64, 32, 128, 16, 256)),
    *((False, 512 // channels, channels, 2) for channels in (64, 32)),
    (False, 128, 8, 4),
    (False, 16, 64, 8),
)


class Upsample:
    """One pass over the output; what neighbouring output rows read of the input is kept in registers. Any strides, and any float dtype written."""

    name = "upsample"
    ops: tuple[str, ...] = tuple(f"{name}.{overload}" for name in (*_NEAREST, *_LINEAR) for overload in ("vec", "default"))

    def reject(self, problem: Problem) -> str:
        return refuse(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, y = only(problem)
        spatial = _spatial(problem)
        (_, channels, _, height, _), x_strides = volume(x, spatial)
        (n, _, od, oh, ow), y_strides = volume(y, spatial)
        is_run = y_strides[1] == 1 and (y_strides[4] == channels or ow == 1)
        is_across = y_strides[1] == 1 or x_strides[1] == 1
        # Rows of neighbouring channels are whole vectors.
        is_even = channels % (16 // x.dtype.itemsize) == 0
        found: list[Config] = []
        for flat, columns, block_c, warps in _TILES:
            if (flat and not is_run) or (block_c > 1 and not is_across) or (block_c == 1 and not flat and y_strides[1] == 1 and channels > 1):
                continue
            columns = min(columns, power_of_two(channels * ow if flat else ow))
            block_c = min(block_c, power_of_two(channels))
            while warps > 1 and columns * block_c < 64 * warps:
                warps //= 2
            for rows in (8, 16, 4, 2, 1, 32):
                found.append({"flat": flat, "rows": min(rows, power_of_two(oh)), "columns": columns, "channels": block_c, "warps": warps})
        share = oh / height

        def cost(config: Config) -> float:
            """What is computed beyond the output's edge, rows of the input that are read again, reads of one element, warps short of 16 a
            multiprocessor, and threads of more or less than a vector."""
            wide, high = (channels * ow, 1) if config["flat"] else (ow, channels)
            blocks = -(-wide // config["columns"]) * -(-high // config["channels"])
            waste = blocks * config["columns"] * config["channels"] / (wide * high)
            programs = blocks * -(-oh // config["rows"]) * n * od
            # An output row takes two rows of the input, of which those above have read what they share.
            read = min(2.0, 1 / share + 2 / config["rows"])
            each = 1 if config["channels"] > 1 and is_even else 3
            idle = max(1.0, 16 * problem.multiprocessors / (programs * config["warps"]))
            # Eight elements to a thread are whole vectors, and few registers.
            uneven = abs(log2(config["columns"] * config["channels"] / config["warps"] / 256))
            return waste * (2 + read * each) * idle * (1 + 0.15 * uneven)

        ranked = unique(sorted(found, key=cost), len(found))
        return unique(spread(ranked, ("flat", "channels"), 4), level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, y = only(problem)
        spatial = _spatial(problem)
        (n, channels, *inner), x_strides = volume(x, spatial)
        (_, _, *outer), y_strides = volume(y, spatial)
        modes = _modes(problem, inner, outer)
        scales = _scales(problem, inner, outer)
        # One position, or the position itself, needs no neighbour.
        two = [mode in ("centres", "corners") and size > 1 for mode, size in zip(modes, inner, strict=True)]
        constants: tuple[tuple[str, Any], ...] = (
            ("C", channels),
            *zip("DHW", inner, strict=True),
            *zip(("OD", "OH", "OW"), outer, strict=True),
            *zip(("SCALE_D", "SCALE_H", "SCALE_W"), scales, strict=True),
            *zip(("MODE_D", "MODE_H", "MODE_W"), modes, strict=True),
            *zip(("TWO_D", "TWO_H", "TWO_W"), two, strict=True),
            *zip(("XN", "XC", "XD", "XH", "XW"), x_strides, strict=True),
            *zip(("YN", "YC", "YD", "YH", "YW"), y_strides, strict=True),
            ("FLAT", config["flat"]),
            ("ROWS", config["rows"]),
            ("BLOCK_W", config["columns"]),
            ("BLOCK_C", config["channels"]),
            ("PDL", problem.capability >= 90),
        )
        kernel = Kernel("upsample:upsample", (x.dtype, y.dtype), constants, num_warps=config["warps"])
        width = outer[2] * channels if config["flat"] else outer[2]
        programs = n * outer[0] * -(-outer[1] // config["rows"]) * -(-width // config["columns"])
        groups = 1 if config["flat"] else -(-channels // config["channels"])
        return Recipe((Launch(kernel, (programs, groups, 1), ("x0", "y0")),))


def _spatial(problem: Problem) -> int:
    return int(problem.op.partition(".")[2].partition(".")[0][-2])


def _modes(problem: Problem, inner: Sequence[int], outer: Sequence[int]) -> list[str]:
    """For depth, height and width, the ``MODE`` of ``kernels.upsample``, as aten's CUDA kernels have it: linear ones copy where no size changes, and
    nearest ones in two dimensions along each axis whose size does not, whatever factor is given."""
    spatial = _spatial(problem)
    is_linear = problem.op.startswith(_LINEAR)
    if is_linear:
        mode = "corners" if problem.attributes["align_corners"] else "centres"
    else:
        mode = "exact" if "exact" in problem.op else "nearest"
    same = [axis < 3 - spatial or (not is_linear and spatial == 2 and inner[axis] == outer[axis]) for axis in range(3)]
    if is_linear and list(inner) == list(outer):
        same = [True] * 3
    return ["same" if is_same else mode for is_same in same]


def _scales(problem: Problem, inner: Sequence[int], outer: Sequence[int]) -> list[float]:
    """For depth, height and width, input positions to an output position, rounded to float32 as aten's area_pixel_compute_scale does."""
    given = _given_scales(problem)
    found = []
    for before, after, scale in zip(inner, outer, given, strict=True):
        if problem.attributes.get("align_corners"):
            ratio = _divide(before - 1, after - 1) if after > 1 else 0.0
        elif scale is not None and scale > 0:
            ratio = torch.tensor(1.0 / scale, dtype=torch.float64).float().item()
        else:
            ratio = _divide(before, after)
        found.append(ratio)
    return found


def _given_scales(problem: Problem) -> list[float | None]:
    """The factors that the caller gave, for depth, height and width."""
    spatial = _spatial(problem)
    attributes = problem.attributes
    if problem.op.endswith(".vec"):
        given: list[float | None] = list(attributes.get("scale_factors") or [None] * spatial)
    else:
        given = [attributes.get(name) for name in (("scales",) if spatial == 1 else ("scales_d", "scales_h", "scales_w")[3 - spatial :])]
    return [None] * (3 - spatial) + given


def _divide(a: int, b: int) -> float:
    """a / b in float32."""
    return (torch.tensor(float(a), dtype=torch.float32) / torch.tensor(float(b), dtype=torch.float32)).item()


TACTICS: tuple[Tactic, ...] = (Upsample(),)
