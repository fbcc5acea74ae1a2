"""tune: which way of spreading work over threads is fastest for a segment, by measuring.

The CPU plugin splits each loop evenly over the threads by default; with TBB_PARTITIONER=AUTO threads that are done take work from others.
Neither is better: AUTO was 18% faster on ViT-B/16 in bf16 and 19% slower on EfficientNet-B0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...log import STEPS, log
from ..choose_fastest import choose_fastest
from .library import core
from .runtime import ROUND_ACTIVATIONS, TUNED_PROPERTIES, Session, compile_ir

#: Properties to try: the plugin's defaults, and beside them.
_CHOICES: tuple[dict[str, Any], ...] = ({}, *({name: value} for name, value in TUNED_PROPERTIES))


def best_properties(
    artifact: Artifact, inputs: Sequence[torch.Tensor], num_threads: int | None, *, may_round: bool = False
) -> tuple[dict[str, Any], Any]:
    """The plugin properties with the lowest time at the example inputs, and the ``openvino.CompiledModel`` that has them.

    ``may_round``: whether kernels that read weights in 8 or 4 bits may round their activations to int8. Takes about two compilations (four with
    ``may_round``) and one second at most.
    """
    known = core().get_property("CPU", "SUPPORTED_PROPERTIES")
    rounding: dict[str, Any] = dict([ROUND_ACTIVATIONS])
    choices = [{**choice, **more} for more in ([{}, rounding] if may_round else [{}]) for choice in _CHOICES]
    choices = [c for c in choices if all(name in known for name in c)]
    precision = str(artifact.metadata["precision"])
    weights = artifact.tensors.get("weights")
    compiled = [compile_ir(artifact, precision, num_threads, choice) for choice in choices]
    sessions = [Session(model, weights) for model in compiled]
    winner, times_us = choose_fastest(sessions, inputs)
    log(STEPS, "openvino: %s", ", ".join(f"{choice or 'defaults'}: {t:.0f} us" for choice, t in zip(choices, times_us, strict=True)))
    return choices[winner], compiled[winner]
