"""conv_rows: convolutions of a few input channels (a network's first): the image is padded and its channels rounded up in one pass, and then a row of
taps is one run of contiguous memory, so that the GEMM reads its operand in vectors and checks no borders.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import torch
import torch.nn.functional as F

from ..recipe import Config, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import ConvGemm, gemm_configs, gemm_recipe
from .conv_geometry import Geometry, conv_geometry, weight_of
from .padded_image import pad_launch


class ConvRows:
    """A convolution of 2 to 8 input channels with more than one tap in a row: pad_channels, then conv_gemm. x may have any strides, and be wider."""

    name = "conv_rows"
    ops: tuple[str, ...] = ("conv",)

    def reject(self, problem: Problem) -> str:
        reason = ConvGemm().reject(problem)
        if reason:
            return reason
        geometry = conv_geometry(problem)
        if geometry.groups > 1 or not 2 <= geometry.input_channels <= 8:
            return "takes 2 to 8 input channels, ungrouped"
        if geometry.kernel[2] == 1 or geometry.dilation[2] != 1:
            return "takes kernels with several neighbouring taps in a row"
        if problem.inputs[3] is not None or problem.inputs[4] is not None:
            return "takes no residual and no scale"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        return gemm_configs(problem, _row_geometry(conv_geometry(problem)), level, flat=False)

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        geometry = conv_geometry(problem)
        rows = _row_geometry(geometry)
        weight_dtype = weight_of(problem).dtype
        channels = _padded_channels(geometry)
        weight = Packed(partial(pack_rows, channels=channels, taps=_padded_taps(geometry), block=config["BK"]), ("x1",))
        recipe = gemm_recipe(problem, rows, config, "scratch.image", weight_dtype, weight, flat=False)
        recipe.scratch["image"] = TensorSpec.contiguous((geometry.batch * prod(rows.spatial) * channels,), weight_dtype)
        pad = pad_launch(problem, weight_dtype, channels, geometry.spatial, rows.spatial, geometry.padding, geometry.x_strides)
        return replace(recipe, launches=(pad, *recipe.launches))


def pack_rows(weight: torch.Tensor, channels: int, taps: int, block: int) -> torch.Tensor:
    """[CO, CI, *kernel] -> [CO, K], K being (row of taps, tap, channel) with zeros up to ``taps`` taps of ``channels`` channels, and each row padded
    to a multiple of ``block``."""
    last = F.pad(weight.movedim(1, -1), (0, channels - weight.shape[1], 0, taps - weight.shape[-1]))  # [CO, ..., taps, channels]
    by_row = last.reshape(weight.shape[0], -1, taps * channels)
    return F.pad(by_row, (0, -by_row.shape[2] % block)).reshape(weight.shape[0], -1).contiguous()


def _padded_channels(geometry: Geometry) -> int:
    return 2 if geometry.input_channels == 2 else 4 if geometry.input_channels <= 4 else 8


def _padded_taps(geometry: Geometry) -> int:
    """Taps of a row, rounded up so that a row is a multiple of 16 channels: read in whole vectors. The weights of the added taps are zero; what they
    read is finite if the input is, and inside the padded image."""
    channels = _padded_channels(geometry)
    return -(-geometry.kernel[2] * channels // 16) * 16 // channels


def _row_geometry(geometry: Geometry) -> Geometry:
    """The convolution over the padded image: a row of taps as one tap of KW times as many channels."""
    channels, taps = _padded_channels(geometry), _padded_taps(geometry)
    reach = [
        (o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(geometry.out_spatial, geometry.stride, geometry.dilation, geometry.kernel, strict=True)
    ]
    width = reach[2] + taps - geometry.kernel[2]
    depth, height, width = reach[0], reach[1], width + width % 2
    return replace(
        geometry,
        input_channels=taps * channels,
        spatial=(depth, height, width),
        kernel=(geometry.kernel[0], geometry.kernel[1], 1),
        padding=(0, 0, 0),
        dilation=(geometry.dilation[0], geometry.dilation[1], 1),
        x_strides=(depth * height * width * channels, 1, height * width * channels, width * channels, channels),
    )


TACTICS: tuple[Tactic, ...] = (ConvRows(),)
