"""verify: compare an engine with the source model at every check point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..capture.arguments import Arguments
from ..dtypes import dtype_name
from ..engine.engine import Engine
from ..engine.report import ParityReport
from ..errors import UserError
from .check_points import check_points
from .parity import Parity, compare
from .reference import Reference, flat_tensors


@dataclass
class CheckPoint:
    """A call and what the source model answers to it."""

    name: str
    arguments: Arguments
    references: list[torch.Tensor]


def make_check_points(reference: Reference, arguments: Arguments, seed: int) -> list[CheckPoint]:
    """Run the source model at every checked shape. Raises UserError when the model itself fails at a shape of the range."""
    points = []
    for index, (name, shapes) in enumerate(check_points(arguments.inputs)):
        call = arguments.at_shapes(shapes, seed=seed + 1000 * index)
        try:
            references = reference.outputs(call)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            listed = ", ".join("x".join(map(str, s)) for s in shapes)
            raise UserError(
                f"verify: the source model itself fails at the {name} shapes ({listed}) in {dtype_name(reference.dtype)}: {error}. Give shapes it "
                "takes, Input(tensor_domain=...) for inputs with a range of values (token ids), or verify=False"
            ) from error
        points.append(CheckPoint(name, call, references))
    return points


def verify(engine: Engine, points: list[CheckPoint], reference_dtype: torch.dtype, tolerance: float) -> ParityReport:
    """The worst parity over all check points. A figure above ``tolerance`` is the caller's to act on (``passed``)."""
    worst = Parity(0.0, 0.0, 1.0)
    for point in points:
        outputs = flat_tensors(engine(*point.arguments.args, **point.arguments.kwargs))
        found = compare(outputs, point.references)
        worst = Parity(
            max(worst.relative_error, found.relative_error),
            max(worst.max_abs_error, found.max_abs_error),
            min(worst.cosine, found.cosine),
        )
    shapes = [f"{p.name}: " + ", ".join("x".join(map(str, t.shape)) for t in p.arguments.tensors) for p in points]
    return ParityReport(True, dtype_name(reference_dtype), tolerance, worst.relative_error, worst.max_abs_error, worst.cosine, shapes)


def passed(parity: ParityReport) -> bool:
    """Whether the engine may be kept: not checked, or within the tolerance (nan is not)."""
    return not parity.verified or (parity.relative_error is not None and parity.tolerance is not None and parity.relative_error <= parity.tolerance)
