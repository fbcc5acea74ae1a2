"""cublas: matrix products, 1x1 convolutions among them, by cuBLASLt."""

from __future__ import annotations

import torch

from ..cublaslt import ACTIVATIONS, RANKS
from ..is_matrix_product import is_matrix_product
from ..recipe import FLOATS, Config, Packed, Problem, Recipe, Ref, Tactic, TensorSpec, TorchCall
from .conv_gemm import residual_in_place
from .epilogue import epilogue_blocks, epilogue_launch, epilogue_reject, flat_rows, rows_of, walks_by_rows

#: MiB of memory that the library may use: algorithms that divide the depth need it.
_WORKSPACES = (0, 8)


def pack_rows(weight: torch.Tensor) -> torch.Tensor:
    """[N, K, 1, ...] -> [N, K], dense."""
    return weight.reshape(weight.shape[0], weight.shape[1]).contiguous()


def pack_float(bias: torch.Tensor) -> torch.Tensor:
    """In float32."""
    return bias.float()


class Cublas:
    """cuBLASLt with its fused bias, residual, relu and tanh-gelu, or else a product followed by one launch of torchkiln's epilogue."""

    name = "cublas"
    ops: tuple[str, ...] = ("linear", "conv")

    def reject(self, problem: Problem) -> str:
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        if problem.op == "conv":
            if not is_matrix_product(weight.shape, *(problem.attributes[name] for name in ("stride", "padding", "transposed", "groups"))):
                return "only a 1x1 convolution with stride 1 and no padding, not grouped or transposed, is one matrix product"
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
        """``fused``: all by cuBLASLt; else ``block``: elements of a program of the epilogue. ``rank``: which of the library's algorithms, its best
        guess first; ``workspace``: MiB of memory that it may use; ``gelu``: "tanh" where the library's form stands for the one with erf."""
        fused: list[Config] = []
        if _is_fused(problem):
            form = {"gelu": "tanh"} if problem.attributes["activation"] == "gelu" else {}
            fused = [{"fused": True, "rank": rank, "workspace": workspace, **form} for rank in range(RANKS) for workspace in _WORKSPACES]
        apart: list[Config] = []
        if not _is_plain(problem):
            best, *others = epilogue_blocks(problem)
            first = {"fused": False, "rank": 0, "workspace": _WORKSPACES[-1]}
            apart = [{**first, "block": best}, *({**first, "rank": rank, "block": best} for rank in (1, 2)), *({**first, "block": b} for b in others)]
        if not fused:
            return apart[: (1, 2, 3, 6, 6, 6)[level]]
        # Where one call does it all, the other form wins seldom.
        return [*fused[: (1, 2, 4, 8, 16, 16)[level]], *apart[: (0, 0, 1, 1, 2, 6)[level]]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, weight, bias, residual = problem.inputs[:4]
        assert x is not None
        assert weight is not None
        y = problem.outputs[0]
        packed: dict[str, Packed] = {}
        if problem.constants[1]:
            packed["weight"] = Packed(pack_rows, ("x1",))
        features, depth = weight.shape[:2]
        weight_ref = Ref("packed.weight" if packed else "x1", (features, depth), (depth, 1))
        scratch = {}
        if config["workspace"]:
            scratch["workspace"] = TensorSpec.contiguous((config["workspace"] << 20,), torch.uint8)

        def product(into: Ref, bias_ref: Ref | None = None, residual_ref: Ref | None = None, activation: str = "none") -> TorchCall:
            operands = (Ref("x0", *flat_rows(x, problem.op)), weight_ref, bias_ref, residual_ref, Ref("scratch.workspace") if scratch else None)
            arguments = (*operands, activation, problem.math, config["rank"])
            return TorchCall("torchkiln.cublaslt.out", arguments, (("out", into),), results=(into.name,), out=True)

        y_ref = Ref("y0", *flat_rows(y, problem.op))
        if config["fused"]:
            residual_ref = None if residual is None else Ref("x3", *flat_rows(residual, problem.op))
            activation = problem.attributes["activation"]
            bias_ref = None if bias is None else Ref("x2")
            if bias is not None and bias.dtype != y.dtype:
                packed["bias"], bias_ref = Packed(pack_float, ("x2",)), Ref("packed.bias")
            call = product(y_ref, bias_ref, residual_ref, "gelu_tanh" if activation == "gelu" else activation)
            return Recipe((call,), scratch, packed, in_place=residual_in_place(problem))
        if y.dtype == x.dtype:
            return Recipe((product(y_ref), epilogue_launch(problem, config, "y0", y)), scratch, packed)
        # The sum with a wider residual: the product comes in the operands' dtype.
        spec = TensorSpec(y.shape, _dense_row_strides(y, problem.op), x.dtype)
        call = product(Ref("scratch.product", *flat_rows(spec, problem.op)))
        return Recipe((call, epilogue_launch(problem, config, "scratch.product", spec)), {**scratch, "product": spec}, packed)


def _is_plain(problem: Problem) -> bool:
    """Whether there is nothing but the product."""
    x, _, bias, residual = problem.inputs[:4]
    assert x is not None
    return bias is None and residual is None and problem.attributes["activation"] == "none" and problem.outputs[0].dtype == x.dtype


def _is_fused(problem: Problem) -> bool:
    """Whether one call of cuBLASLt is the whole problem.

    Its gelu is the one with tanh, which is off the one with erf by 4.7e-4 at most: by a relative L2 error of 5e-4 to 8e-4 before the layers of a
    trained encoder, less than the rounding to bfloat16 (1.7e-3) and more than that to float16 (2e-4). So it stands for both in bfloat16 alone.
    """
    x, _, bias, residual = problem.inputs[:4]
    assert x is not None
    y = problem.outputs[0]
    # The result may be float32, and is added to in that type.
    is_widened = y.dtype == torch.float32 and (bias is None or problem.constants[2])
    if y.dtype != x.dtype and not is_widened:
        return False
    if residual is not None and residual.dtype != y.dtype:
        return False
    if bias is not None and bias.dtype != x.dtype:
        return False
    return problem.attributes["activation"] in (*ACTIVATIONS, *(("gelu",) if x.dtype == torch.bfloat16 else ()))


def _dense_row_strides(spec: TensorSpec, op: str) -> tuple[int, ...]:
    """Strides of the same shape as dense rows of channels."""
    dense = TensorSpec.contiguous(rows_of(spec, op).shape, spec.dtype).strides
    return dense if op == "linear" else (dense[0], dense[-1], *dense[1:-1])


TACTICS: tuple[Tactic, ...] = (Cublas(),)
