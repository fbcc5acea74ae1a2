"""depthwise: depthwise convolutions, in the same launch the mean of the result ("conv_pooled") or the gates that follow from it ("conv_excite").

The kernel's text is generated, see ``depthwise_source``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch

from ..recipe import FLOATS, MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_geometry import Geometry, conv_geometry
from .depthwise_source import UNROLLED_TAPS, Tile, depthwise_source, grid_of
from .multiprocessor import MEMORY_BYTES, REGISTERS
from .reduce import power_of_two
from .squeeze_excite import SqueezeExcite, hidden_rows, pad_rows, reject_gate, row_length

#: Products in the text of one thread, and the registers it may want.
MAX_PRODUCTS, MAX_REGISTERS = 2900, 230
#: Elements of the first layer of the gates to a thread.
HELD_GATE = 32


class Depthwise:
    """One input channel and one output channel to a group; any strides, fast with the channels innermost."""

    name = "depthwise"
    ops: tuple[str, ...] = ("conv", "conv_pooled", "conv_excite")

    def reject(self, problem: Problem) -> str:
        x, weight, *_ = problem.inputs
        assert x is not None
        assert weight is not None
        if problem.attributes.get("transposed"):
            return "transposed convolutions have a tactic of their own"
        if not problem.attributes["groups"] == x.shape[1] == weight.shape[0]:
            return "not depthwise with one output channel to an input channel"
        if not problem.constants[1]:
            return "the weight is computed: it cannot be laid out at build time"
        if problem.inputs[2] is not None and not problem.constants[2]:
            return "the bias is computed: it is read before the kernel in front has ended"
        if x.dtype not in FLOATS or problem.outputs[0].dtype not in FLOATS:
            return f"takes and gives fp16, bf16 and fp32, not {x.dtype} and {problem.outputs[0].dtype}"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return reject_gate(problem) if problem.op == "conv_excite" else ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = conv_geometry(problem)
        tiles = _tiles(geometry, problem.outputs[0].dtype.itemsize)
        if problem.op == "conv_excite":
            hidden = hidden_rows(problem)
            fitting = [config for config in tiles if hidden * config["BC"] <= HELD_GATE * 32 * config["warps"]]
            tiles = fitting or [min(tiles, key=lambda config: config["BC"] / config["warps"])]
        ranked = _varied(sorted((_estimate(problem, geometry, config), index) for index, config in enumerate(tiles)), tiles)
        return ranked[: (1, 4, 8, 16, 28, 60)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = conv_geometry(problem)
        groups_h, groups_w, tiles, blocks = grid_of(geometry, config)
        names = ("x0", "packed.weight", "x2", "x3", "x4") if problem.op != "conv_excite" else _EXCITE_OPERANDS
        specs = {name: spec for name, spec in zip(names, problem.inputs, strict=False) if spec is not None}
        specs |= {f"y{index}": spec for index, spec in enumerate(problem.outputs)}
        axes = ("N", "C", "D", "H", "W")
        constants: dict[str, Any] = {
            "C": geometry.groups,
            **dict(zip(("D", "H", "W"), geometry.spatial, strict=True)),
            **dict(zip(("OD", "OH", "OW"), geometry.out_spatial, strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, geometry.x_strides, strict=True)},
            **{f"Y{axis}": stride for axis, stride in zip(axes, geometry.y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, geometry.residual_strides, strict=True)},
            "GH": groups_h,
            "GW": groups_w,
            "TILES": tiles,
            "BLOCKS": blocks,
            "BP": config["BP"],
            "BC": config["BC"],
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "PRECISE": problem.outputs[0].dtype == torch.float32,
            "PDL": problem.capability >= 90,
        }
        scratch: dict[str, TensorSpec] = {}
        packed = {"weight": Packed(pack_weight, ("x1",))}
        counters = 0
        if problem.op == "conv" and problem.inputs[4] is not None:
            constants |= {"GN": problem.inputs[4].strides[0], "GC": problem.inputs[4].strides[1]}
        elif problem.op == "conv_pooled":
            constants |= {"MN": specs["y1"].strides[0], "MC": specs["y1"].strides[1]}
            if tiles > 1:
                scratch["partial"] = TensorSpec.contiguous((geometry.batch, tiles, geometry.groups), torch.float32)
                counters = geometry.batch * blocks
        elif problem.op == "conv_excite":
            rows = hidden_rows(problem)
            constants |= _gate_constants(problem, rows, tiles * blocks, 32 * config["warps"])
            scratch["partial"] = TensorSpec.contiguous((geometry.batch, tiles * blocks, rows), torch.float32)
            counters = geometry.batch
            packed["weight2"] = Packed(pad_rows, ("x5",))
        operands = [*specs, *(["scratch.partial", "counters"] if scratch else [])]
        dtypes = [spec.dtype for spec in specs.values()] + ([torch.float32, torch.int32] if scratch else [])
        source = depthwise_source(Tile(geometry, config, tuple(operands)), tuple(constants))
        kernel = Kernel("depthwise", tuple(dtypes), tuple(constants.items()), config["warps"], 2, source)
        launch = Launch(kernel, (blocks * tiles * geometry.batch, 1, 1), tuple(operands))
        return Recipe((launch,), scratch, packed, counters)


_EXCITE_OPERANDS = ("x0", "packed.weight", "x2", "x3", "x4", "packed.weight2", "x6")


def _gate_constants(problem: Problem, rows: int, parts: int, threads: int) -> dict[str, Any]:
    """What kernels.squeeze_excite.excite takes."""
    weight1 = problem.inputs[3]
    assert weight1 is not None
    hidden, channels = weight1.shape
    gates = problem.outputs[1]
    return {
        "R": hidden,
        "RP": rows,
        "W2": row_length(hidden, weight1.dtype),
        "GN": gates.strides[0],
        "GC": gates.strides[1],
        "HIDDEN_ACTIVATION": problem.attributes["hidden_activation"],
        "GATE": problem.attributes["gate"],
        "PARTS": parts,
        # About 16 and 32 numbers to a thread.
        "AT_ONCE": min(max(1, 16 * threads // rows), power_of_two(parts)),
        "BO": min(max(16, 32 * threads // rows), max(16, power_of_two(channels))),
    }


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """[C, 1, *kernel] -> [taps, C]."""
    return weight.reshape(weight.shape[0], -1).t().contiguous()


def _tiles(geometry: Geometry, itemsize: int) -> list[Config]:
    """Tiles of one vector a thread for each output of its group."""
    _, oh, ow = geometry.out_spatial
    taps = geometry.kernel[1] * geometry.kernel[2]
    innermost = geometry.x_strides[1] == 1
    channels = 1 << (geometry.groups - 1).bit_length()
    found: list[Config] = []
    for th, tw, vector in product((1, 2, 4, 7, 14), (1, 2, 4, 7), (8, 4, 2, 1)):
        if th > max(oh, 1) or tw > max(ow, 1) or vector * itemsize > 16 or th * tw * vector > 256:
            continue
        if (taps > UNROLLED_TAPS and tw * th > 7) or (taps > UNROLLED_TAPS and tw > 1) or (not innermost and tw > 1):
            continue
        sample = Tile(geometry, {"TH": th, "TW": tw, "BP": vector, "BC": 32, "warps": 1})
        if th * tw > 1 and ((sample.is_unrolled and sample.products * vector > MAX_PRODUCTS) or sample.registers > MAX_REGISTERS):
            continue
        for warps, bc in product((1, 2, 4, 8), (8, 16, 32, 64, 128, 256) if innermost else (1, 2, 4)):
            bp = 32 * warps * vector // bc
            positions = geometry.out_spatial[0] * -(-oh // th) * -(-ow // tw)
            if bp < 1 or bc < min(vector, 8 if innermost else 1) or (bc > 8 and bc >= 2 * channels) or (bp > 1 and bp >= 2 * positions + 8):
                continue
            found.append({"TH": th, "TW": tw, "BP": bp, "BC": bc, "warps": warps})
    if not found:  # a single position of a single channel, or nearly
        found.append({"TH": 1, "TW": 1, "BP": 32, "BC": 1, "warps": 1})
    return found


def _varied(estimates: list[tuple[float, int]], tiles: list[Config]) -> list[Config]:
    """The best first, but each further one of the same outputs and channels to a thread later: the estimate tells little about those."""
    seen: dict[tuple[float, ...], int] = {}
    keyed = []
    for cycles, index in estimates:
        config = tiles[index]
        form = (config["TH"], config["TW"], config["BP"] * config["BC"] / config["warps"])
        seen[form] = seen.get(form, 0) + 1
        keyed.append((cycles * (1 + 0.06 * (seen[form] - 1)), index))
    return [tiles[index] for _, index in sorted(keyed)]


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    th, tw, warps = config["TH"], config["TW"], config["warps"]
    tile = Tile(geometry, config)
    _, groups_w, tiles, blocks = grid_of(geometry, config)
    (kd, kh, kw), (_, sh, sw), (_, dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    itemsize = problem.outputs[0].dtype.itemsize
    vector = config["BP"] * config["BC"] / (32 * warps)
    rows, columns = len(tile.high.offsets), len(tile.wide.offsets)
    weights = tile.taps if tile.holds_weights or th == 1 else rows * kw * min(kh, th)
    border = sum(bool(tile.high.inside(r)) or bool(tile.wide.inside(q)) for r, q in product(tile.high.offsets, tile.wide.offsets))
    loads = kd * (rows * columns + weights)
    # Products, conversions to float32, the activation and the sum; loads and stores, and masks.
    instructions = vector * (kd * tile.products + th * tw * 8.5 + (loads if itemsize == 2 else 0)) + loads + 4 * kd * border + 2 * th * tw + 120
    programs = tiles * blocks * geometry.batch
    resident = max(1, min(32, 64 // warps, int(REGISTERS // (min(255, tile.registers) * 32 * warps))))
    a_multiprocessor = -(-programs // problem.multiprocessors)
    # Few warps do not fill a scheduler.
    busy = min(1.0, 0.35 + min(resident, a_multiprocessor) * warps / 16 * 0.65)
    issue = a_multiprocessor * warps * instructions / 4 / 0.85 / busy
    cached = a_multiprocessor * warps * loads * max(1.0, vector * itemsize / 4)
    x, y = problem.inputs[0], problem.outputs[0]
    assert x is not None
    # What a program reads beside its own share comes again, from L2. 19 bytes a cycle and multiprocessor is 4.3 TB/s; L2 gives about 28.
    wide = min(config["BP"], groups_w) * tw
    high = max(1.0, config["BP"] / groups_w) * th
    halo = (1 + max(0, (kh - 1) * dh + 1 - sh) / (high * sh)) * (1 + max(0, (kw - 1) * dw + 1 - sw) / (wide * sw))
    sector = max(1.0, 64 / (config["BC"] * itemsize)) ** 0.3 if geometry.x_strides[1] == 1 else 1.0
    used = min(problem.multiprocessors, programs)
    memory = max((x.size_bytes + y.size_bytes) * sector / MEMORY_BYTES, (x.size_bytes * halo + y.size_bytes) / 28) / used
    starts = a_multiprocessor * 150
    waves = -(-a_multiprocessor // resident)
    in_flight = min(a_multiprocessor, resident) * warps * tile.ahead * columns * 32 * vector * itemsize
    steps = max(1.0, rows / tile.ahead - 1)
    latency = waves * (900 + kd * steps * 300 / max(1.0, resident * warps / 8)) + memory * max(0.0, 16000 / in_flight - 1) * 0.1
    pooling = 900 + 8 * tiles if problem.op == "conv_pooled" and tiles > 1 else 0
    if problem.op == "conv_excite":
        pooling = 2500 + 4 * tiles * blocks + 8000 / warps
    return max(issue, cached, memory, starts) + 0.2 * memory + latency + pooling + instructions * 1.5


class DepthwiseThenGate:
    """The same as two tactics one after the other: the convolution with the mean, then the gates, each in its own best way."""

    name = "depthwise_then_gate"
    ops: tuple[str, ...] = ("conv_excite",)

    def reject(self, problem: Problem) -> str:
        return Depthwise().reject(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        pooled, gate = _parts(problem)
        gates = SqueezeExcite().configs(gate, level)[: (1, 1, 2, 2, 3, 4)[level]]
        return [{"conv": conv, "gate": gate} for conv in Depthwise().configs(pooled, level) for gate in gates]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        pooled, gate = _parts(problem)
        first = Depthwise().recipe(pooled, config["conv"])
        second = SqueezeExcite().recipe(gate, config["gate"])
        renamed = {"y1": "scratch.mean"}
        named = {"x0": "scratch.mean", "x1": "x3", "x2": "x4", "x3": "x5", "x4": "x6", "y0": "y1"}
        launches = tuple(
            replace(launch, operands=tuple(names.get(name, name) for name in launch.operands))
            for recipe, names in ((first, renamed), (second, named))
            for launch in recipe.launches
            if isinstance(launch, Launch)
        )
        packed = first.packed | {name: replace(p, operands=tuple(named[operand] for operand in p.operands)) for name, p in second.packed.items()}
        return Recipe(launches, first.scratch | {"mean": pooled.outputs[1]}, packed, first.counters)


def _parts(problem: Problem) -> tuple[Problem, Problem]:
    """The "conv_pooled" and the "squeeze_excite" that a "conv_excite" is."""
    attributes = dict(problem.attributes)
    gate = {"activation": attributes.pop("hidden_activation"), "gate": attributes.pop("gate")}
    y, gates = problem.outputs
    mean = TensorSpec.contiguous(gates.shape, torch.float32)
    pooled = replace(problem, op="conv_pooled", inputs=problem.inputs[:3], outputs=(y, mean), attributes=attributes, constants=problem.constants[:3])
    inputs, constants = (mean, *problem.inputs[3:]), (False, *problem.constants[3:])
    return pooled, replace(problem, op="squeeze_excite", inputs=inputs, outputs=(gates,), attributes=gate, constants=constants)


TACTICS: tuple[Tactic, ...] = (Depthwise(), DepthwiseThenGate())
