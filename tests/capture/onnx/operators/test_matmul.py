from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import check, integers, normal


@pytest.mark.parametrize(("a", "b"), [((3, 5), (5, 7)), ((2, 3, 5), (5, 7)), ((2, 1, 3, 5), (4, 5, 7)), ((5,), (5, 7)), ((3, 5), (5,))])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    check("MatMul", [normal(*a), normal(*b, seed=1)], tmp_path)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bias", [None, (7,), (3, 1), (1,), (3, 7)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gemm(transposed: tuple[int, int], bias: tuple[int, ...] | None, scale: float, tmp_path: Path) -> None:
    a = normal(5, 3) if transposed[0] else normal(3, 5)
    b = normal(7, 5, seed=1) if transposed[1] else normal(5, 7, seed=1)
    inputs = [a, b] + ([normal(*bias, seed=2)] if bias else [])
    check("Gemm", inputs, tmp_path, transA=transposed[0], transB=transposed[1], alpha=scale, beta=1.0 if scale == 1.0 else 0.25)


def test_einsum(tmp_path: Path) -> None:
    check("Einsum", [normal(2, 3, 5), normal(2, 7, 5, seed=1)], tmp_path, equation="bij,bkj->bik")


def test_det(tmp_path: Path) -> None:
    check("Det", [normal(3, 4, 4)], tmp_path)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_attention(causal: int, mask: str | None, kv_heads: int, tmp_path: Path) -> None:
    given = [normal(2, 6, 5, 8), normal(2, kv_heads, 5, 8, seed=1), normal(2, kv_heads, 5, 8, seed=2)]
    if mask == "bool":
        allowed = integers(0, 2, 5, 5, dtype=bool) | np.eye(5, dtype=bool)
        given.append(allowed)
    elif mask == "float":
        given.append(normal(5, 5, seed=3))
    check("Attention", given, tmp_path, opset=23, is_causal=causal)


def test_attention_of_flat_heads(tmp_path: Path) -> None:
    check(
        "Attention",
        [normal(2, 5, 24), normal(2, 7, 24, seed=1), normal(2, 7, 24, seed=2)],
        tmp_path,
        opset=23,
        q_num_heads=3,
        kv_num_heads=3,
        scale=0.3,
    )


def test_attention_with_a_limit_on_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="softcap"):
        check("Attention", [normal(2, 6, 5, 8), normal(2, 6, 5, 8), normal(2, 6, 5, 8)], tmp_path, opset=23, softcap=2.0)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int, tmp_path: Path) -> None:
    ids = integers(0, 9, 2, 5)
    check("RotaryEmbedding", [normal(2, 3, 5, 8), normal(9, 4), normal(9, 4, seed=1), ids], tmp_path, opset=23, interleaved=interleaved)
    check("RotaryEmbedding", [normal(2, 5, 24), normal(9, 4), normal(9, 4, seed=1), ids], tmp_path, opset=23, interleaved=interleaved, num_heads=3)


def test_microsoft(tmp_path: Path) -> None:
    check("Gelu", [normal(3, 5)], tmp_path, domain="com.microsoft")
    check("BiasGelu", [normal(3, 5), normal(5, seed=1)], tmp_path, domain="com.microsoft")
    check("FastGelu", [normal(3, 5), normal(5, seed=1)], tmp_path, domain="com.microsoft")
    check("QuickGelu", [normal(3, 5)], tmp_path, domain="com.microsoft", alpha=1.5)
    check("FusedMatMul", [normal(2, 5, 3), normal(2, 7, 5, seed=1)], tmp_path, domain="com.microsoft", transA=1, transB=1, alpha=0.5)
    skip = [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8, seed=2), normal(8, seed=3), normal(8, seed=4)]
    check("SkipLayerNormalization", skip, tmp_path, domain="com.microsoft", epsilon=1e-4)
