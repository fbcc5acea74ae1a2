"""cusparselt: products with a 2:4 weight by cuSPARSELt, as torch calls it.

``torch.ops.torchkiln.cusparselt`` runs torch's ``_cslt_sparse_mm`` over a weight that ``compress`` made, with the rows filled up to what the library
takes; on the CPU, which has no such kernels, it computes what it means. Sources: torch.sparse.SparseSemiStructuredTensorCUSPARSELT for what torch
gives the library, and the cuSPARSELt documentation, "cusparseLtMatmul", for the shapes that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch.nn import functional as F

from ...errors import BuildFailed

#: What the library multiplies.
DTYPES = (torch.float16, torch.bfloat16)
#: The weight's rows and columns are multiples of the first, the rows of the other operand of the second.
WEIGHT_MULTIPLE, ROW_MULTIPLE = 16, 8
#: Numbers of algorithms that are asked for. What a version of the library, a GPU or a shape does not have raises when it is called.
ALGORITHMS = 40
#: A row of a compressed weight has at least so many of 16 parts of the dense one: half the values, and two bits for the place of each. The library
#: fills small weights up.
_COMPRESSED_SIXTEENTHS = 9


def missing() -> str:
    """Why the library cannot be called; "" when this torch has it."""
    backend = getattr(torch.backends, "cusparselt", None)
    if backend is None or not backend.is_available():
        return "this build of torch has no cuSPARSELt (the CUDA wheels for Linux have)"
    return ""


@cache
def version() -> int:
    """Of the library, as 801 for 0.8.1; 0 where there is none. Each may lay compressed weights out in a way of its own."""
    return 0 if missing() else int(torch.backends.cusparselt.version() or 0)


def compress(weight: torch.Tensor) -> torch.Tensor:
    """A weight [N, K, 1, ...] with the 2:4 pattern, fp16 or bf16, as the library keeps it: N rows; on the CPU the dense ones.

    As int16: the places of the values among them are no numbers, and must be kept to the bit.
    """
    rows = weight.reshape(weight.shape[0], weight.shape[1]).contiguous()
    return (torch._cslt_compress(rows) if rows.is_cuda else rows).view(torch.int16)


def _product_cuda(
    weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, columns: int, algorithm: int, shape: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    _check_operands(weight, x, bias, columns, x.shape[-1] * _COMPRESSED_SIXTEENTHS // 16)
    missing_rows = -x.shape[0] % ROW_MULTIPLE
    rows = F.pad(x, (0, 0, 0, missing_rows)) if missing_rows else x
    product = torch._cslt_sparse_mm(weight.view(x.dtype), rows.t(), bias=bias, transpose_result=True, alg_id=algorithm)
    return product.as_strided(shape, strides)


def _product_cpu(
    weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, columns: int, algorithm: int, shape: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    del algorithm
    _check_operands(weight, x, bias, columns, x.shape[-1])
    product = x.float() @ weight.view(x.dtype).float().T
    return (product if bias is None else product + bias.float()).to(x.dtype).as_strided(shape, strides)


def _check_operands(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, columns: int, least: int) -> None:
    """Raises BuildFailed unless the operands are what the library is told they are: a file may say anything.

    Args:
        least: elements that a row of the weight has at least.
    """
    if x.dim() != 2 or not x.is_contiguous() or x.dtype not in DTYPES or x.shape[1] % WEIGHT_MULTIPLE or not x.numel():
        raise BuildFailed(f"cuSPARSELt: x: expected dense rows of fp16 or bf16, got {tuple(x.shape)}, strides {x.stride()}, {x.dtype}")
    if columns <= 0 or columns % WEIGHT_MULTIPLE:
        raise BuildFailed(f"cuSPARSELt: expected a multiple of {WEIGHT_MULTIPLE} columns, got {columns}")
    # torch takes the number of columns from the weight's shape, and sees to nothing else.
    is_whole = weight.dim() == 2 and weight.shape[0] == columns and weight.shape[1] >= least and weight.is_contiguous()
    if not is_whole or weight.dtype != torch.int16 or weight.device != x.device:
        raise BuildFailed(
            f"cuSPARSELt: weight: expected {columns} dense rows of at least {least} int16 on {x.device}, got {tuple(weight.shape)}, {weight.dtype}"
        )
    if bias is not None and (tuple(bias.shape) != (columns,) or not bias.is_contiguous() or bias.dtype != x.dtype or bias.device != x.device):
        raise BuildFailed(f"cuSPARSELt: bias: expected {columns} elements of {x.dtype} on {x.device}, got {tuple(bias.shape)}, {bias.dtype}")


_operators = torch.library.Library("torchkiln", "FRAGMENT")
_operators.define("cusparselt(Tensor weight, Tensor x, Tensor? bias, int columns, int algorithm, int[] shape, int[] strides) -> Tensor")
_operators.impl("cusparselt", _product_cuda, "CUDA")
_operators.impl("cusparselt", _product_cpu, "CPU")
