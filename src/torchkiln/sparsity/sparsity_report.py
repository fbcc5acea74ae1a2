"""sparsity_report: which layers of a model have 2:4 weights, how many zeros there are, and why the others have not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from torch import nn

from .find_weights import MULTIPLE, TRANSPOSED, Weight, find_weights, has_values
from .pattern import is_two_of_four, zero_share

WIDTH = 120


@dataclass(frozen=True)
class LayerSparsity:
    """A linear layer or convolution.

    Attributes:
        name: the path of its module.
        kind: the module's class, "Conv2d".
        shape: of the weight, [out, in, *kernel].
        zeros: share of the weight's elements that are zero, 0 to 1; None where the weight has no values to look at.
        is_sparse: whether the weight has the 2:4 pattern.
        has_mask: whether ``sparsify`` holds its zeros.
        reason: why ``sparsify`` leaves it dense; "" when it prunes it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    zeros: float | None
    is_sparse: bool
    has_mask: bool
    reason: str


@dataclass(frozen=True)
class SparsityReport:
    """``print`` shows it as a table; ``as_json`` is its JSON form."""

    layers: tuple[LayerSparsity, ...]

    @property
    def sparse_count(self) -> int:
        """Layers whose weights have the pattern."""
        return sum(layer.is_sparse for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {"sparse_count": self.sparse_count, "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers]}

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=StringIO(), width=WIDTH, force_terminal=False, color_system=None, emoji=False, markup=False, highlight=False)
        table = Table(title=f"2:4 in {self.sparse_count} of {len(self.layers)} layers", title_justify="left", title_style="", expand=False)
        for name, justify in {
            "layer": "left",
            "type": "left",
            "weight": "left",
            "zeros": "right",
            "2:4": "left",
            "not pruned because": "left",
        }.items():
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for layer in self.layers:
            zeros = "-" if layer.zeros is None else f"{100 * layer.zeros:.1f} %"
            pattern = ("yes, held by a mask" if layer.has_mask else "yes") if layer.is_sparse else "no"
            cells = (layer.name, layer.kind, "x".join(map(str, layer.shape)), zeros, pattern, "" if layer.is_sparse else layer.reason)
            table.add_row(*map(Text, cells))
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined]


def sparsity_report(
    model: nn.Module, *, skip: str | Iterable[str] = (), stem: bool = False, head: bool = False, multiple_of: int = MULTIPLE
) -> SparsityReport:
    """A SparsityReport on ``model``, sparsified or not: every linear layer and convolution. The arguments are those of ``sparsify``, so that the
    reasons are the ones that it goes by. Changes nothing. Raises UserError as ``sparsify`` does."""
    return SparsityReport(tuple(map(_read, find_weights(model, skip, stem, head, multiple_of))))


def _read(weight: Weight) -> LayerSparsity:
    tensor = weight.tensor
    if tensor is None:
        return LayerSparsity(weight.name, weight.kind, (), None, is_sparse=False, has_mask=False, reason=weight.reason)
    shape = tuple(tensor.shape)
    if not has_values(tensor):
        return LayerSparsity(weight.name, weight.kind, shape, None, is_sparse=False, has_mask=weight.has_mask, reason=weight.reason)
    # A transposed convolution's weight is [in, out, *kernel]: its groups would run along the output.
    is_sparse = not isinstance(weight.module, TRANSPOSED) and is_two_of_four(tensor)
    return LayerSparsity(weight.name, weight.kind, shape, zero_share(tensor), is_sparse, weight.has_mask, weight.reason)
