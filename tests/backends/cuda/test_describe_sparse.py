"""What the report says of each layer: which kernel won, its time beside the other kind's, or why there was no race."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchkiln.backends.cuda import describe_sparse as module
from torchkiln.backends.cuda.describe_sparse import describe_sparse
from torchkiln.backends.cuda.mark_two_of_four import TWO_OF_FOUR
from torchkiln.backends.cuda.recipe import Recipe
from torchkiln.backends.cuda.tactics import sparse
from torchkiln.backends.cuda.tactics.registry import Option
from torchkiln.backends.cuda.timing_cache import Entry, TimingCache
from torchkiln.backends.cuda.trace import Operation, Storage, Trace, Value
from torchkiln.backends.cuda.tuner import Choice

from .problems import conv_problem, linear_problem

CPU = torch.device("cpu")


@pytest.fixture
def describe(monkeypatch, tmp_path):
    """``describe(problem, tactic, candidates)`` -> the one row; candidates: (tactic, us, why)."""
    monkeypatch.setattr(sparse, "missing", lambda: "")
    monkeypatch.setattr(module, "problem_keys", lambda operations, level, device: [str(id(op)) for op in operations])

    def run(problem, tactic="cublas", candidates=(), has_pattern=True):
        constant = torch.ones(problem.inputs[1].shape, dtype=problem.inputs[1].dtype)
        if has_pattern:
            constant[:, ::2] = 0
        if has_pattern and constant.is_floating_point():  # as mark_two_of_four does
            problem = dataclasses.replace(problem, attributes={**problem.attributes, TWO_OF_FOUR: True})
        weight = Value(Storage("constant", torch.float16, 512, name="up_weight_low"), problem.inputs[1])
        operation = Operation("linear_3", problem, [None, weight], [], Recipe(()))
        cache = TimingCache(tmp_path / "cache.sqlite")
        if candidates:
            cache.put(str(id(operation)), Entry(tactic, {}, 1.0, [[name, {}, us, why] for name, us, why in candidates]))
        traced = Trace([], [], [operation], {"up_weight_low": constant})
        rows = describe_sparse(traced, [Choice(Option(tactic, {}, Recipe(())), 1.0, {})], 3, cache, CPU)
        assert [(row.pop("label"), row.pop("weight")) for row in rows] == [("linear_3", "up_weight_low")] * len(rows)
        return rows[0] if rows else None

    return run


TIMES = [
    ("cublas", 5.0, ""),
    ("cublas", 4.0, ""),
    ("gemm_tma", 4.5, ""),
    ("cusparselt", 3.5, ""),
    ("cusparselt", 3.0, ""),
    ("cusparselt", None, "no"),
]


def test_used(describe):
    row = describe(linear_problem((8, 32), 16), "cusparselt", TIMES)
    assert row == {"outcome": "used", "tactic": "cusparselt", "sparse_us": 3.0, "dense_us": 4.0, "reason": ""}


def test_slower(describe):
    slower = [("cublas", 2.0, ""), ("cusparselt", 3.0, "")]
    row = describe(linear_problem((8, 32), 16), "cublas", slower)
    assert row == {"outcome": "slower", "tactic": "cublas", "sparse_us": 3.0, "dense_us": 2.0, "reason": ""}
    row = describe(linear_problem((8, 32), 16), "gemm_tma", TIMES)
    assert row["outcome"] == "slower"
    assert row["reason"].startswith("by itself it is faster")


def test_failed(describe):
    failed = [("cublas", 2.0, ""), ("cusparselt", None, "wrong: y0 has relative error 0.5")]
    row = describe(linear_problem((8, 32), 16), "cublas", failed)
    assert row == {"outcome": "failed", "tactic": "cublas", "sparse_us": None, "dense_us": 2.0, "reason": "wrong: y0 has relative error 0.5"}
    assert describe(linear_problem((8, 32), 16))["reason"] == "it was not measured"


def test_not_supported(describe):
    row = describe(conv_problem((2, 16, 5, 5), (16, 16, 3, 3)), "cudnn", [("cudnn", 7.0, "")])
    assert row["outcome"] == "not supported"
    assert row["reason"].startswith("only a 1x1 convolution")
    assert (row["sparse_us"], row["dense_us"]) == (None, 7.0)
    pooled = conv_problem((2, 16, 5, 5), (16, 16, 1, 1), op="conv_pooled")
    assert describe(pooled)["reason"] == "it is fused into conv_pooled, which has no 2:4 kernel"


def test_int8(describe):
    floats = linear_problem((8, 32), 16)
    integers = dataclasses.replace(
        floats, op="int8_linear", inputs=(floats.inputs[0], dataclasses.replace(floats.inputs[1], dtype=torch.int8), *floats.inputs[2:])
    )
    row = describe(integers, "int8_gemm_tma")
    assert (row["outcome"], row["tactic"]) == ("not supported", "int8_gemm_tma")
    assert row["reason"].startswith("its weight is int8")
    assert describe(integers, "int8_gemm_tma", has_pattern=False)["outcome"] == "no pattern"


def test_no_pattern_and_no_layer(describe):
    row = describe(linear_problem((8, 32), 16), has_pattern=False, candidates=TIMES[:2])
    assert row["outcome"] == "no pattern"
    assert "torchkiln.sparsify" in row["reason"]
    computed = dataclasses.replace(linear_problem((8, 32), 16), constants=(False,) * 4)
    assert describe(computed, has_pattern=False) is None
