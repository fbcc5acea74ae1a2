"""depthwise_source: the text of a depthwise convolution's kernel.

A thread computes TH x TW neighbouring outputs of a few channels, and walks down the rows of its inputs: each is loaded and converted once for all the
taps of all the outputs that read it, a few rows ahead, while outputs are finished as soon as their last row is in, so that few sums are held. What
lies inside the image for every thread is loaded without a mask, what lies outside for every thread is left out with its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ..recipe import Config
from .conv_geometry import Geometry

#: Kernels of more taps (in one plane) loop over their columns, so that the text stays short.
UNROLLED_TAPS = 64
#: Weights of a thread that stay in registers; more are loaded for every row again.
HELD_WEIGHTS = 80


def grid_of(geometry: Geometry, config: Config) -> tuple[int, int, int, int]:
    """Groups of rows, groups of columns, tiles of positions of one n, blocks of channels."""
    od, oh, ow = geometry.out_spatial
    groups_h, groups_w = -(-oh // config["TH"]), -(-ow // config["TW"])
    return groups_h, groups_w, -(-od * groups_h * groups_w // config["BP"]), -(-geometry.groups // config["BC"])


@dataclass(frozen=True)
class Axis:
    """Along one axis: groups of ``tile`` neighbouring outputs, and what they read of an input of ``size``, from the group's first element on."""

    name: str
    limit: str
    tile: int
    groups: int
    size: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @cached_property
    def offsets(self) -> list[int]:
        """The elements that any group reads, those left out that lie outside for each."""
        found = sorted({t * self.stride + k * self.dilation for t, k in product(range(self.tile), range(self.kernel))})
        return [offset for offset in found if any(0 <= start + offset < self.size for start in self._starts)]

    @cached_property
    def _starts(self) -> list[int]:
        return [group * self.tile * self.stride - self.padding for group in range(self.groups)]

    def pairs(self, offset: int) -> list[tuple[int, int]]:
        """(output, tap) that read an element."""
        return [(t, k) for t, k in product(range(self.tile), range(self.kernel)) if t * self.stride + k * self.dilation == offset]

    def inside(self, offset: int) -> list[str]:
        """What must hold for the element to lie inside; nothing where it does for every group."""
        low = [f"({self.name} + {offset} >= 0)"] if self._starts[0] + offset < 0 else []
        return low + ([f"({self.name} + {offset} < {self.limit})"] if self._starts[-1] + offset >= self.size else [])

    def is_output(self, output: int) -> list[str]:
        """What must hold for an output to exist."""
        return [f"(o{self.name[1:]} + {output} < O{self.limit})"] if (self.groups - 1) * self.tile + output >= self.out else []


@dataclass(frozen=True)
class Tile:
    """What the threads of a program compute."""

    geometry: Geometry
    config: Config
    operands: tuple[str, ...] = ()

    @property
    def is_excited(self) -> bool:
        return "packed.weight2" in self.operands

    @property
    def has_scale(self) -> bool:
        return "x4" in self.operands and not self.is_excited

    @property
    def has_residual(self) -> bool:
        return "x3" in self.operands and not self.is_excited

    @property
    def is_summed(self) -> bool:
        return "y1" in self.operands

    @property
    def begins_with_bias(self) -> bool:
        """Whether the first product is added to the bias; what is scaled has it added afterwards."""
        return "x2" in self.operands and not self.has_scale

    @property
    def channel(self) -> list[str]:
        """What must hold for a channel to exist; nothing where all do."""
        return ["c_ok"] if self.geometry.groups % self.config["BC"] else []

    @property
    def positions(self) -> int:
        """Groups of outputs of one n."""
        return self.geometry.out_spatial[0] * self.high.groups * self.wide.groups

    @property
    def place(self) -> list[str]:
        """What must hold for a group of outputs to exist."""
        return ["p_ok"] if self.positions % self.config["BP"] else []

    @cached_property
    def high(self) -> Axis:
        return self._axis(1, "TH", 0)

    @cached_property
    def wide(self) -> Axis:
        return self._axis(2, "TW", 1)

    def _axis(self, dim: int, tile: str, group: int) -> Axis:
        g = self.geometry
        sizes = g.spatial[dim], g.out_spatial[dim], g.kernel[dim], g.stride[dim], g.padding[dim], g.dilation[dim]
        return Axis(("ih", "iw")[group], "HW"[group], self.config[tile], grid_of(g, self.config)[group], *sizes)

    @property
    def vector(self) -> int:
        """Channels of a thread, all its groups of outputs counted."""
        return max(1, self.config["BP"] * self.config["BC"] // (32 * self.config["warps"]))

    @property
    def taps(self) -> int:
        """Of a plane."""
        return self.geometry.kernel[1] * self.geometry.kernel[2]

    @property
    def is_unrolled(self) -> bool:
        return self.taps <= UNROLLED_TAPS

    @property
    def holds_weights(self) -> bool:
        return self.is_unrolled and self.geometry.kernel[0] == 1 and self.taps * self.vector <= HELD_WEIGHTS

    @property
    def ahead(self) -> int:
        """Rows that are loaded before they are needed: up to 64 values of 16 bits."""
        return max(1, min(4, 64 // (len(self.wide.offsets) * self.vector)))

    @cached_property
    def products(self) -> int:
        """Of a channel, in one plane of the kernel."""
        rows, columns = (sum(len(axis.pairs(offset)) for offset in axis.offsets) for axis in (self.high, self.wide))
        return rows * columns

    @property
    def registers(self) -> float:
        """About what a thread wants."""
        live = min(self.config["TH"], -(-self.geometry.kernel[1] // self.geometry.stride[1])) if self.geometry.kernel[0] == 1 else self.config["TH"]
        weights = self.taps if self.holds_weights else self.geometry.kernel[2]
        columns = len(self.wide.offsets) * (1 + self.ahead / 2)
        return 34 + self.vector * (live * self.config["TW"] + weights + columns)


def depthwise_source(tile: Tile, constants: tuple[str, ...]) -> str:
    """The text of the kernel. Grid: (N * tiles of positions * blocks of channels,), blocks fastest; a position is TH x TW neighbouring outputs."""
    geometry, config = tile.geometry, tile.config
    pointers = [name.replace(".", "_") for name in tile.operands]
    package = __package__.rsplit(".", 1)[0]
    body = f"""\
release(PDL)
block = tl.program_id(0) % BLOCKS
tile = (tl.program_id(0) // BLOCKS) % TILES
n = tl.program_id(0) // (BLOCKS * TILES)
place = tile * BP + tl.arange(0, BP)[:, None]
c = block * BC + tl.arange(0, BC)[None, :]
p_ok = place < {tile.positions}
c_ok = c < C
p = {f"tl.minimum(place, {tile.positions - 1})" if tile.place else "place"}
ow = (p % GW) * {config["TW"]}
oh = ((p // GW) % GH) * {config["TH"]}
od = p // (GW * GH)
iw = ow * {geometry.stride[2]} - {geometry.padding[2]}
ih = oh * {geometry.stride[1]} - {geometry.padding[1]}
id = od * {geometry.stride[0]} - {geometry.padding[0]}
spread = tl.zeros((BP, 1), dtype=tl.int32) + c
w = packed_weight + spread""".splitlines()
    weights = _Weights(tile)
    if "x2" in tile.operands:
        body.append(f"bias = {_load(tile, 'x2 + spread')}.to(tl.float32)")
    if tile.is_excited:
        body += ["r = tl.arange(0, RP)[:, None]", "w1 = tl.load(x3 + r * C + c, mask=(r < R) & c_ok, other=0.0)"]
    if tile.holds_weights:
        body += [line for tap in range(tile.taps) for line in weights.load(tap)]
    body += [
        "wait(PDL)",  # constants were read before it
        "x = x0 + (n * XN + id * XD + ih * XH + iw * XW + c * XC)",
        "y = y0 + (n * YN + od * YD + oh * YH + ow * YW + c * YC)",
    ]
    if tile.has_scale:
        body.append(f"gate = {_load(tile, 'x4 + n * GN + spread * GC')}.to(tl.float32)")
    if tile.has_residual:
        body.append("residual = x3 + (n * RN + od * RD + oh * RH + ow * RW + c * RC)")
    if tile.is_summed:
        body.append("total = tl.zeros((BP, BC), dtype=tl.float32)")
    body += _planes(tile, weights)
    if tile.is_summed:
        body.append(_summary(tile))
    arguments = ", ".join([*pointers, *[f"{name}: tl.constexpr" for name in constants]])
    imports = [f"from {package}.kernels.common import activate, release, wait"]
    imports += [f"from {package}.kernels.depthwise import store_mean", f"from {package}.kernels.squeeze_excite import excite"]
    text = ["import triton", "import triton.language as tl", *imports, "", "", f"def depthwise({arguments}):", *[f"    {line}" for line in body], ""]
    return "\n".join(text)


class _Weights:
    """The lines that load the weights of a thread's channels: each once, or for every row again."""

    def __init__(self, tile: Tile) -> None:
        self._tile = tile
        self._held: set[int] = set()

    def load(self, tap: int) -> list[str]:
        if tap in self._held:
            return []
        if self._tile.holds_weights:
            self._held.add(tap)
        return [f"w_{tap} = {_load(self._tile, f'w + {tap} * C')}.to(tl.float32)"]


def _load(tile: Tile, pointer: str, border: Sequence[str] = ()) -> str:
    """What lies outside the image is zero; what belongs to no channel may be anything, as it is never stored."""
    if border:
        return f"tl.load({pointer}, mask={' & '.join([*border, *tile.channel])}, other=0.0)"
    return f"tl.load({pointer}{_mask(tile.channel)})"


def _mask(terms: Sequence[str]) -> str:
    return f", mask={' & '.join(terms)}" if terms else ""


def _planes(tile: Tile, weights: _Weights) -> list[str]:
    """All products, and the rows of outputs."""
    geometry = tile.geometry
    finish = [_finish(tile, t) for t in range(tile.config["TH"])]
    if tile.is_unrolled and geometry.kernel[0] == 1:
        return _unrolled(tile, weights, ["(id >= 0)", "(id < D)"] if geometry.padding[0] else [], set(), finish)
    all_sums = set(product(range(tile.config["TH"]), range(tile.config["TW"])))
    plane = _unrolled(tile, weights, ["inside"], all_sums, []) if tile.is_unrolled else _looped(tile)
    loop = [f"inside = (id + kd * {geometry.dilation[0]} >= 0) & (id + kd * {geometry.dilation[0]} < D)", *plane]
    loop += [f"x += {geometry.dilation[0]} * XD", f"w += {tile.taps} * C"]
    begin = [line for t in range(tile.config["TH"]) for line in _begin(tile, t, set())]
    return [*begin, f"for kd in range({geometry.kernel[0]}):", *[f"    {line}" for line in loop], *[line for lines in finish for line in lines]]


def _unrolled(tile: Tile, weights: _Weights, inside: list[str], begun: set[tuple[int, int]], finish: list[list[str]]) -> list[str]:
    """One plane of the kernel, row after row of the input: rows are loaded ahead, and rows of outputs finished when they are complete.

    inside: what must hold for the plane to be inside. begun: the sums that have a value. finish: the lines for each row of outputs, or none.
    """
    high, wide, kw = tile.high, tile.wide, tile.geometry.kernel[2]
    rows = high.offsets
    first = " + bias" if tile.begins_with_bias else ""

    def load(row: int) -> list[str]:
        border = [*inside, *high.inside(row)]
        return [f"x_{row}_{q} = {_load(tile, f'x + ({row} * XH + {q} * XW)', [*border, *wide.inside(q)])}" for q in wide.offsets]

    last = {t: row for row in rows for t, _ in high.pairs(row)}
    lines = [line for row in rows[: tile.ahead] for line in load(row)]
    for index, row in enumerate(rows):
        if index + tile.ahead < len(rows):
            lines += load(rows[index + tile.ahead])
        taps = [(t, u, k_h * kw + k_w, q) for q in wide.offsets for u, k_w in wide.pairs(q) for t, k_h in high.pairs(row)]
        lines += [line for tap in sorted({tap for _, _, tap, _ in taps}) for line in weights.load(tap)]
        lines += [f"v_{q} = x_{row}_{q}.to(tl.float32)" for q in wide.offsets]
        for t, u, tap, q in taps:
            lines.append(f"acc_{t}_{u} += v_{q} * w_{tap}" if (t, u) in begun else f"acc_{t}_{u} = v_{q} * w_{tap}{first}")
            begun.add((t, u))
        lines += [line for t, done in last.items() if done == row and finish for line in [*_begin(tile, t, begun), *finish[t]]]
    return lines + [line for t in range(len(finish)) if t not in last for line in [*_begin(tile, t, begun), *finish[t]]]


def _begin(tile: Tile, t: int, begun: set[tuple[int, int]]) -> list[str]:
    """The sums of a row of outputs without a product."""
    first = " + bias" if tile.begins_with_bias else ""
    return [f"acc_{t}_{u} = tl.zeros((BP, BC), dtype=tl.float32){first}" for u in range(tile.config["TW"]) if (t, u) not in begun]


def _looped(tile: Tile) -> list[str]:
    """One plane of a large kernel, TW == 1: a loop over its columns."""
    kh, kw, step = tile.geometry.kernel[1], tile.geometry.kernel[2], tile.geometry.dilation[2]
    lines = [f"column_ok = inside & (iw + kw * {step} >= 0) & (iw + kw * {step} < W)"]
    for row in tile.high.offsets:
        value = _load(tile, f"x + ({row} * XH + kw * {step} * XW)", ["column_ok", *tile.high.inside(row)])
        lines.append(f"x_{row} = {value}.to(tl.float32)")
    lines += [f"w_{k} = {_load(tile, f'w + ({k * kw} + kw) * C')}.to(tl.float32)" for k in range(kh)]
    lines += [f"acc_{t}_0 += x_{row} * w_{k}" for row in tile.high.offsets for t, k in tile.high.pairs(row)]
    return [f"for kw in range({kw}):", *[f"    {line}" for line in lines]]


def _finish(tile: Tile, t: int) -> list[str]:
    """One row of outputs, from its sums."""
    lines = []
    for u in range(tile.config["TW"]):
        is_output = [*tile.place, *tile.high.is_output(t), *tile.wide.is_output(u)]
        mask = _mask([*is_output, *tile.channel])
        lines.append(f"v = acc_{t}_{u}")
        if tile.has_scale:
            lines.append("v = v * gate + bias" if "x2" in tile.operands else "v *= gate")
        if tile.has_residual:
            lines.append(f"v += tl.load(residual + ({t} * RH + {u} * RW){mask}).to(tl.float32)")
        lines += ["v = activate(v, ACTIVATION, ALPHA, PRECISE)", f"tl.store(y + ({t} * YH + {u} * YW), v.to(y0.dtype.element_ty){mask})"]
        if tile.is_summed:
            lines.append(f"total += tl.where({' & '.join(is_output)}, v, 0.0)" if is_output else "total += v")
    return lines


def _summary(tile: Tile) -> str:
    """What is made of the sum over the outputs of the program."""
    where = "n, tile, block, C, BC, BLOCKS, TILES, OD * OH * OW"
    if tile.is_excited:
        bias1, bias2 = (name if name in tile.operands else "x3" for name in ("x4", "x6"))
        constants = f"R, RP, W2, GN, GC, {'x4' in tile.operands}, {'x6' in tile.operands}, HIDDEN_ACTIVATION, GATE, AT_ONCE, BO"
        return f"excite(tl.sum(total, axis=0), w1, scratch_partial, counters, {bias1}, packed_weight2, {bias2}, y1, {where}, {constants})"
    partial = "scratch_partial, counters" if "counters" in tile.operands else "y1, y1"
    return f"store_mean(tl.sum(total, axis=0), y1, {partial}, {where}, MN, MC)"
