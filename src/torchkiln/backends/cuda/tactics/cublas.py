"""cublas: matrix products, 1x1 convolutions among them, by cuBLAS and cuBLASLt, as torch calls them."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import Config, Packed, Problem, Recipe, Ref, Tactic, TensorSpec, TorchCall
from .conv_geometry import conv_geometry
from .epilogue import FLOATS, epilogue_blocks, epilogue_launch, epilogue_reject, flat_rows, rows_of, walks_by_rows


def pack_rows(weight: torch.Tensor) -> torch.Tensor:
    """[N, K, 1, ...] -> [N, K], dense."""
    return weight.reshape(weight.shape[0], weight.shape[1]).contiguous()


class Cublas:
    """cuBLASLt with its fused bias, relu and tanh-gelu, or else a product followed by one launch of torchkiln's epilogue."""

    name = "cublas"
    ops: tuple[str, ...] = ("linear", "conv")

    def reject(self, problem: Problem) -> str:
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        if problem.op == "conv":
            if problem.attributes["transposed"] or problem.attributes["groups"] != 1:
                return "a transposed or grouped convolution is not one matrix product"
            geometry = conv_geometry(problem)
            if not geometry.is_pointwise or geometry.stride != (1, 1, 1):
                return "only a 1x1 convolution with stride 1 and no padding is a matrix product"
            if problem.inputs[4] is not None:
                return "cuBLAS does not scale the input"
        if x.dtype not in FLOATS or weight.dtype != x.dtype:
            return f"the input is {x.dtype}, the weight {weight.dtype}: expected the same of fp16, bf16 and fp32"
        if x.numel == 0 or weight.numel == 0:
            return "an empty operand"
        if not walks_by_rows(rows_of(x, problem.op)):
            return f"the input: strides {x.strides} are not rows of channels"
        if not problem.constants[1] and not weight.is_contiguous:
            return f"a computed weight with strides {weight.strides}"
        if max(x.span, weight.span) >= 2**31:
            return "a tensor of more than 2**31 elements"
        return epilogue_reject(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """``fused``: all by cuBLAS; else ``block``: elements of a program of the epilogue."""
        found: list[Config] = [{"fused": True}] if _is_fused(problem) else []
        if not _is_plain(problem):
            found += [{"fused": False, "block": block} for block in epilogue_blocks(problem)]
        return found[: (1, 2, 3, 5, 5, 5)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, weight, bias = problem.inputs[:3]
        assert x is not None
        assert weight is not None
        y = problem.outputs[0]
        packed: dict[str, Packed] = {}
        if problem.constants[1]:
            packed["weight"] = Packed(pack_rows, ("x1",))
        features, depth = weight.shape[:2]
        product = (Ref("x0", *flat_rows(x, problem.op)), Ref("packed.weight" if packed else "x1", (depth, features), (1, depth)))
        into_y = (("out", Ref("y0", *flat_rows(y, problem.op))),)
        if config["fused"]:
            activation = problem.attributes["activation"]
            if bias is None:
                call = TorchCall("aten.mm.out", product, into_y, out=True)
            elif activation == "none":
                call = TorchCall("aten.addmm.out", (Ref("x2"), *product), into_y, out=True)
            else:
                arguments: tuple[Any, ...] = (Ref("x2"), *product)
                call = TorchCall("aten._addmm_activation.out", arguments, (("use_gelu", activation == "gelu_tanh"), *into_y), out=True)
            return Recipe((call,), packed=packed)
        if y.dtype == x.dtype:
            return Recipe((TorchCall("aten.mm.out", product, into_y, out=True), epilogue_launch(problem, config, "y0", y)), packed=packed)
        # The sum with a wider residual: the product comes in the operands' dtype.
        spec = TensorSpec(y.shape, _dense_row_strides(y, problem.op), x.dtype)
        call = TorchCall(
            "aten.mm.out", product, (("out", Ref("scratch.product", *flat_rows(spec, problem.op))),), results=("scratch.product",), out=True
        )
        return Recipe((call, epilogue_launch(problem, config, "scratch.product", spec)), {"product": spec}, packed)


def _is_plain(problem: Problem) -> bool:
    """Whether there is nothing but the product."""
    x, _, bias, residual = problem.inputs[:4]
    assert x is not None
    return bias is None and residual is None and problem.attributes["activation"] == "none" and problem.outputs[0].dtype == x.dtype


def _is_fused(problem: Problem) -> bool:
    """Whether one call of cuBLAS is the whole problem."""
    x, _, bias, residual = problem.inputs[:4]
    assert x is not None
    if residual is not None or problem.outputs[0].dtype != x.dtype:
        return False
    if bias is None:
        return problem.attributes["activation"] == "none"
    return bias.dtype == x.dtype and problem.attributes["activation"] in ("none", "relu", "gelu_tanh")


def _dense_row_strides(spec: TensorSpec, op: str) -> tuple[int, ...]:
    """Strides of the same shape as dense rows of channels."""
    dense = TensorSpec.contiguous(rows_of(spec, op).shape, spec.dtype).strides
    return dense if op == "linear" else (dense[0], dense[-1], *dense[1:-1])


TACTICS: tuple[Tactic, ...] = (Cublas(),)
