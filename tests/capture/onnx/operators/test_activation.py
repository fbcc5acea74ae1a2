from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import check, normal


@pytest.mark.parametrize(
    "name",
    [
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "HardSwish",
        "Mish",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "HardSigmoid",
        "ThresholdedRelu",
        "Shrink",
    ],
)
def test_plain(name: str, tmp_path: Path) -> None:
    check(name, [normal(3, 5, 7) * 3], tmp_path)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("Celu", {"alpha": 0.7}),
        ("Selu", {"alpha": 1.1, "gamma": 0.6}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("ThresholdedRelu", {"alpha": 0.4}),
        ("Shrink", {"lambd": 0.9, "bias": 0.3}),
    ],
)
def test_attributes(name: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    check(name, [normal(3, 5, 7) * 3], tmp_path, **attributes)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str, tmp_path: Path) -> None:
    check("Gelu", [normal(3, 5)], tmp_path, opset=20, approximate=approximate)


@pytest.mark.parametrize("slope", [(1,), (5, 1, 1), (5, 1, 7), (7,)])
def test_prelu(slope: tuple[int, ...], tmp_path: Path) -> None:
    check("PRelu", [normal(2, 5, 3, 7), normal(*slope, seed=1)], tmp_path)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (11, 2), (11, -1), (13, 1), (13, -1)])
def test_softmax(name: str, opset: int, axis: int, tmp_path: Path) -> None:
    check(name, [normal(3, 5, 7)], tmp_path, opset=opset, axis=axis)


def test_softmax_without_an_axis(tmp_path: Path) -> None:
    for opset in (11, 13):
        check("Softmax", [normal(3, 5, 7)], tmp_path, opset=opset)


def test_dropout_does_nothing(tmp_path: Path) -> None:
    check("Dropout", [normal(3, 5)], tmp_path, outputs=2)


def test_dropout_in_training_is_refused(tmp_path: Path) -> None:
    constants = {1: np.array(0.5, np.float32), 2: np.array(True)}
    with pytest.raises(ModelSourceError, match="eval mode"):
        check("Dropout", [normal(3, 5), *constants.values()], tmp_path, constants)
