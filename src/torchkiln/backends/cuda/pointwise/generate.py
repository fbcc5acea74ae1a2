"""generate: the kernel of a region, and what to try for it.

Two forms. "flat": one index over all elements, in the order of the first output; without divisions where all tensors agree on the layout.
"tile": tiles of the first output's fastest axis by that of a transposed input, so that both are read and written along their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..recipe import Config, Kernel, Launch, Recipe, TensorSpec
from .layout import Axes, broadcast_strides, merge_axes
from .regions import Region
from .rules import TYPES

_MULTIPROCESSORS = 132
_INT32 = 2**31 - 1
#: BLOCK and num_warps; BLOCK_X, BLOCK_Y and num_warps.
_FLAT_SHAPES = ((1024, 4), (256, 1), (512, 4), (2048, 8), (2048, 4), (512, 2), (128, 1), (4096, 8))
_TILE_SHAPES = ((64, 64, 4), (32, 64, 4), (64, 32, 4), (32, 32, 4), (32, 32, 2), (128, 32, 4), (32, 128, 4), (64, 64, 8), (128, 64, 8))


def pointwise_recipe(
    region: Region,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    capability: int,
    config: Config,
    offsets: Mapping[str, int] | None = None,
) -> Recipe:
    """The launch that computes a region; none where there is no element.

    Args:
        inputs: of ``region.inputs``, each in its own shape (which broadcasts to ``region.shape``), any strides.
        outputs: of ``region.outputs``, all of ``region.shape``, any strides that do not overlap.
        config: one of ``pointwise_configs``.
        offsets: operand ("x0", "y1") -> elements from the pointer to the tensor's first one, for views into a buffer: pointers must be
            16-byte aligned, so pass the buffer and the offset.
    """
    offsets = offsets or {}
    axes = region_axes(region, inputs, outputs)
    if axes.numel == 0:
        return Recipe(())
    names = [f"x{i}" for i in range(len(inputs))] + [f"y{i}" for i in range(len(outputs))]
    by_name = dict(zip(names[len(inputs) :] + names[: len(inputs)], axes.strides, strict=True))
    specs = dict(zip(names, [*inputs, *outputs], strict=True))
    writer = (TileIndex if config["form"] == "tile" else FlatIndex)(axes, config)
    wide = axes.numel + writer.padding > _INT32 or any(spec.span + offsets.get(n, 0) + writer.padding > _INT32 for n, spec in specs.items())
    body = writer.start("tl.int64" if wide else "")
    for index, name in enumerate(names[: len(inputs)]):
        load = f"tl.load({_place(writer, name, by_name[name], offsets)}{_mask(writer, by_name[name])})"
        body.append(f"a{index} = {load}" + (".to(tl.float32)" if TYPES[specs[name].dtype] in ("float16", "bfloat16") else ""))
    body.extend(region.program.lines)
    position = {node: index for index, node in enumerate(region.nodes)}
    for index, node in enumerate(region.outputs):
        name = f"y{index}"
        value = f"v{position[node]}.to(tl.{TYPES[specs[name].dtype]})"
        body.append(f"tl.store({_place(writer, name, by_name[name], offsets)}, {value}{_mask(writer, by_name[name])})")
    constants = [*writer.constants, ("PDL", capability >= 90)]
    source = kernel_source("pointwise", names, [name for name, _ in constants], region.program.functions, body)
    kernel = Kernel("pointwise", tuple(specs[n].dtype for n in names), tuple(constants), config["num_warps"], 2, source)
    # Programs take different elements of the region, and each reads an operand of an output's strides only where it writes: both lie at the same
    # addresses for the same element. No element is computed from another, so it is read before it is written whatever thread does either.
    in_place = tuple(
        (x, y)
        for x in names[: len(inputs)]
        for y in names[len(inputs) :]
        if by_name[x] == by_name[y] and specs[x].dtype.itemsize == specs[y].dtype.itemsize and offsets.get(x, 0) == offsets.get(y, 0)
    )
    return Recipe((Launch(kernel, (writer.programs, 1, 1), tuple(names)),), in_place=in_place)


def pointwise_configs(region: Region, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], level: int) -> list[Config]:
    """What to try, best guess first; ``level`` 0 to 5."""
    axes = region_axes(region, inputs, outputs)
    flat = flat_configs(axes.numel, max([s.dtype.itemsize for s in outputs] + [s.dtype.itemsize for s in inputs if s.numel > 1]), level)
    tiles: list[Config] = []
    if (y := axes.transposed_axis) is not None:
        for config in (_fitted(axes.sizes[-1], axes.sizes[y], *tile) for tile in _TILE_SHAPES):
            if config not in tiles:
                tiles.append(config)
        if axes.numel <= 64 * 64 * _MULTIPROCESSORS:
            tiles.sort(key=lambda c: c["BLOCK_X"] * c["BLOCK_Y"])
    if not tiles:
        return flat
    if axes.sizes[-1] < 8:  # rows of three channels: a warp's scattered reads still share cache lines
        return flat[:1] if level <= 0 else [flat[0], *tiles[: 2 * level], *flat[1:level]]
    return tiles[:1] if level <= 0 else [tiles[0], flat[0], *tiles[1 : 2 * level + 1], *flat[1:level]]


def flat_configs(numel: int, itemsize: int, level: int) -> list[Config]:
    """Blocks for a kernel of one index: enough of them for every multiprocessor, and 16-byte accesses where there are many."""
    vector = max(16 // itemsize, 2)
    best = 32 * vector
    while best < 4 * 32 * vector and numel // (best * 2) >= 4 * _MULTIPROCESSORS:
        best *= 2
    if numel <= 32 * vector * _MULTIPROCESSORS:
        best = 128 if numel <= 128 * _MULTIPROCESSORS else max(128, best // 2)
    guess: Config = {"form": "flat", "BLOCK": best, "num_warps": max(1, min(8, best // (32 * vector)))}
    configs = [guess]
    for block, warps in _FLAT_SHAPES:
        config: Config = {"form": "flat", "BLOCK": block, "num_warps": warps}
        if config != guess and block <= max(2 * numel, 128):
            configs.append(config)
    return configs[: 1 if level <= 0 else 2 * level + 1]


def region_axes(region: Region, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Axes:
    """The axes of a region's kernel; the outputs' strides first, then the inputs'."""
    strides = [broadcast_strides(spec, region.shape) for spec in outputs]
    for spec, (_, trailing) in zip(inputs, region.program.inputs, strict=True):
        placed = TensorSpec(spec.shape + (1,) * trailing, spec.strides + (0,) * trailing, spec.dtype)
        strides.append(broadcast_strides(placed, region.shape))
    return merge_axes(region.shape, strides)


def kernel_source(name: str, pointers: Sequence[str], constants: Sequence[str], functions: Sequence[str], body: Sequence[str]) -> str:
    """The text of a kernel that first waits for the ones before."""
    package = __package__.rsplit(".", 1)[0]
    imports = ["import triton", "import triton.language as tl", f"from {package}.kernels.common import begin"]
    if functions:
        imports.append(f"from {__package__}.functions import {', '.join(functions)}")
    arguments = ", ".join([*pointers, *[f"{c}: tl.constexpr" for c in constants]])
    return "\n".join([*imports, "", "", f"def {name}({arguments}):", "    begin(PDL)", *[f"    {line}" for line in body], ""])


def _place(writer: Any, name: str, strides: Sequence[int], offsets: Mapping[str, int]) -> str:
    """Pointers to a tensor's elements, and the strides as constants of the kernel."""
    terms = [name]
    if offsets.get(name, 0):
        writer.constants.append((f"{name}_offset", offsets[name]))
        terms.append(f"{name}_offset")
    first, index = writer.merged(strides)
    for axis in range(first, len(strides)):
        if strides[axis]:
            writer.constants.append((f"{name}_stride{axis}", strides[axis]))
            terms.append(f"{index if axis == first else f'c{axis}'} * {name}_stride{axis}")
    return terms[0] if len(terms) == 1 else f"{terms[0]} + ({' + '.join(terms[1:])})"


def _mask(writer: Any, strides: Sequence[int]) -> str:
    mask = writer.mask(strides)
    return f", mask={mask}" if mask else ""


class FlatIndex:
    """One index, split into coordinates ``c0``, ``c1``, ... of the axes."""

    def __init__(self, axes: Axes, config: Config) -> None:
        self.axes, self.block = axes, config["BLOCK"]
        self.padding, self.programs = self.block, -(-axes.numel // self.block)
        self.constants: list[tuple[str, Any]] = [("COUNT", axes.numel), ("BLOCK", self.block)]

    def start(self, index_type: str) -> list[str]:
        program = f"tl.program_id(0).to({index_type})" if index_type else "tl.program_id(0)"
        lines = [f"i = {program} * BLOCK + tl.arange(0, BLOCK)"]
        if self.axes.numel % self.block:
            lines.append("inside = i < COUNT")
        rest = "i"
        for axis in range(len(self.axes.sizes) - 1, 0, -1):
            self.constants.append((f"SIZE{axis}", self.axes.sizes[axis]))
            lines += [f"c{axis} = {rest} % SIZE{axis}", f"i{axis} = {rest} // SIZE{axis}"]
            rest = f"i{axis}"
        return [*lines, f"c0 = {rest}"] if self.axes.sizes else lines

    def merged(self, strides: Sequence[int]) -> tuple[int, str]:
        """The last of the leading axes that are one for this tensor, and the index over them: a dense tensor needs no coordinates."""
        sizes, axis = self.axes.sizes, 0
        while axis + 1 < len(sizes) and strides[axis] == strides[axis + 1] * sizes[axis + 1]:
            axis += 1
        return axis, "i" if axis + 1 >= len(sizes) else f"i{axis + 1}"

    def mask(self, strides: Sequence[int]) -> str:
        """Where a tensor may be touched; a scalar always."""
        if any(strides):
            return "inside" if self.axes.numel % self.block else ""
        return ""


class TileIndex:
    """Tiles of the last axis by the transposed one; the others are split off the program's number."""

    def __init__(self, axes: Axes, config: Config) -> None:
        transposed = axes.transposed_axis
        assert transposed is not None, "tiles are for transposed tensors"
        self.axes, self.y, self.x = axes, transposed, len(axes.sizes) - 1
        self.block_x, self.block_y = config["BLOCK_X"], config["BLOCK_Y"]
        self.tiles_x, self.tiles_y = -(-axes.sizes[self.x] // self.block_x), -(-axes.sizes[self.y] // self.block_y)
        self.programs = axes.numel // (axes.sizes[self.x] * axes.sizes[self.y]) * self.tiles_x * self.tiles_y
        self.padding = max(self.block_x * s[self.x] + self.block_y * s[self.y] for s in axes.strides)
        self.constants: list[tuple[str, Any]] = [("BLOCK_X", self.block_x), ("BLOCK_Y", self.block_y)]

    def start(self, index_type: str) -> list[str]:
        lines = [f"p = tl.program_id(0).to({index_type})" if index_type else "p = tl.program_id(0)"]
        places = {self.x: ("X", "[None, :]", self.tiles_x), self.y: ("Y", "[:, None]", self.tiles_y)}
        for axis in [self.x, self.y] + [a for a in range(self.x - 1, -1, -1) if a != self.y]:
            size = self.axes.sizes[axis]
            self.constants.append((f"SIZE{axis}", size))
            if axis not in places:
                lines += [f"c{axis} = p % SIZE{axis}", f"p = p // SIZE{axis}"]
                continue
            letter, shape, tiles = places[axis]
            self.constants.append((f"TILES_{letter}", tiles))
            block = f"BLOCK_{letter}"
            lines += [f"c{axis} = (p % TILES_{letter}) * {block} + tl.arange(0, {block}){shape}", f"p = p // TILES_{letter}"]
            lines.append(f"inside_{letter.lower()} = c{axis} < SIZE{axis}")
        return lines

    def merged(self, strides: Sequence[int]) -> tuple[int, str]:
        return 0, "c0"

    def mask(self, strides: Sequence[int]) -> str:
        return " & ".join(text for text, axis in (("inside_x", self.x), ("inside_y", self.y)) if strides[axis])


def _fitted(width: int, height: int, block_x: int, block_y: int, warps: int) -> Config:
    """A tile that is longer along one axis where the other is shorter than the tile (three channels)."""
    x, y = min(block_x, _power(width)), min(block_y, _power(height))
    return {
        "form": "tile",
        "BLOCK_X": min(x * (block_y // y), _power(width), 1024),
        "BLOCK_Y": min(y * (block_x // x), _power(height), 1024),
        "num_warps": warps,
    }


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
