"""sparse: linear layers and 1x1 convolutions whose weights are 2:4, by cuSPARSELt.

A kernel of torchkiln's own is not an option: Triton has no sparse matrix instruction.
"""

from __future__ import annotations

from ..cusparselt import ALGORITHMS, DTYPES, WEIGHT_MULTIPLE, compress, missing
from ..is_matrix_product import is_matrix_product
from ..mark_two_of_four import TWO_OF_FOUR
from ..recipe import Config, Packed, Problem, Recipe, Ref, Tactic, TensorSpec, TorchCall
from .epilogue import epilogue_blocks, epilogue_launch, epilogue_reject, flat_rows, rows_of, walks_by_rows


class CuSparseLt:
    """cuSPARSELt with its bias, or else a product followed by one launch of torchkiln's epilogue. The weight is compressed at build time.

    Only for weights that ``mark_two_of_four`` has marked. The result is memory that torch allocates; one that is an output of the engine or a part of
    something larger is copied there.
    """

    name = "cusparselt"
    ops: tuple[str, ...] = ("linear", "conv")

    def reject(self, problem: Problem) -> str:
        x, weight = problem.inputs[:2]
        assert x is not None
        assert weight is not None
        if not problem.attributes.get(TWO_OF_FOUR):
            return "the weight has no 2:4 pattern, or sparse_weights is off"
        why = missing()
        if why:
            return why
        if problem.capability < 80:
            return f"2:4 needs compute capability 8.0, this GPU has {problem.capability / 10}"
        if problem.op == "conv":
            if not is_matrix_product(weight.shape, *(problem.attributes[name] for name in ("stride", "padding", "transposed", "groups"))):
                return "only a 1x1 convolution with stride 1 and no padding, not grouped or transposed, is one matrix product"
            if problem.inputs[4] is not None:
                return "cuSPARSELt does not scale the input"
        if x.dtype not in DTYPES or weight.dtype != x.dtype:
            return f"the input is {x.dtype}, the weight {weight.dtype}: expected the same of fp16 and bf16"
        if x.numel == 0:
            return "an empty operand"
        features, depth = weight.shape[:2]
        for size, what in ((features, "output"), (depth, "input")):
            if size % WEIGHT_MULTIPLE:
                return f"the weight's {what} dimension is {size}, no multiple of {WEIGHT_MULTIPLE}"
        if not walks_by_rows(rows_of(x, problem.op)):
            return f"the input: strides {x.strides} are not rows of channels"
        (rows, _), (stride, _) = flat_rows(x, problem.op)
        if rows > 1 and stride != depth:
            return f"the input's rows are {stride} elements apart: cuSPARSELt is given dense ones of {depth}"
        if max(x.span, weight.span) >= 2**31:
            return "a tensor of more than 2**31 elements"
        return epilogue_reject(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """``algorithm``: which of the library's, its default first; ``block``: elements of a program of the epilogue, 0 where there is none."""
        algorithms = range((1, 2, 6, 12, 24, ALGORITHMS)[level])
        if _is_fused(problem):
            return [{"algorithm": algorithm, "block": 0} for algorithm in algorithms]
        best, *others = epilogue_blocks(problem)
        found = [{"algorithm": algorithm, "block": best} for algorithm in algorithms]
        return [*found, *({"algorithm": 0, "block": block} for block in others)] if level == 5 else found

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, weight, bias = problem.inputs[:3]
        assert x is not None
        assert weight is not None
        y = problem.outputs[0]
        features, depth = weight.shape[:2]
        (rows, _), _ = flat_rows(x, problem.op)
        is_fused = not config["block"]
        spec = TensorSpec(y.shape, _dense_row_strides(y, problem.op), x.dtype)
        arguments = (
            Ref("packed.weight"),
            Ref("x0", (rows, depth), (depth, 1)),
            Ref("x2") if is_fused and bias is not None else None,
            features,
            config["algorithm"],
            list(spec.shape),
            list(spec.strides),
        )
        packed = {"weight": Packed(compress, ("x1",))}
        target = "y0" if is_fused else "scratch.product"
        call = TorchCall("torchkiln.cusparselt.default", arguments, results=(target,))
        if is_fused:
            return Recipe((call,), packed=packed)
        return Recipe((call, epilogue_launch(problem, config, target, spec)), {"product": spec}, packed)


def _is_fused(problem: Problem) -> bool:
    """Whether one call of cuSPARSELt is the whole problem: nothing but a bias besides the product, all of one dtype."""
    x, _, bias, residual = problem.inputs[:4]
    assert x is not None
    if residual is not None or problem.attributes["activation"] != "none":
        return False
    return problem.outputs[0].dtype == x.dtype and (bias is None or bias.dtype == x.dtype)


def _dense_row_strides(spec: TensorSpec, op: str) -> tuple[int, ...]:
    """Strides of the same shape as dense rows of channels."""
    dense = TensorSpec.contiguous(rows_of(spec, op).shape, spec.dtype).strides
    return dense if op == "linear" else (dense[0], dense[-1], *dense[1:-1])


TACTICS: tuple[Tactic, ...] = (CuSparseLt(),)
