"""norms: tactics for layer_norm and group_norm (with groups == C the instance norm)."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import FLOATS, Config, Kernel, Launch, Problem, Recipe, Tactic, TensorSpec
from .reduce import MAX_DIMS, Dims, collapse, only, power_of_two, refuse, unique
from .softmax import LONGEST_ROW, row_configs, row_dims


def _vectors(problem: Problem, *positions: int) -> str:
    """Refuses weights and biases that do not lie densely."""
    found = [problem.inputs[i] for i in positions]
    return "" if all(spec is None or spec.is_contiguous for spec in found) else "a weight or bias that is not contiguous"


class LayerNorm:
    """Several short rows or one long row to a program, read once."""

    name = "layer_norm"
    ops: tuple[str, ...] = ("layer_norm", "int8_layer_norm", "int8_layer_norm_both")

    def reject(self, problem: Problem) -> str:
        dtypes = FLOATS if problem.op == "layer_norm" else (*FLOATS, torch.int8)
        if reason := refuse(problem, dtypes) or _vectors(problem, 1, 2):
            return reason
        if len({spec.strides for spec in problem.outputs}) > 1:
            return "two results that do not lie alike"
        rows, cols = self._dims(problem)
        if len(cols.sizes) > 1:
            return "normalized dimensions that do not lie evenly, row-major"
        if cols.numel > LONGEST_ROW:
            return f"rows of more than {LONGEST_ROW} elements"
        return f"more than {MAX_DIMS} separate dimensions" if len(rows.sizes) > MAX_DIMS else ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, _ = only(problem)
        rows, cols = self._dims(problem)
        stride = cols.strides[0][0] if cols.sizes else 1
        return row_configs(rows.numel, cols.numel, x.dtype.itemsize, stride, problem.multiprocessors, level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        rows, cols = self._dims(problem)
        weight, bias = problem.inputs[1:3]
        constants = (
            ("ROWS", rows.numel),
            ("COLS", cols.numel),
            ("EPS", float(problem.attributes["eps"])),
            ("HAS_WEIGHT", weight is not None),
            ("HAS_BIAS", bias is not None),
            ("HAS_WIDE", len(problem.outputs) > 1),
            ("LOW", problem.attributes.get("low", 0)),
            ("HIGH", problem.attributes.get("high", 0)),
            ("X_COL", cols.strides[0][0] if cols.sizes else 1),
            ("Y_COL", cols.strides[1][0] if cols.sizes else 1),
            *rows.constants("R", "XR", "YR"),
            ("BLOCK_ROWS", config["rows"]),
            ("BLOCK_COLS", power_of_two(cols.numel)),
            ("PDL", problem.capability >= 90),
        )
        inverse = "x0" if problem.op == "layer_norm" else "x3"
        operands, types = _present(problem, "x0", "x1", "x2", inverse, "y0", "y1" if len(problem.outputs) > 1 else "y0")
        kernel = Kernel("norms:layer_norm", types, constants, num_warps=config["warps"])
        return Recipe((Launch(kernel, (-(-rows.numel // config["rows"]), 1, 1), operands),))

    @staticmethod
    def _dims(problem: Problem) -> tuple[Dims, Dims]:
        """Rows and columns, each with the strides of x and y."""
        x, y = only(problem)
        rank = len(x.shape)
        dims = list(range(rank - len(problem.attributes["normalized_shape"]), rank))
        cols = collapse([x.shape[d] for d in dims], [x.strides[d] for d in dims], [y.strides[d] for d in dims], reorder=False)
        return row_dims(problem, dims), cols


def _present(problem: Problem, *names: str) -> tuple[tuple[str, ...], tuple[torch.dtype, ...]]:
    """Operands and their dtypes; x0 stands for inputs that were left out, which kernels do not touch."""
    operands, types = [], []
    for name in names:
        if name.startswith("scratch"):
            operands.append(name)
            types.append(torch.float32)
            continue
        spec = problem.inputs[int(name[1:])] if name.startswith("x") else problem.outputs[int(name[1:])]
        operands.append("x0" if spec is None else name)
        types.append(only(problem)[0].dtype if spec is None else spec.dtype)
    return tuple(operands), tuple(types)


class _GroupNorm:
    """What the tactics of group_norm share."""

    ops: tuple[str, ...] = ("group_norm",)

    def reject(self, problem: Problem) -> str:
        if reason := refuse(problem) or _vectors(problem, 1, 2):
            return reason
        return f"more than {MAX_DIMS} separate dimensions" if len(self._positions(problem).sizes) > MAX_DIMS else ""

    @staticmethod
    def _moments(problem: Problem) -> TensorSpec | None:
        """The mean and the variance of each channel [N, 2, C], where the problem gives them."""
        return problem.inputs[4]

    @staticmethod
    def _positions(problem: Problem) -> Dims:
        """The spatial dimensions, with the strides of x, y and the residual (x's for none)."""
        x, y = only(problem)
        residual = problem.inputs[3] or x
        return collapse(x.shape[2:], x.strides[2:], y.strides[2:], residual.strides[2:])

    @staticmethod
    def _group(problem: Problem) -> int:
        """Channels of a group."""
        return only(problem)[0].shape[1] // int(problem.attributes["groups"])

    def _finish(self, problem: Problem) -> tuple[tuple[str, Any], ...]:
        """The arguments from EPS to RS4."""
        x, y = only(problem)
        residual = problem.inputs[3] or x
        return (
            ("EPS", float(problem.attributes["eps"])),
            ("HAS_WEIGHT", problem.inputs[1] is not None),
            ("HAS_BIAS", problem.inputs[2] is not None),
            ("HAS_RESIDUAL", problem.inputs[3] is not None),
            ("ACTIVATION", str(problem.attributes["activation"])),
            ("ALPHA", float(problem.attributes["alpha"])),
            ("XN", x.strides[0]),
            ("XC", x.strides[1]),
            ("YN", y.strides[0]),
            ("YC", y.strides[1]),
            ("RN", residual.strides[0]),
            ("RC", residual.strides[1]),
            *self._positions(problem).constants("D", "XS", "YS", "RS"),
        )


class GroupNormOnChip(_GroupNorm):
    """A program reads whole groups once."""

    name = "group_norm_on_chip"
    largest = 32768

    def reject(self, problem: Problem) -> str:
        if reason := super().reject(problem):
            return reason
        if self._moments(problem) is not None:
            return "takes its own moments"
        if self._positions(problem).numel > self.largest or self._tile(problem, 1) > self.largest:
            return f"groups of more than {self.largest} elements"
        return ""

    def _tile(self, problem: Problem, channels: int) -> int:
        """Elements of a program's tile; ``channels`` it has where they are normalised alone."""
        group = self._group(problem)
        return power_of_two(self._positions(problem).numel) * (channels if group == 1 else power_of_two(group))

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, _ = only(problem)
        widest = 1 if self._group(problem) > 1 else power_of_two(x.shape[1])
        found = []
        for channels in (16, 32, 8, 4, 64) if x.strides[1] == 1 else (1, 2, 4):
            channels = min(channels, widest)
            tile = self._tile(problem, channels)
            for elements in (16, 32, 8):
                warps = max(1, min(power_of_two(tile // (32 * elements)), 32))
                if tile <= self.largest and tile <= 32 * warps * 64:
                    found.append({"channels": channels, "warps": warps})
        return unique(found or [{"channels": 1, "warps": 32}], level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, _ = only(problem)
        group, positions = self._group(problem), self._positions(problem).numel
        constants = (
            ("C", x.shape[1]),
            ("P", positions),
            ("GROUP", group),
            *self._finish(problem),
            ("BLOCK_P", power_of_two(positions)),
            ("BLOCK_C", config["channels"] if group == 1 else power_of_two(group)),
            ("PDL", problem.capability >= 90),
        )
        operands, types = _present(problem, "x0", "x1", "x2", "x3", "y0")
        blocks = -(-x.shape[1] // config["channels"]) if group == 1 else x.shape[1] // group
        kernel = Kernel("norms:group_norm_on_chip", types, constants, num_warps=config["warps"])
        return Recipe((Launch(kernel, (x.shape[0] * blocks, 1, 1), operands),))


class GroupNormSplit(_GroupNorm):
    """The moments of slabs of positions, unless those of all are given; then a second pass; between them, a kernel that combines them, where groups
    have many channels or slabs are many."""

    name = "group_norm_split"

    def reject(self, problem: Problem) -> str:
        if reason := super().reject(problem):
            return reason
        given = self._moments(problem)
        if given is not None and not (given.is_contiguous and given.dtype == torch.float32):
            return "moments that are not contiguous float32"
        return "groups of more than 8192 channels" if self._group(problem) > 8192 else ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        x, _ = only(problem)
        positions, channels, group = self._positions(problem).numel, x.shape[1], self._group(problem)
        last = x.strides[1] == 1
        given = self._moments(problem) is not None
        most = positions if given else max(min(16384 // power_of_two(group), 1024), 1)  # for the combining program to hold them on chip
        found = []
        for elements, warps in ((4096, 4), (8192, 8), (2048, 4), (4096, 8), (2048, 2), (1024, 4)):
            block_c = min(power_of_two(channels), 64) if last else 1
            block_p = max(1, min(elements // block_c, power_of_two(positions)))
            tiles = -(-positions // block_p)
            columns = -(-channels // block_c)
            for programs in (8, 4, 16):
                wanted = max(1, programs * problem.multiprocessors * 4 // warps // (x.shape[0] * columns))
                slab = max(-(-tiles // min(wanted, most)), 1) * block_p
                parts = 1 if given else -(-positions // slab)
                separate = (group > 1 and not given) or power_of_two(parts * group) * block_c > 8192
                found.append({"slab": slab, "positions": block_p, "channels": block_c, "combine": separate, "warps": warps})
                if not separate and not (given and group == 1):
                    found.append({**found[-1], "combine": True})
        return unique(found, level)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, _ = only(problem)
        n, channels = x.shape[:2]
        group, dims, slab = self._group(problem), self._positions(problem), config["slab"]
        slabs = -(-dims.numel // slab)
        pdl = ("PDL", problem.capability >= 90)
        size = (("C", channels), ("P", dims.numel))
        tile = (("BLOCK_P", config["positions"]), ("BLOCK_C", config["channels"]))
        grid = (n * slabs, -(-channels // config["channels"]), 1)
        launches: list[Launch] = []
        scratch: dict[str, TensorSpec] = {}
        moments, part = "x4", dims.numel
        if self._moments(problem) is None:
            moments, part = "scratch.moments", slab
            scratch["moments"] = TensorSpec.contiguous((n, slabs, 2, channels), torch.float32)
            strides = (("XN", x.strides[0]), ("XC", x.strides[1]), *Dims(dims.sizes, dims.strides[:1]).constants("D", "XS"))
            operands, types = _present(problem, "x0", moments)
            partials = Kernel("norms:group_norm_partials", types, (*size, ("SLAB", slab), *strides, *tile, pdl), num_warps=config["warps"])
            launches.append(Launch(partials, grid, operands))
        parts = -(-dims.numel // part)
        if config["combine"]:
            scratch["statistics"] = TensorSpec.contiguous((n, channels // group, 2), torch.float32)
            block_s, block_c = power_of_two(parts), power_of_two(group)
            eps = ("EPS", float(problem.attributes["eps"]))
            joined = (*size, ("SLAB", part), ("GROUP", group), eps, ("BLOCK_S", block_s), ("BLOCK_C", block_c), pdl)
            operands, types = _present(problem, moments, "scratch.statistics")
            warps = max(1, min(power_of_two(block_s * block_c // 256), 16))
            combine = Kernel("norms:group_norm_combine", types, joined, num_warps=warps)
            launches.append(Launch(combine, (n * (channels // group), 1, 1), operands))
        constants = (
            *size,
            ("SLAB", slab),
            ("PART", part),
            ("GROUP", group),
            ("COMBINED", config["combine"]),
            *self._finish(problem),
            ("BLOCK_S", 1 if config["combine"] else power_of_two(parts * group)),
            *tile,
            pdl,
        )
        operands, types = _present(problem, "x0", "x1", "x2", "x3", moments, "scratch.statistics" if config["combine"] else moments, "y0")
        apply = Kernel("norms:group_norm_apply", types, constants, num_warps=config["warps"])
        launches.append(Launch(apply, grid, operands))
        return Recipe(tuple(launches), scratch=scratch)


TACTICS: tuple[Tactic, ...] = (LayerNorm(), GroupNormOnChip(), GroupNormSplit())
