"""Artifact: what a backend builds from one segment, and all that the engine file keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..backends.contract import Runner


@dataclass
class Artifact:
    """One built segment.

    Attributes:
        payload: opaque to everyone but the backend that made it (an IR, a graph, a package).
        tensors: weights and constants, saved as safetensors; contiguous, any device (saved from the CPU).
        metadata: JSON values the backend's runtime needs (precision, library versions, options).
        native_code: whether loading runs machine code held in ``payload``; such a file loads only with ``trusted=True``.
        stand_in: for a target that is not in this machine: runs the graph that was built, on the CPU, so that the build can be checked. Never
            saved.
    """

    payload: bytes
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    native_code: bool = False
    stand_in: Runner | None = field(default=None, repr=False, compare=False)
