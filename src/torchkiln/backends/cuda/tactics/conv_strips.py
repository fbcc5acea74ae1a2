"""conv_strips: 2-D and 3-D convolutions of stride 1 in half precision on Hopper, whose input the tensor memory accelerator brings as it lies, each
row once for all taps of a column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..recipe import ALIGNMENT_BYTES, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import ConvGemm
from .conv_geometry import Geometry, Triple, conv_geometry
from .moments import combine_launch
from .multiprocessor import MEMORY_BYTES, REGISTERS, SHARED_BYTES
from .spread import spread
from .strips import Strips, best_rows


@dataclass(frozen=True)
class Volume:
    """The convolution as the kernel sees it: images of planes of rows. Without taps across planes, a batch of planes is one image, so that a tile may
    reach over several.

    Attributes:
        x_strides, y_strides, residual_strides: of [N, C, D, H, W].
    """

    images: int
    spatial: Triple
    out_spatial: Triple
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    residual_strides: tuple[int, ...]


class ConvStrips:
    """An ungrouped convolution of stride 1 with bias, residual and activation in one launch; for "conv_moments" another, which combines the moments
    of its strips. x has its channels innermost and other strides of multiples of 16 bytes, y and the residual any strides."""

    name = "conv_strips"
    ops: tuple[str, ...] = ("conv", "conv_moments")

    def reject(self, problem: Problem) -> str:
        if problem.capability < 90:
            return "needs TMA (compute capability 9.0)"
        reason = ConvGemm().reject(problem)
        if reason:
            return reason
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        if len(x.shape) == 3:
            return "takes 2-D and 3-D convolutions, not 1-D"
        geometry = conv_geometry(problem)
        if geometry.groups > 1 or not _CHANNELS[0] <= geometry.input_channels <= _CHANNELS[1]:
            return f"takes {_CHANNELS[0]} to {_CHANNELS[1]} input channels, ungrouped"
        if geometry.stride != (1, 1, 1) or geometry.dilation != (1, 1, 1):
            return "takes stride 1 and dilation 1"
        if not 2 <= geometry.kernel[1] <= _MAX_TAPS:
            return f"takes 2 to {_MAX_TAPS} taps in a column"
        if problem.inputs[4] is not None:
            return "takes no scale"
        if x.dtype != weight.dtype or x.dtype not in (torch.float16, torch.bfloat16):
            return f"multiplies fp16 and bf16, not {x.dtype} by {weight.dtype}"
        if problem.outputs[0].numel == 0 or x.numel == 0:
            return "an empty tensor"
        if not _aligned(x):
            return f"reads channels that lie next to each other, and positions that are multiples of {ALIGNMENT_BYTES} bytes apart"
        if not any(_candidates(problem, geometry)):
            return "weights and sums that fit no multiprocessor"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry, volume = conv_geometry(problem), _volume(problem)
        if level < 5 and geometry.rows < 64 * 4 * problem.multiprocessors:
            return []  # a program has a few steps: to fill its sums and make the descriptors takes longer than it saves
        ranked = sorted(_candidates(problem, geometry), key=lambda config: _estimate(problem, geometry, volume, config))
        return spread(ranked, ("TD", "TW", "BN", "turned", "resident"), 8)[: (1, 3, 8, 16, 32, 64)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry, volume = conv_geometry(problem), _volume(problem)
        y = problem.outputs[0]
        has_bias, has_residual = problem.inputs[2] is not None, problem.inputs[3] is not None
        moments = problem.op == "conv_moments"
        blocks, tail = _blocks(geometry, config)
        strips = _strips(problem, geometry, volume, config)
        programs = strips.programs(config["rows"])
        boxes = _aligned(y) and y.dtype.itemsize == 2
        x_strides = _filled(volume.x_strides, volume.images, volume.spatial)
        y_strides = _filled(volume.y_strides, volume.images, volume.out_spatial) if boxes else volume.y_strides
        axes = ("N", "C", "D", "H", "W")
        constants = {
            "N": volume.images,
            **dict(zip(("D", "H", "W"), volume.spatial, strict=True)),
            "CI": geometry.input_channels,
            "CO": geometry.output_channels,
            **dict(zip(("OD", "OH", "OW"), volume.out_spatial, strict=True)),
            **dict(zip(("KD", "KH", "KW"), geometry.kernel, strict=True)),
            **dict(zip(("PD", "PH", "PW"), geometry.padding, strict=True)),
            **{f"X{axis}": stride for axis, stride in zip(axes, x_strides, strict=True) if axis != "C"},
            **{f"Y{axis}": stride for axis, stride in zip(axes, y_strides, strict=True)},
            **{f"R{axis}": stride for axis, stride in zip(axes, volume.residual_strides, strict=True)},
            "HAS_BIAS": has_bias,
            "HAS_RESIDUAL": has_residual,
            "MOMENTS": moments,
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "TD": config["TD"],
            "TW": config["TW"],
            "BN": config["BN"],
            "BK": config["BK"],
            "BLOCKS": blocks,
            "TAIL": tail,
            "ROWS": config["rows"],
            "PROGRAMS": programs,
            "TURNED": config["turned"],
            "RESIDENT": config["resident"],
            "BOXES": boxes,
            "STAGES": config["stages"],
            "PDL": problem.capability >= 90,
        }
        names = ("x0", "packed.weight", "x2" if has_bias else "x0", "x3" if has_residual else "x0", "y0", "scratch.parts" if moments else "x0")
        dtypes = {f"x{i}": spec.dtype for i, spec in enumerate(problem.inputs) if spec is not None}
        dtypes |= {"packed.weight": dtypes["x1"], "y0": y.dtype, "scratch.parts": torch.float32}
        pointers = tuple(dtypes[name] for name in names)
        kernel = Kernel("conv_strips:conv_strips", pointers, tuple(constants.items()), config["warps"], config["stages"])
        launches = [Launch(kernel, (programs, _tiles_n(geometry, config), 1), names)]
        scratch: dict[str, TensorSpec] = {}
        counters = 0
        if moments:
            parts = strips.count(config["rows"]) // volume.images
            scratch["parts"] = TensorSpec.contiguous((volume.images, parts, 3, geometry.output_channels), torch.float32)
            combine, counters = combine_launch(problem, parts, scratch)
            launches.append(combine)
        packed = Packed(partial(pack_strips, width=config["BK"], blocks=blocks, tail=tail, columns=config["BN"]), ("x1",))
        return Recipe(tuple(launches), scratch, {"weight": packed}, counters)


def pack_strips(weight: torch.Tensor, width: int, blocks: int, tail: int, columns: int) -> torch.Tensor:
    """[CO, CI, (KD,) KH, KW] -> [KD, KW, blocks, KH, columns, width], then [KD, KW, KH, columns, tail], flat; zeros where there are no channels.

    Args:
        columns: CO is rounded up to a multiple of it.
    """
    taps = weight if weight.dim() == 5 else weight.unsqueeze(2)
    filled = torch.nn.functional.pad(taps, (*(0,) * 6, 0, blocks * width + tail - taps.shape[1], 0, -taps.shape[0] % columns))
    ordered = filled.permute(2, 4, 3, 0, 1)  # [KD, KW, KH, columns, channels]
    main = ordered[..., : blocks * width].unflatten(4, (blocks, width)).permute(0, 1, 4, 2, 3, 5)
    return torch.cat((main.flatten(), ordered[..., blocks * width :].flatten()))


#: Input channels; taps along a column: there are as many sums.
_CHANNELS = (16, 256)
_MAX_TAPS = 5
#: Boxes of a step whose weights are resident: all are in one turn of the loop.
_MAX_BOXES = 12


def _aligned(spec: TensorSpec) -> bool:
    """Whether the accelerator can walk it: channels next to each other, and other strides multiples of ALIGNMENT_BYTES."""
    step = ALIGNMENT_BYTES // spec.dtype.itemsize
    others = [stride for dim, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True)) if dim != 1 and size > 1]
    return (spec.shape[1] == 1 or spec.strides[1] == 1) and all(stride > 0 and stride % step == 0 for stride in others)


def _volume(problem: Problem) -> Volume:
    geometry = conv_geometry(problem)
    images, spatial, out_spatial = geometry.batch, geometry.spatial, geometry.out_spatial
    strides = (geometry.x_strides, geometry.y_strides, geometry.residual_strides)
    # Moments are of an image.
    if problem.op == "conv" and (spatial[0], geometry.kernel[0], geometry.padding[0]) == (1, 1, 0):
        images, spatial, out_spatial = 1, (images, *spatial[1:]), (images, *out_spatial[1:])
        strides = tuple((0, own[1], own[0], *own[3:]) for own in strides)  # type: ignore[assignment]
    return Volume(images, spatial, out_spatial, *strides)


def _filled(strides: tuple[int, ...], images: int, spatial: Triple) -> tuple[int, ...]:
    """The strides of [N, C, D, H, W], those of dimensions of one element too as the accelerator takes them."""
    sizes = (images, 1, *spatial)
    reach = 8 * -(-max(size * stride for size, stride in zip(sizes, strides, strict=True)) // 8)
    return tuple(stride if size > 1 else reach for size, stride in zip(sizes, strides, strict=True))


def _blocks(geometry: Geometry, config: Config) -> tuple[int, int]:
    """Boxes of BK channels, and the width of a narrower one behind them, or 0."""
    blocks, rest = divmod(geometry.input_channels, config["BK"])
    tail = max(16, 1 << (rest - 1).bit_length()) if rest else 0
    return (blocks, tail) if config["resident"] and blocks and tail < config["BK"] else (blocks + (rest > 0), 0)


def _depth(geometry: Geometry, config: Config) -> int:
    """Channels with the zeros behind them."""
    blocks, tail = _blocks(geometry, config)
    return blocks * config["BK"] + tail


def _boxes(geometry: Geometry, config: Config) -> int:
    """Boxes of the input in a step."""
    blocks, tail = _blocks(geometry, config)
    return geometry.kernel[0] * geometry.kernel[2] * (blocks + (tail > 0))


def _tiles_n(geometry: Geometry, config: Config) -> int:
    return -(-geometry.output_channels // config["BN"])


#: Positions, BN, warps, turned, resident. A group of four warps multiplies 64 rows at a time; products that follow one another are given to all warps
#: by rows, so with two groups the rows are 128, or the products of a turn independent (not resident).
_TILES = (
    (64, 16, 4, False, True),
    (64, 32, 4, False, True),
    (64, 64, 4, False, True),
    (128, 16, 4, False, True),
    (128, 32, 4, False, True),
    (128, 32, 8, False, True),
    (128, 64, 8, False, True),
    (256, 32, 8, False, True),
    (32, 64, 4, True, True),
    (64, 64, 4, True, True),
    (128, 64, 4, True, True),
    (32, 128, 8, True, True),
    (64, 128, 8, True, True),
    (128, 32, 4, False, False),
    (128, 64, 8, False, False),
    (256, 32, 8, False, False),
    (128, 64, 4, True, False),
    (128, 64, 8, True, False),
    (256, 64, 8, True, False),
    (128, 128, 8, True, False),
)
#: What a program takes of shared memory beside its tiles: the system's KiB, barriers.
_PROGRAM_BYTES = 1024 + 1024
#: Of a thread: beside its sums, and the most that sums may take before the rest is spilled.
_OTHER_REGISTERS = 60
_SUM_REGISTERS = 192
#: What rows of several planes that go through registers may take beside.
_READ_REGISTERS = 64


def _candidates(problem: Problem, geometry: Geometry) -> Iterator[Config]:
    """What fits, with two shapes of each tile and two heights of strips."""
    volume = _volume(problem)
    size, kernel = problem.outputs[0].dtype.itemsize, geometry.kernel
    for bm, bn, warps, turned, resident in _TILES:
        sums = kernel[1] * bm * bn // (32 * warps)
        beside = bm * bn // (32 * warps) if problem.inputs[3] is not None else 0
        if sums + beside > _SUM_REGISTERS or (bn > (64 if turned else 16) and bn >= 2 * geometry.output_channels):
            continue
        for td, tw in _shapes(problem, volume, bm):
            for bk in (16, 32, 64):
                if bk > 16 and bk >= 2 * geometry.input_channels:
                    continue
                base = {"TD": td, "TW": tw, "BN": bn, "BK": bk, "warps": warps, "turned": turned, "resident": resident}
                depth, boxes = _depth(geometry, base), _boxes(geometry, base)
                taps = kernel[0] * kernel[1] * kernel[2]
                # Rows of several planes go through registers, unless the sums are turned.
                read = kernel[0] * kernel[2] * bm * depth // (64 * warps) if td > 1 and not turned else 0
                if (resident and boxes > _MAX_BOXES) or (read and not resident) or read > _READ_REGISTERS:
                    continue
                held = bm * bn * size + _PROGRAM_BYTES + (taps * depth * bn * 2 if resident else 0)
                stage = kernel[0] * kernel[2] * bm * depth * 2 if resident else (bm + kernel[1] * bn) * bk * 2
                if resident and problem.inputs[3] is not None:
                    stage += bm * bn * size
                # Of what goes through registers there is a stage less in shared memory.
                fewer = read > 0
                for programs in (1, 2, 3, 4):
                    if programs * warps * 32 * (sums + _OTHER_REGISTERS) > REGISTERS:
                        continue
                    most = min((SHARED_BYTES // programs - held) // stage, 6) + fewer
                    with_programs = {**base, "programs": programs}
                    options = sorted({most, min(most, 3)} if resident else {most, most - 1}, reverse=True)
                    stages = [each for each in options if each >= 2 + fewer]
                    if stages:
                        heights = best_rows(_strips(problem, geometry, volume, with_programs))
                        yield from ({**with_programs, "rows": rows, "stages": each} for rows in heights for each in stages)


def _shapes(problem: Problem, volume: Volume, bm: int) -> list[tuple[int, int]]:
    """The two ways to shape tiles of ``bm`` positions, planes by positions of a row, that waste least."""
    depth, _, width = volume.out_spatial
    several = problem.op == "conv" or volume.images == 1 or depth > 1
    legal = [(bm // tw, tw) for tw in (8, 16, 32, 64, 128, 256) if tw == bm or (tw < bm and several)]
    fitting = [(td, tw) for td, tw in legal if (td == 1 or td < 2 * depth) and (tw == 8 or tw < 2 * width)]
    return sorted(fitting or legal[-1:], key=lambda shape: (-(-depth // shape[0]) * -(-width // shape[1]), shape[0]))[:2]


def _strips(problem: Problem, geometry: Geometry, volume: Volume, config: Config) -> Strips:
    depth, height, width = volume.out_spatial
    across = volume.images * -(-depth // config["TD"]) * -(-width // config["TW"])
    return Strips(height, across, _tiles_n(geometry, config), problem.multiprocessors * config["programs"], geometry.kernel[1] - 1)


def _estimate(problem: Problem, geometry: Geometry, volume: Volume, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    bm, bn, resident = config["TD"] * config["TW"], config["BN"], config["programs"]
    taps, depth, boxes = geometry.taps, _depth(geometry, config), _boxes(geometry, config)
    # A product of 64 rows by 16 elements takes a cycle for every two columns, if shared memory gives both operands so fast.
    rows, columns = (bn, bm) if config["turned"] else (bm, bn)
    threads_read = config["TD"] > 1 and not config["turned"]
    products = max(rows // 64, 1) * (depth // 16) * taps * max(columns / 2, (0 if threads_read else 16) + columns / 4)
    moments = problem.op == "conv_moments"
    epilogue = bm * bn * (8 + geometry.kernel[1] + (8 if moments else 0) + (6 if problem.inputs[3] is not None else 0)) / 128
    # The accelerator brings some 40 bytes a cycle, but a row of a box takes it two.
    lines = bm + (0 if config["resident"] else geometry.kernel[1] * bn)
    feed = boxes * lines * max(depth * geometry.kernel[0] * geometry.kernel[2] / boxes * 2 / 40, 2)
    groups = resident * config["warps"] // 4
    # A group of warps waits for its own products, those of one box and row of taps after the other; another one fills that, for the most part.
    waits = (60 if groups == 1 else 20) * boxes * geometry.kernel[1]
    alone = max(products, feed) + waits + epilogue + 400
    cycles = _strips(problem, geometry, volume, config).steps(config["rows"]) * max(alone, resident * max(products, feed, epilogue))
    moved = sum(spec.size_bytes for spec in (problem.inputs[0], problem.inputs[3], problem.outputs[0]) if spec is not None)
    return max(cycles, moved / (MEMORY_BYTES * problem.multiprocessors)) + 0.2 * cycles - config["stages"]


TACTICS: tuple[Tactic, ...] = (ConvStrips(),)
