"""gemm: linear layers that give their rows' moments or normalize their rows, on torchkiln's own kernel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ....fused_ops.linear import MOMENTS_PART
from ..recipe import MAX_ELEMENTS, Config, Kernel, Launch, Packed, Problem, Recipe, Tactic, TensorSpec
from .conv_gemm import gemm_configs, pack_weight, residual_in_place
from .conv_geometry import linear_geometry

_HALVES = (torch.float16, torch.bfloat16)
#: Numbers a thread may hold while the products are computed, besides the sums.
_HELD = 32


class Gemm:
    """One launch of the kernel; split over K where rows are few."""

    name = "gemm"
    ops: tuple[str, ...] = ("linear_moments", "linear_normalized")

    def reject(self, problem: Problem) -> str:
        x, weight, _, residual = problem.inputs[:4]
        assert x is not None
        assert weight is not None
        if x.dtype not in _HALVES or weight.dtype != x.dtype or problem.outputs[0].dtype != x.dtype:
            return f"the input is {x.dtype}, the weight {weight.dtype}: expected the same half precision"
        if any(spec is not None and not constant for spec, constant in _parameters(problem)):
            return "a weight or bias is computed: it cannot be laid out at build time"
        rows = [x, *problem.outputs, *(spec for spec in (residual, _moments(problem)) if spec is not None)]
        if any(len(spec.shape) != 2 or spec.strides[1] != 1 for spec in rows):
            return "rows that no one stride walks"
        if x.numel == 0 or weight.numel == 0:
            return "an empty operand"
        if any(spec is not None and spec.span > MAX_ELEMENTS for spec in (*problem.inputs, *problem.outputs)):
            return "a tensor of more than 2**31 elements"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        as_linear = replace(problem, op="linear", inputs=problem.inputs[:4])
        found = gemm_configs(as_linear, linear_geometry(as_linear), level, flat=False)
        return [config for config in found if problem.op != "linear_moments" or config["BN"] % MOMENTS_PART == 0] or [_FALLBACK]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, weight, _, residual = problem.inputs[:4]
        assert x is not None
        assert weight is not None
        y = problem.outputs[0]
        (rows, depth), columns = x.shape, weight.shape[0]
        moments = _moments(problem)
        has_moments = problem.op == "linear_moments"
        bm, bn, bk, split = config["BM"], config["BN"], config["BK"], config["split"]
        packed, has_bias = _packed(problem, bk)
        tiles = -(-rows // bm) * -(-columns // bn)
        scratch = {"partial": TensorSpec.contiguous((tiles * split * bm * bn,), torch.float32)} if split > 1 else {}
        operands = (
            "x0",
            "packed.weight",
            "packed.bias" if has_bias else "x0",
            "x3" if residual is not None else "x0",
            "x4" if moments is not None else "x0",
            "packed.sums" if moments is not None else "x0",
            "y0",
            "y1" if has_moments else "y0",
            "scratch.partial" if split > 1 else "y0",
            "counters" if split > 1 else "y0",
        )
        floats = ("packed.bias", "packed.sums", "scratch.partial", "x4", "y1")
        pointers = tuple(torch.int32 if name == "counters" else torch.float32 if name in floats else x.dtype for name in operands)
        padded_parts = 1 << (depth // MOMENTS_PART - 1).bit_length()
        constants: dict[str, Any] = {
            "M": rows,
            "N": columns,
            "K": depth,
            "WK": -(-depth // bk) * bk,
            "XR": x.strides[0],
            "RR": residual.strides[0] if residual is not None else 0,
            "YR": y.strides[0],
            "MR": moments.strides[0] if moments is not None else 0,
            "OR": problem.outputs[1].strides[0] if has_moments else 0,
            "HAS_BIAS": has_bias,
            "HAS_RESIDUAL": residual is not None,
            "NORMALIZED": moments is not None,
            "MOMENTS": has_moments,
            "PART": MOMENTS_PART,
            "EPS": float(problem.attributes.get("eps", 0.0)),
            "ACTIVATION": problem.attributes["activation"],
            "ALPHA": float(problem.attributes["alpha"]),
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "GROUP_M": 8,
            "SPLIT": split,
            "EARLY": config["early"],
            "HOLD": 2 * bm * padded_parts <= _HELD * 32 * config["warps"],
            "PREFETCH": problem.capability >= 90 and tiles * split <= 2 * problem.multiprocessors,
            "PDL": problem.capability >= 90,
        }
        kernel = Kernel("gemm:gemm", pointers, tuple(constants.items()), config["warps"], config["stages"])
        return Recipe((Launch(kernel, (tiles, 1, split), operands),), scratch, packed, tiles if split > 1 else 0, residual_in_place(problem))


def pack_scaled(weight: torch.Tensor, scale: torch.Tensor, block: int) -> torch.Tensor:
    """[N, K] times [K], rounded as the weight is, laid out as ``pack_weight`` does."""
    return pack_weight((weight.float() * scale.float()).to(weight.dtype), block, False)


def pack_sums(weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """float32 [N], the sums of the rows of the weight as ``pack_scaled`` rounds it."""
    scaled = weight if scale is None else (weight.float() * scale.float()).to(weight.dtype)
    return scaled.double().sum(1).float()


def pack_bias(*tensors: torch.Tensor, has_bias: bool) -> torch.Tensor:
    """float32 [N]: bias + weight @ norm_bias, of (bias), (weight, norm_bias) or all three."""
    total = tensors[0].double() if has_bias else torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    if len(tensors) > 1:
        weight, norm_bias = tensors[-2:]
        total = total + weight.double() @ norm_bias.double()
    return total.float()


def _packed(problem: Problem, block: int) -> tuple[dict[str, Packed], bool]:
    """The weights as the kernel takes them, and whether there is a bias among them."""
    has_bias = problem.inputs[2] is not None
    if problem.op == "linear_moments":
        found = {"weight": Packed(partial(pack_weight, block=block, flat=False), ("x1",))}
        bias_of: tuple[str, ...] = ("x2",) if has_bias else ()
    else:
        is_scaled, is_shifted = (spec is not None for spec in problem.inputs[5:7])
        weight_of = ("x1", "x5") if is_scaled else ("x1",)
        pack = partial(pack_scaled, block=block) if is_scaled else partial(pack_weight, block=block, flat=False)
        found = {"weight": Packed(pack, weight_of), "sums": Packed(pack_sums, weight_of)}
        bias_of = (*(("x2",) if has_bias else ()), *(("x1", "x6") if is_shifted else ()))
    if bias_of:
        found["bias"] = Packed(partial(pack_bias, has_bias=has_bias), bias_of)
    return found, bool(bias_of)


def _parameters(problem: Problem) -> list[tuple[TensorSpec | None, bool]]:
    """Weight, bias and the norm's own, and whether each is a constant."""
    return [pair for index, pair in enumerate(zip(problem.inputs, problem.constants, strict=True)) if index not in (0, 3, 4)]


def _moments(problem: Problem) -> TensorSpec | None:
    return problem.inputs[4] if problem.op == "linear_normalized" else None


#: For few columns, where every tile the estimate offers is narrower than a part.
_FALLBACK: Config = {"BM": 16, "BN": MOMENTS_PART, "BK": 32, "warps": 4, "stages": 3, "split": 1, "early": False}

TACTICS: tuple[Tactic, ...] = (Gemm(),)
