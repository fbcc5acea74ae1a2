"""weight_notes: what became of weights in 8 or 4 bits in the engine that was kept."""

from __future__ import annotations

import torch

from ..partition.partition import TORCH
from ..settings import CompileSettings
from .attempt import Attempt


def weight_notes(best: Attempt, float_bytes: int, settings: CompileSettings) -> list[str]:
    """Lines for the report: the size beside that of the float model (``float_bytes``; 0: not known), and which kernels read the integers."""
    notes = []
    artifacts = [(segment, segment.artifact) for segment in best.contents.segments]
    if float_bytes:
        held = sum(len(artifact.payload) + sum(t.nbytes for t in artifact.tensors.values()) for _, artifact in artifacts)
        notes.append(f"weights: the engine holds {held / 1e6:.1f} MB; the model's constants are {float_bytes / 1e6:.1f} MB")
    for segment, artifact in artifacts:
        kept, count = artifact.metadata.get("weight_layers") or (0, 0)
        if count:
            notes.append(f"{segment.name}: {segment.backend} runs {kept} of {count} matrix products by kernels that read the integers")
        if artifact.metadata.get("rounds_activations"):
            notes.append(f"{segment.name}: {segment.backend} rounds activations of these to int8, by groups of 32, in each call")
    backend = best.candidate.backend
    if backend == TORCH:
        notes.append(f"weights: {backend} makes them floating in each call: the numbers and the size of fewer bits, not their speed")
    if torch.int8 in settings.enabled_precisions and backend != "openvino":
        notes.append(f"int8: {backend} does not round the activations of layers with compressed weights")
    return notes
