from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..one_node import check, int64, integers, normal

REDUCTIONS = [f"Reduce{kind}" for kind in ["Mean", "Sum", "Prod", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp"]]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [-1, 0]])
def test_axes_as_an_input_and_as_an_attribute(name: str, keep: int, axes: list[int] | None, tmp_path: Path) -> None:
    value = normal(3, 5, 7)
    if axes is None:
        check(name, [value], tmp_path, opset=18, keepdims=keep, tolerance=1e-4)
        return
    check(name, [value, int64(*axes)], tmp_path, {1: int64(*axes)}, opset=18, keepdims=keep, tolerance=1e-4)
    old = {"opset": 12} if name == "ReduceSum" else {"opset": 17}
    check(name, [value], tmp_path, keepdims=keep, axes=axes, tolerance=1e-4, **old)


def test_log_of_a_sum(tmp_path: Path) -> None:
    check("ReduceLogSum", [np.abs(normal(3, 5))], tmp_path, opset=17, axes=[1])


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMax", "ReduceProd", "ReduceMean"])
def test_integers(name: str, tmp_path: Path) -> None:
    check(name, [integers(-4, 5, 3, 5, dtype=np.int32)], tmp_path, opset=18, keepdims=0)


def test_no_axes_may_mean_nothing_to_do(tmp_path: Path) -> None:
    check("ReduceSum", [normal(3, 5), int64()], tmp_path, {1: int64()}, opset=13, noop_with_empty_axes=1)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_arg(name: str, last: int, tmp_path: Path) -> None:
    value = integers(0, 3, 4, 9).astype(np.float32)
    if last:
        check(name, [value], tmp_path, axis=-1, keepdims=0, select_last_index=1)
    else:
        check(name, [normal(4, 9)], tmp_path, axis=1, keepdims=1)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest: int, tmp_path: Path) -> None:
    check("TopK", [normal(3, 11), int64(4)], tmp_path, {1: int64(4)}, outputs=2, axis=1, largest=largest)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive: int, reverse: int, tmp_path: Path) -> None:
    axis = np.array(1, np.int64)
    check("CumSum", [normal(3, 7), axis], tmp_path, {1: axis}, exclusive=exclusive, reverse=reverse)
