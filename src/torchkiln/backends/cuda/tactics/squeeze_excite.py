"""squeeze_excite: tactic for the gate of squeeze-and-excite blocks, both layers in one launch."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import FLOATS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .reduce import power_of_two

MAX_CHANNELS, MAX_HIDDEN = 4096, 512
_ROWS = 16


class SqueezeExcite:
    """One item to a program ("rows": 1), or 16 on tensor cores; every program computes the hidden vector and a part of the gate."""

    name = "squeeze_excite"
    ops: tuple[str, ...] = ("squeeze_excite",)

    def reject(self, problem: Problem) -> str:
        mean, weight1, _, weight2, _ = problem.inputs
        assert mean is not None
        assert weight1 is not None
        assert weight2 is not None
        if not (problem.constants[1] and problem.constants[3]):
            return "the weights are computed: they cannot be laid out at build time"
        if len(mean.shape) != 2 or len(problem.outputs[0].shape) != 2:
            return "the means must be [N, C]"
        if mean.shape[1] > MAX_CHANNELS or weight1.shape[0] > MAX_HIDDEN:
            return f"more than {MAX_CHANNELS} channels or {MAX_HIDDEN} hidden ones: two matrix products are faster"
        if mean.dtype != torch.float32 or weight1.dtype != weight2.dtype or weight1.dtype not in FLOATS:
            return "takes float32 means and weights of one dtype: fp16, bf16 or fp32"
        if mean.shape[0] > 2**20:
            return "offsets would pass 2**31"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        found: list[Config] = []
        n, channels = _spec(problem, 0).shape
        for rows in (1, _ROWS):
            items = -(-n // rows)
            if rows > 1 and n < 8:
                continue
            for part in sorted({-(-channels // (splits * 16)) * 16 for splits in (1, 2, 4, 8, 16, 32, 64, 128)}):
                for warps in (4, 8, 16) if rows == 1 else (4, 8):
                    if items * -(-channels // part) <= 4096:
                        found.append({"rows": rows, "part": part, "warps": warps})
        ranked = sorted(found, key=lambda config: _estimate(problem, config))
        other = next((config for config in ranked if config["rows"] != ranked[0]["rows"]), None)
        if other is not None:  # the estimate tells little about which of the forms is the faster one
            ranked.remove(other)
            ranked.insert(1, other)
        return ranked[: (1, 3, 6, 10, 16, 40)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        mean, weight1, y = _spec(problem, 0), _spec(problem, 1), problem.outputs[0]
        n, channels = mean.shape
        hidden = weight1.shape[0]
        rows, part, warps = config["rows"], config["part"], config["warps"]
        padded = max(power_of_two(hidden), _ROWS)
        # About 32 float32 numbers of an accumulator or of a tile of weights to a thread.
        tile = max(16, min(32 * 32 * warps // padded, 512))
        constants: dict[str, Any] = {
            "N": n,
            "C": channels,
            "R": hidden,
            "W1": row_length(channels, weight1.dtype),
            "W2": row_length(hidden, weight1.dtype),
            "MN": mean.strides[0],
            "MC": mean.strides[1],
            "YN": y.strides[0],
            "YC": y.strides[1],
            "HAS_BIAS1": problem.inputs[2] is not None,
            "HAS_BIAS2": problem.inputs[4] is not None,
            "ACTIVATION": problem.attributes["activation"],
            "GATE": problem.attributes["gate"],
            "RP": padded,
            "BC": min(tile, max(power_of_two(channels), 16)) if rows == 1 else min(128 if padded <= 128 else 32, max(power_of_two(channels), 16)),
            "BO": min(tile, power_of_two(part)) if rows == 1 else min(64 if padded <= 128 else 32, power_of_two(part)),
            "PER_PROGRAM": part,
            "PDL": problem.capability >= 90,
        }
        if rows == 1:
            constants["UNROLL"] = 4
        else:
            constants |= {"BN": rows, "SPLIT_TERMS": weight1.dtype != torch.float32}
        biases = ["x2" if constants["HAS_BIAS1"] else "x0", "x4" if constants["HAS_BIAS2"] else "x0"]
        operands = ("x0", "packed.weight1", biases[0], "packed.weight2", biases[1], "y0")
        pointers = tuple(
            y.dtype if name == "y0" else weight1.dtype if name.startswith("packed") else _spec(problem, int(name[1:])).dtype for name in operands
        )
        name = "squeeze_excite:squeeze_excite" if rows == 1 else "squeeze_excite:squeeze_excite_rows"
        kernel = Kernel(name, pointers, tuple(constants.items()), warps, 2 if rows == 1 else 3)
        launch = Launch(kernel, (-(-n // rows), -(-channels // part), 1), operands)
        return Recipe((launch,), packed={"weight1": Packed(pad_rows, ("x1",)), "weight2": Packed(pad_rows, ("x3",))})


def pad_rows(weight: torch.Tensor) -> torch.Tensor:
    """Rows padded with zeros to 16 bytes, so that vectors of them can be loaded."""
    matrix = weight.reshape(weight.shape[0], -1)
    return torch.nn.functional.pad(matrix, (0, row_length(matrix.shape[1], weight.dtype) - matrix.shape[1])).contiguous()


def hidden_rows(problem: Problem) -> int:
    """The hidden channels of a "conv_excite", rounded up to a power of two."""
    return power_of_two(_spec(problem, 3).shape[0])


def reject_gate(problem: Problem) -> str:
    """What the gates of a "conv_excite" are refused for."""
    weight1, weight2, y = _spec(problem, 3), _spec(problem, 5), problem.outputs[0]
    if not (problem.constants[3] and problem.constants[5]):
        return "the weights of the gates are computed: they cannot be laid out at build time"
    if weight1.shape[1] > MAX_CHANNELS or weight1.shape[0] > MAX_HIDDEN:
        return f"more than {MAX_CHANNELS} channels or {MAX_HIDDEN} hidden ones: two matrix products are faster"
    if weight1.dtype != weight2.dtype or weight1.dtype not in FLOATS:
        return "takes gates' weights of one dtype: fp16, bf16 or fp32"
    return "" if y.shape[0] <= 2**20 else "offsets would pass 2**31"


def row_length(size: int, dtype: torch.dtype) -> int:
    """Elements of a row padded to 16 bytes."""
    vector = 16 // dtype.itemsize
    return -(-size // vector) * vector


def _spec(problem: Problem, index: int) -> TensorSpec:
    spec = problem.inputs[index]
    assert spec is not None
    return spec


def _estimate(problem: Problem, config: Config) -> float:
    """A guess of the cycles: what a multiprocessor reads from L2, products that are not on tensor cores, and latency."""
    (n, channels), weight = _spec(problem, 0).shape, _spec(problem, 1)
    hidden, size = weight.shape[0], weight.dtype.itemsize
    rows, part, warps = config["rows"], config["part"], config["warps"]
    a_multiprocessor = -(-(-(-n // rows) * -(-channels // part)) // problem.multiprocessors)
    read = (channels + min(part, channels)) * hidden * size + channels * 4 * rows
    products = (channels + part) * max(power_of_two(hidden), _ROWS) / 128 * 3.5 if rows == 1 else 0
    resident = max(1, 16 // warps)
    if rows == 1:
        exposed = read / (warps * 32 * 96) * 600
    else:  # two blocks ahead
        wide = power_of_two(hidden) <= 128
        exposed = (channels / (128 if wide else 32) + part / (64 if wide else 32)) * 300
    return a_multiprocessor * max(read / 48, products) + -(-a_multiprocessor // resident) * (1500 + exposed)


TACTICS: tuple[Tactic, ...] = (SqueezeExcite(),)
