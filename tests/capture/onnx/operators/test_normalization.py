from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from torchkiln.capture.onnx.load import load_onnx
from torchkiln.errors import ModelSourceError

from ..one_node import check, model_of, normal


@pytest.mark.parametrize("opset", [9, 14, 15])
def test_batch_norm(opset: int, tmp_path: Path) -> None:
    inputs = [normal(3, 5, 7, 2), normal(5, seed=1), normal(5, seed=2), normal(5, seed=3), np.abs(normal(5, seed=4))]
    check("BatchNormalization", inputs, tmp_path, opset=opset, epsilon=1e-3)


def test_batch_norm_in_training_is_refused(tmp_path: Path) -> None:
    inputs = [normal(3, 5, 7), normal(5, seed=1), normal(5, seed=2), normal(5, seed=3), np.abs(normal(5, seed=4))]
    with pytest.raises(ModelSourceError, match="eval mode"):
        check("BatchNormalization", inputs, tmp_path, outputs=3, training_mode=1)


def test_instance_norm(tmp_path: Path) -> None:
    check("InstanceNormalization", [normal(3, 5, 7, 2), normal(5, seed=1), normal(5, seed=2)], tmp_path, epsilon=1e-3)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(axis: int, biased: bool, tmp_path: Path) -> None:
    shape = (7,) if axis == -1 else (5, 7)
    inputs = [normal(3, 5, 7), normal(*shape, seed=1)] + ([normal(*shape, seed=2)] if biased else [])
    check("LayerNormalization", inputs, tmp_path, axis=axis, epsilon=1e-3)


def test_rms_norm(tmp_path: Path) -> None:
    check("RMSNormalization", [normal(3, 5, 7), normal(7, seed=1)], tmp_path, opset=23, epsilon=1e-3)


def test_group_norm(tmp_path: Path) -> None:
    check("GroupNormalization", [normal(2, 6, 5), normal(3, seed=1), normal(3, seed=2)], tmp_path, opset=18, num_groups=3)
    check("GroupNormalization", [normal(2, 6, 5), normal(6, seed=1), normal(6, seed=2)], tmp_path, opset=21, num_groups=3)


@pytest.mark.parametrize("power", [1, 2])
def test_lp_norm(power: int, tmp_path: Path) -> None:
    check("LpNormalization", [normal(3, 5, 7)], tmp_path, axis=1, p=power)


def test_mean_variance_norm(tmp_path: Path) -> None:
    check("MeanVarianceNormalization", [normal(3, 5, 7, 2)], tmp_path)


def test_local_response_norm(tmp_path: Path) -> None:
    check("LRN", [normal(2, 7, 5, 3)], tmp_path, size=3, alpha=0.1, beta=0.6, bias=1.5)


def test_local_response_norm_over_an_even_window(tmp_path: Path) -> None:
    # ONNX Runtime has odd ones only: against the standard's formula.
    value, size, alpha = normal(2, 7, 5, 3), 4, 0.1
    model = model_of("LRN", [value], size=size, alpha=alpha, beta=0.6, bias=1.5)
    onnx.save(model, tmp_path / "m.onnx")
    module, _ = load_onnx(tmp_path / "m.onnx")
    sums = np.stack([np.square(value[:, max(0, c - 1) : c + 3]).sum(1) for c in range(7)], 1)
    expected = value / (1.5 + alpha / size * sums) ** 0.6
    assert np.allclose(module(torch.from_numpy(value)).numpy(), expected, atol=1e-6)
