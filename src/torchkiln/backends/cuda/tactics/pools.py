"""pools: tactic for max and average pooling in two and three dimensions."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import FLOATS, Config, Kernel, Launch, Problem, Recipe, Tactic
from .reduce import only, power_of_two, refuse, unique, volume


class Pool:
    """A block of neighbouring outputs to a program, so that what windows share is read from memory once."""

    name = "pool"
    ops: tuple[str, ...] = (
        "aten.max_pool2d.default",
        "aten.max_pool3d.default",
        "aten.avg_pool2d.default",
        "aten.avg_pool3d.default",
        "int8_max_pool",
    )

    def reject(self, problem: Problem) -> str:
        return refuse(problem, (torch.int8,) if problem.op == "int8_max_pool" else FLOATS)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, y = only(problem)
        spatial = _spatial(problem)
        (_, channels, *_), x_strides = volume(x, spatial)
        (n, _, od, oh, ow), _ = volume(y, spatial)
        kernel = self._axes(problem)["kernel_size"]
        unroll = kernel[0] * kernel[1] * kernel[2] <= 32
        found = []
        # (rows, columns, channels of a tile; warps), for channels innermost.
        tiles = [(8, 8, 64, 8), (4, 8, 64, 4), (8, 8, 32, 4), (4, 4, 64, 4), (8, 8, 64, 4), (4, 8, 32, 4), (4, 4, 32, 2)]
        tiles += [(2, 4, 64, 2), (2, 4, 32, 1), (8, 16, 32, 8), (4, 16, 64, 8), (8, 16, 64, 8), (2, 2, 64, 1), (1, 4, 32, 1)]
        if x_strides[1] != 1:
            tiles = [(8, 32, 1, 4), (4, 64, 1, 4), (16, 32, 1, 4), (4, 32, 1, 2), (2, 32, 1, 1), (8, 16, 1, 1), (8, 64, 1, 8)]
        for rows, columns, block_c, warps in tiles:
            while warps > 1 and min(rows, power_of_two(oh)) * min(columns, power_of_two(ow)) * min(block_c, power_of_two(channels)) < 128 * warps:
                warps //= 2
            found.append(
                {
                    "rows": min(rows, power_of_two(oh)),
                    "columns": min(columns, power_of_two(ow)),
                    "channels": min(block_c, power_of_two(channels)),
                    "unroll": unroll,
                    "warps": warps,
                }
            )

        def cost(config: Config) -> float:
            """Inputs read per output, tiles over the edge, and programs short of two a multiprocessor."""
            covered = [-(-size // config[name]) * config[name] for size, name in ((oh, "rows"), (ow, "columns"), (channels, "channels"))]
            waste = covered[0] * covered[1] * covered[2] / (oh * ow * channels)
            halo = 1 + 0.5 * (1 / config["rows"] + 1 / config["columns"])
            programs = n * od * covered[0] * covered[1] * covered[2] // (config["rows"] * config["columns"] * config["channels"])
            return waste * halo * max(1.0, 2 * problem.multiprocessors / programs)

        return unique(sorted(found, key=cost), level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, y = only(problem)
        spatial = _spatial(problem)
        (n, c, *inner), x_strides = volume(x, spatial)
        (_, _, *outer), y_strides = volume(y, spatial)
        axes = self._axes(problem)
        maximum = "max" in problem.op
        constants: tuple[tuple[str, Any], ...] = (
            ("C", c),
            *zip("DHW", inner, strict=True),
            *zip(("OD", "OH", "OW"), outer, strict=True),
            *zip(("KD", "KH", "KW"), axes["kernel_size"], strict=True),
            *zip(("SD", "SH", "SW"), axes["stride"], strict=True),
            *zip(("PD", "PH", "PW"), axes["padding"], strict=True),
            *zip(("DD", "DH", "DW"), axes["dilation"], strict=True),
            *zip(("XN", "XC", "XD", "XH", "XW"), x_strides, strict=True),
            *zip(("YN", "YC", "YD", "YH", "YW"), y_strides, strict=True),
            ("MAX", maximum),
            ("COUNT_PADDING", not maximum and bool(problem.attributes["count_include_pad"])),
            ("DIVISOR", 0 if maximum else int(problem.attributes["divisor_override"] or 0)),
            ("UNROLL", config["unroll"]),
            ("BLOCK_H", config["rows"]),
            ("BLOCK_W", config["columns"]),
            ("BLOCK_C", config["channels"]),
            ("PDL", problem.capability >= 90),
        )
        kernel = Kernel("pools:pool", (x.dtype, y.dtype), constants, num_warps=config["warps"])
        positions = n * outer[0] * -(-outer[1] // config["rows"]) * -(-outer[2] // config["columns"])
        return Recipe((Launch(kernel, (positions, -(-c // config["channels"]), 1), ("x0", "y0")),))

    @staticmethod
    def _axes(problem: Problem) -> dict[str, list[int]]:
        """Kernel size, stride, padding and dilation for depth, height and width."""
        spatial = _spatial(problem)
        found: dict[str, list[int]] = {}
        for name, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value: Any = problem.attributes.get(name, neutral)
            values = [value] if isinstance(value, int) else list(value)
            if not values:  # a stride that was left out
                found[name] = found["kernel_size"]
                continue
            values = values * spatial if len(values) == 1 else values
            found[name] = [neutral] * (3 - spatial) + values
        return found


def _spatial(problem: Problem) -> int:
    return len(problem.outputs[0].shape) - 2 if problem.op == "int8_max_pool" else 2 if "2d" in problem.op else 3


TACTICS: tuple[Tactic, ...] = (Pool(),)
