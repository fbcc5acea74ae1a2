"""Convolutions of few channels through a padded image."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.tactics.conv_rows import ConvRows

CASES = {
    "7x7 stride 2, NCHW float32": conv_problem(
        (2, 3, 11, 13), (20, 3, 7, 7), stride=2, padding=3, activation="relu", channels_last=False, x_dtype=torch.float32
    ),
    "3x3 NHWC": conv_problem((1, 3, 9, 6), (17, 3, 3, 3), padding=1, activation="silu"),
    "3x3 dilated rows": conv_problem((1, 2, 12), (10, 2, 5), padding=2),
    "8 channels": conv_problem((1, 8, 7, 5), (16, 8, 3, 3), padding=1, bias=False),
    "3-D": conv_problem((1, 4, 4, 5, 6), (10, 4, 3, 3, 3), padding=1),
    "patches": conv_problem((2, 3, 9, 9), (12, 3, 4, 4), stride=4, channels_last=False),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_rows(name):
    problem = CASES[name]
    assert ConvRows().reject(problem) == ""
    for config in ConvRows().configs(problem, 2)[::4]:
        check(ConvRows(), problem, config, 2e-3)


def test_rejects():
    assert "2 to 8" in ConvRows().reject(conv_problem((1, 1, 9, 6), (17, 1, 3, 3)))
    assert "2 to 8" in ConvRows().reject(conv_problem((1, 16, 9, 6), (17, 16, 3, 3)))
    assert "taps" in ConvRows().reject(conv_problem((1, 3, 9, 6), (17, 3, 1, 1)))
    assert "taps" in ConvRows().reject(conv_problem((1, 3, 9, 6), (17, 3, 3, 3), dilation=2))
    assert "residual" in ConvRows().reject(conv_problem((1, 3, 9, 6), (17, 3, 3, 3), residual=True))


COMPILE_CASES = [(ConvRows(), problem, config) for problem in CASES.values() for config in ConvRows().configs(problem, 0)]
