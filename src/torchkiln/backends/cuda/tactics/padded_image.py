"""padded_image: the launch that copies an image of few channels into one with zeros around it and its channels rounded up, so that what reads it
checks no borders and reads vectors."""

from __future__ import annotations

import torch

from ..recipe import Kernel, Launch, Problem
from .conv_geometry import Triple, conv_geometry

_BLOCK = 256


def pad_launch(
    problem: Problem, to: torch.dtype, channels: int, sizes: Triple, padded: Triple, padding: Triple, x_strides: tuple[int, ...]
) -> Launch:
    """x [N, C, D, H, W] -> "scratch.image" [N, *padded, channels], dense: x in its middle, zeros elsewhere.

    Args:
        to: the dtype of the image; x may have any.
        channels: of the image, a power of two; at least those of x.
        sizes, x_strides: of x, D, H and W and all five, in elements; they may be any split of its dimensions.
        padding: zeros in front of D, H and W; those behind follow from ``padded``.
    """
    geometry = conv_geometry(problem)
    x = problem.inputs[0]
    assert x is not None
    positions = geometry.batch * padded[0] * padded[1] * padded[2]
    constants = {
        "TOTAL": positions,
        "C": geometry.input_channels,
        "CP": channels,
        **dict(zip(("D", "H", "W"), sizes, strict=True)),
        **dict(zip(("DP", "HP", "WP"), padded, strict=True)),
        **dict(zip(("PD", "PH", "PW"), padding, strict=True)),
        **{f"X{axis}": stride for axis, stride in zip("NCDHW", x_strides, strict=True)},
        "BLOCK": _BLOCK,
        "PDL": problem.capability >= 90,
    }
    kernel = Kernel("conv:pad_channels", (x.dtype, to), tuple(constants.items()), 4, 1)
    return Launch(kernel, (-(-positions // _BLOCK), 1, 1), ("x0", "scratch.image"))
