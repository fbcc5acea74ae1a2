"""Artifact: what a backend builds from one segment, and all that the engine file keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Artifact:
    """One built segment.

    Attributes:
        payload: opaque to everyone but the backend that made it (an IR, a graph, a package).
        tensors: weights and constants, saved as safetensors; contiguous, any device (saved from the CPU).
        metadata: JSON values the backend's runtime needs (precision, library versions, options).
        native_code: whether loading runs machine code held in ``payload``; such a file loads only with ``trusted=True``.
    """

    payload: bytes
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    native_code: bool = False
