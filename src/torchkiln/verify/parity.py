"""compare: how far a runner's outputs are from the reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Parity:
    """The distance between outputs and references, over all outputs together.

    Attributes:
        relative_error: the worst over the outputs of ``|out - ref| / |ref|`` (L2 norms in float64); for integer and boolean outputs the
            fraction of elements that differ. 0.0 when the reference is all zeros and the output equals it, inf when it does not; inf when
            NaN or infinity stands in one and not in the other at the same place.
        max_abs_error: the largest ``|out - ref|`` over all elements; inf where only one of the two is finite.
        cosine: the smallest cosine similarity over the floating outputs; 1.0 for equal outputs, 0.0 where it has no meaning (one of
            the two is all zeros, or not finite).
    """

    relative_error: float
    max_abs_error: float
    cosine: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.relative_error) and math.isfinite(self.max_abs_error)


def compare(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> Parity:
    """Compare tensors of equal shapes, any dtypes and devices, in float64. The worst output decides.

    NaN in both at the same place counts as equal, and so does the same infinity. Empty tensors are equal.
    Raises UserError when the numbers of outputs or their shapes differ.
    """
    if len(outputs) != len(references):
        raise UserError(f"compare: expected {len(references)} outputs, as the reference has, got {len(outputs)}")
    worst = Parity(0.0, 0.0, 1.0)
    for index, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        if output.shape != reference.shape:
            raise UserError(f"compare: outputs[{index}]: expected shape {tuple(reference.shape)}, got {tuple(output.shape)}")
        one = _compare_one(output.detach(), reference.detach())
        worst = Parity(
            max(worst.relative_error, one.relative_error),
            max(worst.max_abs_error, one.max_abs_error),
            min(worst.cosine, one.cosine),
        )
    return worst


def is_constant(tensor: Tensor) -> bool:
    """Whether all elements are one value (and there are several): then a relative error says little about the model's arithmetic."""
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def _compare_one(output: Tensor, reference: Tensor) -> Parity:
    if reference.numel() == 0:
        return Parity(0.0, 0.0, 1.0)
    if not (_is_inexact(output) or _is_inexact(reference)):
        return _compare_exact(output.cpu(), reference.cpu())
    out, ref = _widen(output, reference.is_complex()), _widen(reference, output.is_complex())
    equal = (out == ref) | (out.isnan() & ref.isnan())
    if bool(equal.all()):
        return Parity(0.0, 0.0, 1.0)
    # Where both hold the same NaN or infinity the difference is 0, not NaN; elsewhere a non-finite difference is an infinite error.
    difference = torch.where(equal, torch.zeros_like(out), out - ref).abs()
    max_abs_error = _infinite_if_nan(difference.max().item())
    if math.isinf(max_abs_error):
        return Parity(math.inf, math.inf, 0.0)
    finite = ref.isfinite()
    ref_norm = _norm(ref[finite])
    return Parity(_norm(difference) / ref_norm if ref_norm > 0 else math.inf, max_abs_error, _cosine(out[finite], ref[finite]))


def _compare_exact(output: Tensor, reference: Tensor) -> Parity:
    # Not through float64: it holds integers only up to 2**53.
    mismatches = (output != reference).sum().item() / reference.numel()
    difference = (output.double() - reference.double()).abs().max().item()
    return Parity(mismatches, difference, 1.0)


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _widen(tensor: Tensor, as_complex: bool) -> Tensor:
    """Float64 on the CPU; complex numbers as pairs."""
    tensor = tensor.cpu()
    if tensor.is_complex() or as_complex:
        return torch.view_as_real(tensor.to(torch.complex128).resolve_conj())
    return tensor.double()


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor).item()


def _cosine(out: Tensor, ref: Tensor) -> float:
    norms = _norm(out) * _norm(ref)
    if norms == 0 or not math.isfinite(norms):
        return 0.0
    return min(1.0, max(-1.0, torch.dot(out, ref).item() / norms))


def _infinite_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
