"""LazyBackend: a backend whose pieces lie in files of its folder, each imported when it is first asked for.

So naming a backend imports no library, and loading an engine imports no builder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from .contract import Candidate, Reject, Runner

if TYPE_CHECKING:
    from torch.fx import Node

    from ..engine.artifact import Artifact
    from ..partition.segment import Segment
    from ..settings import CompileSettings


class LazyBackend:
    """The contract's methods as the functions of that name: ``supports`` in support.py, ``build`` in build.py, ``load`` in runtime.py.

    Args:
        name: the backend's name in the registry.
        package: the package that holds its files.
        availability, candidates: the files that hold those two functions.
    """

    def __init__(self, name: str, package: str, *, availability: str, candidates: str) -> None:
        self.name = name
        self._package = package
        self._files = {"availability": availability, "candidates": candidates, "supports": "support", "build": "build", "load": "runtime"}

    def _call(self, function: str, *arguments: Any) -> Any:
        return getattr(import_module(f".{self._files[function]}", self._package), function)(*arguments)

    def availability(self, device: torch.device) -> Reject | None:
        return self._call("availability", device)

    def candidates(self, device: torch.device, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
        return self._call("candidates", device, settings)

    def supports(self, node: Node) -> Reject | None:
        return self._call("supports", node)

    def build(self, segment: Segment, candidate: Candidate, settings: CompileSettings) -> Artifact:
        return self._call("build", segment, candidate, settings)

    def load(self, artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
        return self._call("load", artifact, device, num_threads)
