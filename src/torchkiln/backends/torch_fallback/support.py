"""What the fallback takes: every operator, on every device that PyTorch has here."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...settings import CompileSettings
from ...target import Target
from ..contract import Candidate, Reject


def availability(target: Target) -> Reject | None:
    """None unless PyTorch has no such device on this machine."""
    if not target.is_here:
        return Reject("torch", f"runs what this machine has, and {target} is not in it: PyTorch's own segments are part of any engine built for it")
    if target.device_type == "cuda" and not torch.cuda.is_available():
        return Reject(
            "torch", "torch.cuda.is_available() is False on this machine: install a CUDA build of PyTorch and a driver, or use device='cpu'"
        )
    return None


def candidates(target: Target, settings: CompileSettings) -> tuple[list[Candidate], list[Reject]]:
    """One candidate: the graph as it is, in its own dtypes, which ``fp32`` stands for. Lower precisions are no rejects: the fallback keeps
    the model's own numbers on purpose."""
    return [Candidate("torch", torch.float32)], []


def supports(node: Node) -> Reject | None:
    """None: PyTorch runs every operator."""
    return None
