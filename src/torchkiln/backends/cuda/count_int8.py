"""count_int8: how much of a plan is int8 kernels, and why other layers with 8-bit weights are not, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from .passes.fuse_int8 import NOT_INT8
from .plan import Plan
from .tactics.int8_problem import INT8_OPS
from .tactics.registry import TORCH


def count_int8(plan: Plan) -> tuple[int, int]:
    """``(int8, all)``: how many of the convolutions and matrix products are int8 kernels. Attention is none of them."""
    products = [info for info in plan.infos if info.flops and info.op != "attention"]
    return sum(info.op in INT8_OPS and info.tactic != TORCH for info in products), len(products)


def int8_rejects(rejects: Sequence[tuple[str, str]]) -> list[str]:
    """``"convolution_3: a convolution in 16 groups"`` for each layer that computes in floating point though the graph has its weight in 8 bits."""
    return [f"{where}: {why.removeprefix(NOT_INT8)}" for where, why in rejects if why.startswith(NOT_INT8)]
