"""depthwise: depthwise convolutions, with the mean of the result in the same launch where "conv_pooled" asks for it.

The kernel's text is generated. A thread computes TH x TW neighbouring outputs of a few channels: every input it loads serves all the taps of all
the outputs that read it, and a weight is loaded once for all of them.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_geometry import Geometry, conv_geometry

#: Kernels of more taps (in one plane) loop over their columns, so that the text stays short.
UNROLLED_TAPS = 64
_TYPES = (torch.float16, torch.bfloat16, torch.float32)


class Depthwise:
    """One input channel and one output channel to a group; any strides, fast with the channels innermost."""

    name = "depthwise"
    ops: tuple[str, ...] = ("conv", "conv_pooled")

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
        if x.dtype not in _TYPES or problem.outputs[0].dtype not in _TYPES:
            return f"takes and gives fp16, bf16 and fp32, not {x.dtype} and {problem.outputs[0].dtype}"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = conv_geometry(problem)
        itemsize = problem.outputs[0].dtype.itemsize
        ranked = sorted(_tiles(geometry, itemsize), key=lambda config: _estimate(problem, geometry, config))
        return ranked[: (1, 4, 8, 16, 28, 60)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = conv_geometry(problem)
        pooled = problem.op == "conv_pooled"
        groups_h, groups_w, tiles, blocks = _grid(geometry, config)
        inputs = dict(zip(("x0", "packed.weight", "x2", "x3", "x4"), problem.inputs, strict=False))
        specs: dict[str, TensorSpec] = {name: spec for name, spec in inputs.items() if spec is not None}
        specs["y0"] = problem.outputs[0]
        scratch: dict[str, TensorSpec] = {}
        if pooled:
            specs["y1"] = problem.outputs[1]
            if tiles > 1:
                scratch["partial"] = TensorSpec.contiguous((geometry.batch, tiles, geometry.groups), torch.float32)
        operands = [*specs, *(["scratch.partial", "counters"] if scratch else [])]
        dtypes = [spec.dtype for spec in specs.values()] + ([torch.float32, torch.int32] if scratch else [])
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
            "PDL": problem.capability >= 90,
        }
        if "x4" in specs:
            constants |= {"GN": specs["x4"].strides[0], "GC": specs["x4"].strides[1]}
        if pooled:
            constants |= {"MN": specs["y1"].strides[0], "MC": specs["y1"].strides[1]}
        source = depthwise_source(geometry, config["TH"], config["TW"], operands, tuple(constants))
        kernel = Kernel("depthwise", tuple(dtypes), tuple(constants.items()), config["warps"], 2, source)
        launch = Launch(kernel, (blocks * tiles * geometry.batch, 1, 1), tuple(operands))
        counters = geometry.batch * blocks if scratch else 0
        return Recipe((launch,), scratch, {"weight": Packed(pack_weight, ("x1",))}, counters)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """[C, 1, *kernel] -> [taps, C]."""
    return weight.reshape(weight.shape[0], -1).t().contiguous()


def depthwise_source(geometry: Geometry, th: int, tw: int, operands: list[str], constants: tuple[str, ...]) -> str:
    """The text of the kernel. Grid: (N * tiles of positions * blocks of channels,), blocks fastest; a position is th x tw neighbouring outputs."""
    pointers = [name.replace(".", "_") for name in operands]
    package = __package__.rsplit(".", 1)[0]
    plane = geometry.kernel[1] * geometry.kernel[2]
    body = f"""\
begin(PDL)
block = tl.program_id(0) % BLOCKS
tile = (tl.program_id(0) // BLOCKS) % TILES
n = tl.program_id(0) // (BLOCKS * TILES)
p = tile * BP + tl.arange(0, BP)[:, None]
c = block * BC + tl.arange(0, BC)[None, :]
p_ok = p < OD * GH * GW
c_ok = c < C
ow = (p % GW) * {tw}
oh = ((p // GW) % GH) * {th}
od = p // (GW * GH)
iw = ow * {geometry.stride[2]} - {geometry.padding[2]}
ih = oh * {geometry.stride[1]} - {geometry.padding[1]}
id = od * {geometry.stride[0]} - {geometry.padding[0]}
x = x0 + (n * XN + id * XD + ih * XH + iw * XW + c * XC)
spread = tl.zeros((BP, 1), dtype=tl.int32) + c
w = packed_weight + spread""".splitlines()
    body += [f"acc_{t}_{u} = tl.zeros((BP, BC), dtype=tl.float32)" for t, u in product(range(th), range(tw))]
    if geometry.kernel[0] > 1:
        loop = [
            f"inside = p_ok & (id + kd * {geometry.dilation[0]} >= 0) & (id + kd * {geometry.dilation[0]} < D)",
            "h = tl.where(inside, ih, -(2**29))",
        ]
        loop += [*_taps(geometry, th, tw), f"x += {geometry.dilation[0]} * XD", f"w += {plane} * C"]
        body += [f"for kd in range({geometry.kernel[0]}):"] + [f"    {line}" for line in loop]
    else:
        body += ["h = tl.where(p_ok & (id >= 0) & (id < D), ih, -(2**29))" if geometry.padding[0] else "h = tl.where(p_ok, ih, -(2**29))"]
        body += _taps(geometry, th, tw)
    body += _epilogue(th, tw, operands)
    arguments = ", ".join([*pointers, *[f"{name}: tl.constexpr" for name in constants]])
    imports = [f"from {package}.kernels.common import activate, begin", f"from {package}.kernels.depthwise import store_mean"]
    text = ["import triton", "import triton.language as tl", *imports, "", "", f"def depthwise({arguments}):", *[f"    {line}" for line in body], ""]
    return "\n".join(text)


def _taps(geometry: Geometry, th: int, tw: int) -> list[str]:
    """The products of one plane of the kernel: a column of inputs is loaded, then used for every tap and output that reads it."""
    (_, kh, kw), (_, sh, sw), (_, dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    rows = sorted({t * sh + k * dh for t, k in product(range(th), range(kh))})
    lines = [f"row_{r} = (h + {r} >= 0) & (h + {r} < H)" for r in rows]

    def column(offset: str) -> list[str]:
        found = [f"column_ok = (iw + {offset} >= 0) & (iw + {offset} < W) & c_ok"]
        return found + [f"x_{r} = tl.load(x + ({r} * XH + {offset} * XW), mask=row_{r} & column_ok, other=0.0).to(tl.float32)" for r in rows]

    if kh * kw > UNROLLED_TAPS:
        lines.append(f"for kw in range({kw}):")
        inner = column(f"kw * {dw}")
        for k in range(kh):
            inner.append(f"w_{k} = tl.load(w + ({k * kw} + kw) * C, mask=c_ok, other=0.0).to(tl.float32)")
            inner += [f"acc_{t}_0 += x_{t * sh + k * dh} * w_{k}" for t in range(th)]
        return lines + [f"    {line}" for line in inner]
    loaded = set()
    for q in sorted({u * sw + k * dw for u, k in product(range(tw), range(kw))}):
        lines += column(str(q))
        for u, k_w, k_h in product(range(tw), range(kw), range(kh)):
            if u * sw + k_w * dw != q:
                continue
            tap = k_h * kw + k_w
            if tap not in loaded:
                loaded.add(tap)
                lines.append(f"w_{tap} = tl.load(w + {tap} * C, mask=c_ok, other=0.0).to(tl.float32)")
            lines += [f"acc_{t}_{u} += x_{t * sh + k_h * dh} * w_{tap}" for t in range(th)]
    return lines


def _epilogue(th: int, tw: int, operands: list[str]) -> list[str]:
    lines = []
    if "x2" in operands:
        lines.append("bias = tl.load(x2 + spread, mask=c_ok, other=0.0).to(tl.float32)")
    if "x4" in operands:
        lines.append("gate = tl.load(x4 + n * GN + spread * GC, mask=c_ok, other=0.0).to(tl.float32)")
    if "x3" in operands:
        lines.append("residual = x3 + (n * RN + od * RD + oh * RH + ow * RW + c * RC)")
    lines.append("y = y0 + (n * YN + od * YD + oh * YH + ow * YW + c * YC)")
    if "y1" in operands:
        lines.append("total = tl.zeros((BP, BC), dtype=tl.float32)")
    for t, u in product(range(th), range(tw)):
        lines += [f"ok = p_ok & (oh + {t} < OH) & (ow + {u} < OW) & c_ok", f"v = acc_{t}_{u}"]
        if "x4" in operands:
            lines.append("v *= gate")
        if "x2" in operands:
            lines.append("v += bias")
        if "x3" in operands:
            lines.append(f"v += tl.load(residual + ({t} * RH + {u} * RW), mask=ok, other=0.0).to(tl.float32)")
        lines += ["v = activate(v, ACTIVATION, ALPHA)", f"tl.store(y + ({t} * YH + {u} * YW), v.to(y0.dtype.element_ty), mask=ok)"]
        if "y1" in operands:
            lines.append("total += tl.where(ok, v, 0.0)")
    if "y1" in operands:
        partial = "scratch_partial, counters" if "counters" in operands else "y1, y1"
        lines.append(f"store_mean(tl.sum(total, axis=0), y1, {partial}, n, tile, block, C, BC, BLOCKS, TILES, OD * OH * OW, MN, MC)")
    return lines


def _grid(geometry: Geometry, config: Config) -> tuple[int, int, int, int]:
    """Groups of rows, groups of columns, tiles of positions of one n, blocks of channels."""
    od, oh, ow = geometry.out_spatial
    groups_h, groups_w = -(-oh // config["TH"]), -(-ow // config["TW"])
    return groups_h, groups_w, -(-od * groups_h * groups_w // config["BP"]), -(-geometry.groups // config["BC"])


def _tiles(geometry: Geometry, itemsize: int) -> list[Config]:
    """Tiles of one vector a thread for each output of its group."""
    _, oh, ow = geometry.out_spatial
    taps = geometry.kernel[1] * geometry.kernel[2]
    innermost = geometry.x_strides[1] == 1
    channels = 1 << (geometry.groups - 1).bit_length()
    found = []
    for th, tw, vector, warps in product((1, 2, 4, 7), (1, 2, 4), (8, 4, 2, 1), (1, 2, 4, 8)):
        if th > max(oh, 1) or tw > max(ow, 1) or vector * itemsize > 16 or th * tw * vector > 64:
            continue
        if (taps > UNROLLED_TAPS and tw > 1) or (th * tw > 1 and min(taps, UNROLLED_TAPS) * th * tw * vector > 2400) or (not innermost and tw > 1):
            continue
        for bc in (8, 16, 32, 64, 128, 256) if innermost else (1, 2, 4):
            bp = 32 * warps * vector // bc
            positions = geometry.out_spatial[0] * -(-oh // th) * -(-ow // tw)
            if bp < 1 or bc < min(vector, 8 if innermost else 1) or (bc > 8 and bc >= 2 * channels) or (bp > 1 and bp >= 2 * positions + 8):
                continue
            found.append({"TH": th, "TW": tw, "BP": bp, "BC": bc, "warps": warps})
    if not found:  # a single position of a single channel, or nearly
        found.append({"TH": 1, "TW": 1, "BP": 32, "BC": 1, "warps": 1})
    return found


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    th, tw, warps = config["TH"], config["TW"], config["warps"]
    _, _, tiles, blocks = _grid(geometry, config)
    (kd, kh, kw), (_, sh, sw), (_, dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    itemsize = problem.outputs[0].dtype.itemsize
    vector = config["BP"] * config["BC"] / (32 * warps)
    rows = len({t * sh + k * dh for t, k in product(range(th), range(kh))})
    columns = len({u * sw + k * dw for u, k in product(range(tw), range(kw))})
    loads = kd * (rows * columns + kh * kw)
    # Products, conversions to float32, and the addresses and masks of loads and stores; the activation costs about 10.
    instructions = vector * (th * tw * (kd * kh * kw + 12) + (loads if itemsize == 2 else 0)) + 4 * loads + 8 * th * tw + 60
    programs = tiles * blocks * geometry.batch
    registers = min(255, 40 + vector * (th * tw + rows * 0.75 + kh * 0.5))
    resident = max(1, min(32, int(65536 // (registers * 32 * warps))))
    a_multiprocessor = -(-programs // problem.multiprocessors)
    issue = a_multiprocessor * warps * instructions / 4 / 0.8
    cached = a_multiprocessor * warps * loads * max(1.0, vector * itemsize / 4)
    x, y = problem.inputs[0], problem.outputs[0]
    assert x is not None
    # What a program reads beside its own share comes again, from L2. 19 bytes a cycle and multiprocessor is 4.3 TB/s; L2 gives about 28.
    wide = min(config["BP"], -(-geometry.out_spatial[2] // tw)) * tw
    high = max(1.0, config["BP"] * tw / geometry.out_spatial[2]) * th
    halo = (1 + max(0, (kh - 1) * dh + 1 - sh) / (high * sh)) * (1 + max(0, (kw - 1) * dw + 1 - sw) / (wide * sw))
    sector = max(1.0, 64 / (config["BC"] * itemsize)) ** 0.3 if geometry.x_strides[1] == 1 else 1.0
    used = min(problem.multiprocessors, programs)
    memory = max((x.size_bytes + y.size_bytes) * sector / 19, (x.size_bytes * halo + y.size_bytes) / 28) / used
    starts = a_multiprocessor * 150
    waves = -(-a_multiprocessor // resident)
    in_flight = min(a_multiprocessor, resident) * warps * rows * 32 * vector * itemsize
    latency = waves * (900 + kd * columns * 250 / min(4, max(1, 255 // registers))) + memory * max(0.0, 16000 / in_flight - 1) * 0.1
    pooling = 900 + 8 * tiles if problem.op == "conv_pooled" and tiles > 1 else 0
    return max(issue, cached, memory, starts) + 0.2 * memory + latency + pooling + instructions * 1.5


TACTICS: tuple[Tactic, ...] = (Depthwise(),)
