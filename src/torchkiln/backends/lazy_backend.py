"""LazyBackend: a backend whose pieces lie in files of its folder, each imported when it is first asked for.

So naming a backend imports no library, and loading an engine imports no builder.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from .contract import Candidate, Reject, Runner

if TYPE_CHECKING:
    from torch.fx import Node

    from ..engine.artifact import Artifact
    from ..partition.segment import Segment
    from ..settings import CompileSettings
    from ..target import Target


class LazyBackend:
    """The contract's methods as the functions of that name: ``supports`` in support.py, ``build`` in build.py, ``load`` in runtime.py.

    Args:
        name: the backend's name in the registry.
        package: the package that holds its files.
        availability, candidates: the files that hold those two functions.
        examine: the file that holds that function, for a backend that refuses nodes only when it sees their segment.
        layer_times: the file that holds that function, for a backend whose library tells what each layer takes.
        no_int8: why it does not run quantized graphs; "" when it does.
        no_weight_only: why it does not take graphs whose weights alone are quantized; "" when it does.
    """

    def __init__(
        self,
        name: str,
        package: str,
        *,
        availability: str,
        candidates: str,
        examine: str = "",
        layer_times: str = "",
        no_int8: str = "this version of torchkiln has no int8 for it",
        no_weight_only: str = "this version of torchkiln does not keep weights in 8 or 4 bits for it",
    ) -> None:
        self.name = name
        self.no_int8 = no_int8
        self.no_weight_only = no_weight_only
        self._package = package
        self._files = {"availability": availability, "candidates": candidates, "supports": "support", "build": "build", "load": "runtime"}
        if examine:
            self._files["examine"] = examine
        if layer_times:
            self._files["layer_times"] = layer_times

    def _call(self, function: str, *arguments: Any) -> Any:
        return getattr(import_module(f".{self._files[function]}", self._package), function)(*arguments)

    def availability(self, target: Target) -> Reject | None:
        return self._call("availability", target)

    def candidates(self, target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
        return self._call("candidates", target, settings)

    def supports(self, node: Node) -> Reject | None:
        return self._call("supports", node)

    def examine(self, segment: Segment, candidate: Candidate, settings: CompileSettings) -> dict[Node, Reject]:
        return self._call("examine", segment, candidate, settings) if "examine" in self._files else {}

    def build(self, segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
        return self._call("build", segment, candidate, settings)

    def load(self, artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
        return self._call("load", artifact, device, num_threads)

    def layer_times(self, artifact: Artifact, inputs: Sequence[torch.Tensor], num_threads: int | None) -> dict[str, float]:
        return self._call("layer_times", artifact, inputs, num_threads) if "layer_times" in self._files else {}
