"""sparsify: prune a model to 2:4 by magnitude, for fine-tuning; remove_masks: make the zeros its own afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from ..errors import UserError
from ..log import STEPS, SUMMARY, log
from ..progress import progress
from .find_weights import MULTIPLE, find_weights
from .mask import has_mask, put_mask, remove_mask

M = TypeVar("M", bound=nn.Module)


def sparsify(model: M, *, skip: str | Iterable[str] = (), stem: bool = False, head: bool = False, multiple_of: int = MULTIPLE) -> M:
    """Prune the weights of linear layers and convolutions to 2:4, in place: of every four along the input dimension the two of smallest magnitude
    become zero and stay zero, whatever is trained afterwards.

        model = torchkiln.sparsify(model)
        train(model)                                   # a few epochs, to win back the accuracy
        engine = torchkiln.compile(model, inputs, sparse_weights=True)

    The zeros are held by masks (``torch.nn.utils.parametrize``): the parameters stay the same objects, so an optimizer that has them goes on; weight
    decay, autocast, ``state_dict`` and ``copy.deepcopy`` work as before. An engine has plain weights with zeros. ``remove_masks`` makes them
    the model's own, with its state dict as it was before. Layers that have a mask keep it.

    Args:
        model: an nn.Module of real weights, on any device.
        skip: names of layers to leave dense, with wildcards as in file names (``"layer4.*"``), beside those that are left dense anyway:
            transposed, grouped and depthwise convolutions; weights that are shared, quantized or computed by a parametrization or a hook.
        stem: prune the first layer too (in the order in which modules were registered; a model that begins with an embedding has no stem).
        head: prune the last layer too.
        multiple_of: prune layers whose input and output dimensions are multiples of this: of 16, as kernels for 16-bit types want it (32 for 8-bit
            ones). With 4 every layer that the pattern fits is pruned, faster or not.

    Returns:
        The model itself. ``torchkiln.sparsity_report(model)``, with the same arguments, says what was pruned, what was not, and why.

    Raises:
        UserError: an argument is wrong, a pattern of ``skip`` matches nothing, or there is nothing to prune.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378.
    """
    weights = find_weights(model, skip, stem, head, multiple_of)
    chosen = [weight for weight in weights if not weight.reason]
    if not chosen:
        reasons = "; ".join(f"{weight.name}: {weight.reason}" for weight in weights[:20]) or "it has no linear layer and no convolution"
        raise UserError(f"model: nothing to prune: {reasons}")
    with torch.inference_mode(False), torch.no_grad():  # a mask that is made in inference mode cannot be trained with
        for done, weight in enumerate(chosen):
            progress("sparsify", done, len(chosen))
            if not weight.has_mask:
                put_mask(weight.module, weight.parameter)
    progress("sparsify", len(chosen), len(chosen))
    log(SUMMARY, "sparsify: %d of %d layers are 2:4", len(chosen), len(weights))
    for weight in weights:
        if weight.reason:
            log(STEPS, "sparsify: %s stays dense: %s", weight.name, weight.reason)
    return model


def remove_masks(model: M) -> M:
    """Make the zeros that ``sparsify`` holds the weights' own, in place, and return the model: plain parameters, the same objects, and a state dict
    with the names it had before. What is trained after this is no longer held at zero. A model without masks is left as it is.

    Raises UserError when ``model`` is no nn.Module.
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise UserError(f"model: expected an nn.Module, got {type(model).__name__}")
    for module in list(model.modules()):
        for parameter in ("weight", "in_proj_weight"):
            if has_mask(module, parameter):
                remove_mask(module, parameter)
    return model
