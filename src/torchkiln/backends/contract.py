"""The contract every backend keeps. A new backend is one folder with these pieces and one line in registry.py.

backends/NAME/support.py   supports(node) -> Reject | None, availability(target), candidates(target, settings)
backends/NAME/examine.py   examine(segment, candidate, settings) -> {node: Reject}   (optional)
backends/NAME/layer_times.py   layer_times(artifact, inputs, num_threads) -> {node: us}   (optional)
backends/NAME/build.py     build(segment, candidate, settings) -> Artifact
backends/NAME/runtime.py   load(artifact, device, num_threads) -> Runner     (imports no builder)
backends/NAME/__init__.py  BACKEND = LazyBackend("NAME", __name__, ...)  (imports its pieces when asked)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..quantized_ops import INT8

if TYPE_CHECKING:
    from torch.fx import Node

    from ..engine.artifact import Artifact
    from ..partition.segment import Segment
    from ..settings import CompileSettings
    from ..target import Target

#: A loaded segment: called with the segment's input tensors (already checked, on the engine's device), in order; returns
#: its output tensors in order, fresh (the caller owns them). Safe under concurrent calls from several threads.
Runner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Reject:
    """Why a backend does not take a node (or a precision, or a machine): data with a reason a user can read."""

    subject: str
    """What is refused: an op ("aten.nonzero.default"), a precision ("fp16"), or a backend ("onnxruntime")."""
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One way to build: a backend at a compute precision, with the backend's own options (settings the user chose are elsewhere).

    ``targets`` is what it is built for: one target, or several GPUs that are not in this machine and that one build serves. ``quantized``: it is
    built of the graph with quantize/dequantize pairs, whose layers are int8; ``precision`` is that of all else. ``kind``: what is quantized in that
    graph, inputs and weights (INT8 of quantized_ops) or weights alone (WEIGHT8, WEIGHT4).
    """

    backend: str
    precision: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    quantized: bool = False
    kind: str = INT8

    @property
    def precision_text(self) -> str:
        """What it computes in, for reports: "fp16", "int8+fp16", "w4+fp16" (weights of 4 bits)."""
        from ..dtypes import precision_name

        return f"{self.kind}+{precision_name(self.precision)}" if self.quantized else precision_name(self.precision)

    @property
    def is_here(self) -> bool:
        """Whether what is built can run on this machine."""
        return all(target.is_here for target in self.targets)

    def __str__(self) -> str:
        extra = "".join(f", {k}={v}" for k, v in self.options.items())
        return f"{self.backend} {self.precision_text}{extra}"


class Backend(Protocol):
    """What the compiler asks of a backend."""

    name: str
    no_int8: str
    """Why it does not run quantize/dequantize pairs as int8 ("" when it does, or gives the same numbers)."""
    no_weight_only: str
    """Why it does not keep the weights of a graph whose weights alone are quantized in 8 or 4 bits ("" when it does)."""

    def availability(self, target: Target) -> Reject | None:
        """None when this backend can build for ``target`` on this machine; else why not and what to install. Must be cheap
        (find_spec, no import of the heavy library) and must not raise."""
        ...

    def candidates(self, target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
        """The candidates for the enabled precisions, and a Reject for each enabled precision that this backend cannot compute in there."""
        ...

    def supports(self, node: Node) -> Reject | None:
        """None when the backend takes this ``call_function`` node of the lowered graph; else why not. Must not raise."""
        ...

    def examine(self, segment: Segment, candidate: Candidate, settings: CompileSettings) -> dict[Node, Reject]:
        """The nodes of ``segment.graph_module`` that the library refuses when it sees the segment whole. Asked after partitioning and before
        build, in a dry run too; the graph is then partitioned again without them."""
        ...

    def build(self, segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
        """Build the segment. Raises BuildFailed with the library's own message."""
        ...

    def load(self, artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
        """Make an artifact ready to run. Raises TargetMismatch when this machine or library version cannot run it, MissingPackage
        when its library is not installed. Imports no builder code."""
        ...

    def layer_times(self, artifact: Artifact, inputs: Sequence[torch.Tensor], num_threads: int | None) -> dict[str, float]:
        """Microseconds of each node of the segment as the library counts them; {} where it does not."""
        ...
