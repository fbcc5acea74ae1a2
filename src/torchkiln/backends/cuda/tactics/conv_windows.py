"""conv_windows: first convolutions (few input channels) in half precision on Hopper: the image is padded as for conv_rows, and the tensor memory
accelerator cuts each output's window out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import ConvGemm
from .conv_geometry import Geometry, conv_geometry
from .multiprocessor import MEMORY_BYTES, REGISTERS, SHARED_BYTES
from .padded_image import pad_launch
from .spread import spread
from .strips import Strips, best_rows


@dataclass(frozen=True)
class Image:
    """How the padded image lies, [N, rows, columns, fold, channels]: ``fold`` neighbouring rows of the input are one, column by column, so that a
    window has ``fold`` rows of taps.

    Attributes:
        channels: of a column, zeros behind the input's.
        top: rows of zeros in front, a multiple of ``fold``.
        taps: rows that an output reads.
        stride: rows from an output row to the next.
        window: elements that an output reads of a row; ``step``: from one output's to the next.
    """

    fold: int
    channels: int
    top: int
    rows: int
    columns: int
    taps: int
    stride: int
    window: int
    step: int


class ConvWindows:
    """A 2-D convolution of 1 to 8 input channels with bias and activation: pad_channels, then conv_windows. x may have any strides and float dtype, y
    any strides."""

    name = "conv_windows"
    ops: tuple[str, ...] = ("conv",)

    def reject(self, problem: Problem) -> str:
        if problem.capability < 90:
            return "needs TMA (compute capability 9.0)"
        reason = ConvGemm().reject(problem)
        if reason:
            return reason
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        if len(x.shape) != 4:
            return f"takes 2-D convolutions, not {len(x.shape) - 2}-D"
        geometry = conv_geometry(problem)
        if geometry.groups > 1 or not 1 <= geometry.input_channels <= _MAX_CHANNELS:
            return f"takes 1 to {_MAX_CHANNELS} input channels, ungrouped"
        if geometry.kernel[2] == 1 or geometry.dilation != (1, 1, 1):
            return "takes kernels with several taps in a row, and dilation 1"
        if problem.inputs[3] is not None or problem.inputs[4] is not None:
            return "takes no residual and no scale"
        if weight.dtype not in (torch.float16, torch.bfloat16) or not x.dtype.is_floating_point:
            return f"multiplies in fp16 and bf16, not {x.dtype} by {weight.dtype}"
        if geometry.out_spatial[2] < _MIN_WIDTH:
            return f"rows of less than {_MIN_WIDTH} outputs"
        if not _images(geometry):
            return f"windows of more than {_MAX_WINDOW} elements, or an image of more than 2**31"
        if not any(_candidates(problem, geometry)):
            return "weights and sums that fit no multiprocessor"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        geometry = conv_geometry(problem)
        if level < 5 and geometry.batch * geometry.out_spatial[1] * -(-geometry.out_spatial[2] // 64) < 4 * problem.multiprocessors:
            return []  # a program has a few steps: to fill its sums and make the descriptor takes longer than it saves
        ranked = sorted(_candidates(problem, geometry), key=lambda config: _estimate(problem, geometry, config))
        return spread(ranked, ("BM", "BN", "fold", "programs"), 6)[: (1, 3, 8, 16, 32, 64)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = conv_geometry(problem)
        _, weight, bias = problem.inputs[:3]
        y = problem.outputs[0]
        assert weight is not None
        image = _image(geometry, config["fold"])
        bn = config["BN"]
        width, height = geometry.out_spatial[2], geometry.out_spatial[1]
        programs = _strips(problem, geometry, image, config).programs(config["rows"])
        elements = _elements(geometry, image)
        constants = {
            "BATCH": geometry.batch,
            "WINDOWS": (elements - image.window) // image.step + 1,
            "STEP": image.step,
            "HP": image.rows,
            "LINE": image.columns // geometry.stride[2],
            "CO": geometry.output_channels,
            "OH": height,
            "OW": width,
            "KH": image.taps,
            "SH": image.stride,
            **{f"Y{axis}": stride for axis, stride in zip("NCDHW", geometry.y_strides, strict=True) if axis != "D"},
            "HAS_BIAS": bias is not None,
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "BM": config["BM"],
            "BN": bn,
            "KROW": image.window,
            "ROWS": config["rows"],
            "PROGRAMS": programs,
            "STAGES": config["stages"],
            "PDL": problem.capability >= 90,
        }
        pointers = (weight.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype, y.dtype)
        kernel = Kernel("conv_windows:conv_windows", pointers, tuple(constants.items()), config["warps"], config["stages"])
        operands = ("scratch.image", "packed.weight", "packed.weight" if bias is None else "x2", "y0")
        windows = Launch(kernel, (programs, -(-geometry.output_channels // bn), 1), operands)
        packed = Packed(partial(pack_windows, image=image, shift=image.top - geometry.padding[1], block=bn), ("x1",))
        scratch = {"image": TensorSpec.contiguous((elements,), weight.dtype)}
        return Recipe((_pad(problem, geometry, image, weight.dtype), windows), scratch, {"weight": packed})


def pack_windows(weight: torch.Tensor, image: Image, shift: int, block: int) -> torch.Tensor:
    """[CO, CI, KH, KW] -> [taps, columns, window] for ``image``, zeros where there is no tap. A window is (tap of the row, folded row, channel).

    Args:
        shift: rows of zeros in front of the image that the convolution does not have: the first tap is that much further down.
        block: CO is rounded up to a multiple of it.
    """
    output_channels, input_channels, height, _ = weight.shape
    below = image.taps * image.fold - shift - height
    filled = torch.nn.functional.pad(weight, (0, 0, shift, below, 0, image.channels - input_channels, 0, -output_channels % block))
    folded = filled.unflatten(2, (image.taps, image.fold)).permute(2, 0, 4, 3, 1).flatten(2)  # [taps, columns, KW * fold * channels]
    return torch.nn.functional.pad(folded, (0, image.window - folded.shape[2])).contiguous()


def _pad(problem: Problem, geometry: Geometry, image: Image, to: torch.dtype) -> Launch:
    """The launch that makes the image. To it, folded rows are depth, columns are height, and the rows within a folded one are width."""
    _, height, width = geometry.spatial
    by_n, by_c, _, by_h, by_w = geometry.x_strides
    sizes, padded = (height // image.fold, width, image.fold), (image.rows, image.columns, image.fold)
    padding = (image.top // image.fold, geometry.padding[2], 0)
    return pad_launch(problem, to, image.channels, sizes, padded, padding, (by_n, by_c, image.fold * by_h, by_w, by_h))


_MAX_CHANNELS = 8
#: A tile has at least 64 outputs of a row.
_MIN_WIDTH = 32
#: Elements of a window: 128 bytes are the longest row that the accelerator brings at once.
_MAX_WINDOW = 64


def _image(geometry: Geometry, fold: int) -> Image:
    """With ``fold``, a power of two, rows in one."""
    stride, padding = geometry.stride, geometry.padding
    channels = 1
    while channels < geometry.input_channels or stride[2] * fold * channels % 8:  # windows begin at multiples of 16 bytes
        channels *= 2
    top = -(-padding[1] // fold) * fold
    taps = -(-(geometry.kernel[1] + top - padding[1]) // fold)
    window = 16
    while window < geometry.kernel[2] * fold * channels:
        window *= 2
    # Up to the end of the last output's window; all rows begin with a window.
    columns = (geometry.out_spatial[2] - 1) * stride[2] + -(-window // (fold * channels))
    columns += -columns % stride[2]
    rows = (geometry.out_spatial[1] - 1) * (stride[1] // fold) + taps
    return Image(fold, channels, top, rows, columns, taps, stride[1] // fold, window, stride[2] * fold * channels)


def _images(geometry: Geometry) -> list[Image]:
    """The ways to fold rows: as many as divide the stride and the input's height."""
    _, height, _ = geometry.spatial
    found = []
    for fold in (1, 2, 4, 8):
        if geometry.stride[1] % fold == 0 and height % fold == 0:
            image = _image(geometry, fold)
            if image.window <= _MAX_WINDOW and _elements(geometry, image) <= MAX_ELEMENTS:
                found.append(image)
    return found


def _elements(geometry: Geometry, image: Image) -> int:
    return geometry.batch * image.rows * image.columns * image.fold * image.channels


def _deep(image: Image) -> int:
    """Output rows that a step adds to: a program has so many sums."""
    return -(-image.taps // image.stride)


#: BM, BN, warps.
_TILES = (
    (64, 16, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 128, 4),
    (64, 128, 8),
    (128, 16, 4),
    (128, 32, 4),
    (128, 32, 8),
    (128, 64, 4),
    (128, 64, 8),
    (128, 128, 8),
    (256, 16, 8),
    (256, 32, 8),
)
#: What a program takes of shared memory beside its tiles: the system's KiB, barriers.
_PROGRAM_BYTES = 1024 + 512
#: Of a thread: beside its sums, and the most that sums may take before the rest is spilled.
_OTHER_REGISTERS = 56
_SUM_REGISTERS = 160


def _candidates(problem: Problem, geometry: Geometry) -> Iterator[Config]:
    """What fits, with two heights of strips each."""
    size = problem.outputs[0].dtype.itemsize
    for image in _images(geometry):
        for bm, bn, warps in _TILES:
            if (bm > 64 and bm >= 2 * geometry.out_spatial[2]) or (bn > 16 and bn >= 2 * geometry.output_channels):
                continue
            sums = _deep(image) * bm * bn // (32 * warps)
            stage = min(image.stride, image.taps) * bm * image.window * 2
            held = image.taps * bn * image.window * 2 + bm * bn * size + _PROGRAM_BYTES
            for programs in (1, 2, 3, 4):
                if sums > _SUM_REGISTERS or programs * warps * 32 * (sums + _OTHER_REGISTERS) > REGISTERS:
                    continue
                most = min((SHARED_BYTES // programs - held) // stage, 6)
                base = {"BM": bm, "BN": bn, "warps": warps, "fold": image.fold, "programs": programs}
                for rows in best_rows(_strips(problem, geometry, image, base)):
                    yield from ({**base, "rows": rows, "stages": stages} for stages in (most, most - 2) if stages >= 3)


def _strips(problem: Problem, geometry: Geometry, image: Image, config: Config) -> Strips:
    _, height, width = geometry.out_spatial
    columns = -(-geometry.output_channels // config["BN"])
    across = geometry.batch * -(-width // config["BM"])
    return Strips(height, across, columns, problem.multiprocessors * config["programs"], _deep(image) - 1)


def _estimate(problem: Problem, geometry: Geometry, config: Config) -> float:
    """A guess of the cycles, for the order in which configurations are tried."""
    bm, bn, resident = config["BM"], config["BN"], config["programs"]
    image = _image(geometry, config["fold"])
    # A product of 64 rows by 16 elements takes a cycle for every two columns, if shared memory gives both operands so fast.
    products = bm // 64 * (image.window // 16) * image.taps * max(bn / 2, 16 + bn / 4)
    elements = bm * bn / 128
    epilogue = elements * (10 + _deep(image))
    alone = products + epilogue + 70 * image.taps + 400
    # The accelerator brings some 40 bytes a cycle, but a row of a tile takes it two.
    feed = min(image.stride, image.taps) * bm * max(image.window * 2 / 40, 2)
    cycles = _strips(problem, geometry, image, config).steps(config["rows"]) * max(alone, resident * max(products, feed, epilogue))
    size = problem.outputs[0].dtype.itemsize
    moved = _elements(geometry, image) * 2 + geometry.rows * geometry.output_channels * size
    return max(cycles, moved / (MEMORY_BYTES * problem.multiprocessors)) + 0.2 * cycles - config["stages"]


TACTICS: tuple[Tactic, ...] = (ConvWindows(),)
