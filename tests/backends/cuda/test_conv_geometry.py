"""Convolutions as implicit GEMMs: which dimensions become one."""

from __future__ import annotations

import dataclasses

import pytest

from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.tactics.conv_gemm import ConvGemm
from torchkiln.backends.cuda.tactics.conv_geometry import conv_geometry, merge_positions

from .interpret import check
from .problems import conv_problem

SHAPES = {"1-D": ((3, 8, 7), (6, 8, 1)), "2-D": ((3, 8, 4, 5), (6, 8, 1, 1)), "3-D": ((2, 8, 3, 4, 5), (6, 8, 1, 1, 1))}
TILE = {"BM": 16, "BN": 16, "BK": 16, "warps": 2, "stages": 2, "split": 1, "early": False}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("keep_batch", [False, True])
def test_dense_positions_are_one_dimension(name, keep_batch):
    geometry = conv_geometry(conv_problem(*SHAPES[name], residual=True))
    merged = merge_positions(geometry, keep_batch=keep_batch)
    rows = geometry.rows
    batch = geometry.batch if keep_batch else 1
    assert (merged.batch, merged.spatial, merged.out_spatial) == (batch, (1, 1, rows // batch), (1, 1, rows // batch))
    assert (merged.x_strides[1], merged.x_strides[4], merged.y_strides[4], merged.residual_strides[4]) == (1, 8, 6, 6)


def test_gaps_between_rows_stay():
    problem = conv_problem(*SHAPES["2-D"])
    gaps = dataclasses.replace(problem, inputs=(TensorSpec((3, 8, 4, 5), (4 * 48, 1, 48, 8), problem.inputs[0].dtype), *problem.inputs[1:]))
    merged = merge_positions(conv_geometry(gaps), keep_batch=False)
    assert (merged.batch, merged.spatial) == (1, (1, 12, 5))  # rows and images follow each other, columns do not fill a row
    check(ConvGemm(), gaps, TILE, 4e-3)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}])
def test_what_is_not_dense_stays(options):
    geometry = conv_geometry(conv_problem(*SHAPES["2-D"], **options))
    assert merge_positions(geometry, keep_batch=False) is geometry


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", [{"scale": True, "activation": "silu"}, {"residual": True, "activation": "relu"}])
def test_numbers_stay(name, options):
    check(ConvGemm(), conv_problem(*SHAPES[name], **options), TILE, 4e-3)
