"""settle_batch_norms: give a model with random weights activations of a sensible size.

Untrained batch norms have mean 0 and variance 1 on record, whatever flows through them. In some deep models activations then fade or grow from
layer to layer (EfficientNet-B0's outputs are of the order 1e-14), and comparing precisions compares nothing: in float16 such outputs are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engine.structure import Structure
from ..inputs import Input

#: Outputs of a root mean square in this range need no help.
SENSIBLE_RMS = (1e-3, 1e3)


def settle_batch_norms(model: nn.Module, inputs: Sequence[Input], seed: int) -> list[str]:
    """Where outputs fade or grow, run the model once on a seeded random batch of 2; each batch norm records the mean square of what reaches it.

    One number for all channels, and no mean: taking each channel's own statistics, as training does, makes a network of random weights chaotic
    (ResNet-50's error in float16 grows a hundredfold), which no trained network is.

    Returns a note for the user, or nothing when the model was left as it is.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_var is not None]
    batch = [i.random((2, *i.opt_shape[1:]), seed=seed + n) for n, i in enumerate(inputs)]
    was_training = model.training
    model.eval()
    try:
        if not layers or _is_sensible(model, batch):
            return []
        hooks = [layer.register_forward_pre_hook(_record_mean_square) for layer in layers]
        try:
            with torch.no_grad():
                model(*batch)
        finally:
            for hook in hooks:
                hook.remove()
    finally:
        model.train(was_training)
    return [f"{len(layers)} batch norms recorded the mean square of a seeded random batch: with random weights alone, activations fade or grow"]


def _is_sensible(model: nn.Module, batch: Sequence[torch.Tensor]) -> bool:
    with torch.no_grad():
        _, leaves = Structure.of(model(*batch))
    low, high = SENSIBLE_RMS
    return all(low < t.float().square().mean().sqrt() < high for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel())


def _record_mean_square(layer: nn.Module, args: tuple[Any, ...]) -> None:
    assert isinstance(layer, _BatchNorm)
    assert layer.running_var is not None
    # A root mean square of 0.5 after it: within what trained networks have, and small enough that activations do not saturate.
    layer.running_var.fill_(args[0].float().square().mean().clamp_min(1e-12) * 4)
