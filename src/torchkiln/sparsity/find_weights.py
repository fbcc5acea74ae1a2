"""find_weights: the weights of a model's linear layers and convolutions, and why some are not pruned."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import UserError
from .mask import has_mask
from .pattern import GROUP

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Inner and output dimensions that kernels for 16-bit types want; those for 8-bit types want 32.
MULTIPLE = 16


@dataclass(frozen=True)
class Weight:
    """A weight that could have the pattern.

    Attributes:
        name: of the layer: the path of its module, with ".in_proj" for the joint projection of an nn.MultiheadAttention.
        module, parameter: where the weight is.
        reason: why ``sparsify`` leaves it dense; "" when it prunes it.
    """

    name: str
    module: nn.Module
    parameter: str
    reason: str

    @property
    def tensor(self) -> torch.Tensor | None:
        """As the module computes with it: masked, where it has a mask. None while it has no shape."""
        tensor: torch.Tensor = getattr(self.module, self.parameter)
        return None if is_lazy(tensor) else tensor.detach()

    @property
    def kind(self) -> str:
        """ "Linear", "Conv2d", ...: the module's own class, not the one that torch makes for a parametrized module."""
        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def has_mask(self) -> bool:
        return has_mask(self.module, self.parameter)


def find_weights(model: object, skip: str | Iterable[str] = (), stem: bool = False, head: bool = False, multiple_of: int = MULTIPLE) -> list[Weight]:
    """Every weight in the order in which the modules were registered. See ``sparsify`` for the arguments.

    Raises UserError when an argument is not what it should be, or a pattern of ``skip`` matches no layer.
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise UserError(f"model: expected an nn.Module, got {type(model).__name__}: prune the model before it is exported or scripted")
    patterns = _read_arguments(skip, stem, head, multiple_of)
    uses = Counter(id(parameter) for module in model.modules() for parameter in _own_parameters(module))
    found = list(_candidates(model))
    names = [name for name, _, _ in found]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"skip: {pattern!r} matches no layer; there are {', '.join(names[:20]) or 'none'}{', ...' if len(names) > 20 else ''}")
    reads_embeddings = _starts_with_embedding(model)
    weights = []
    for index, (name, module, parameter) in enumerate(found):
        reason = _reason(module, parameter, multiple_of, uses)
        if not reason and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            reason = "skip names it"
        elif not reason and index == 0 and not stem and not reads_embeddings:
            reason = "the stem: the first layer of the model (stem=True prunes it)"
        elif not reason and index == len(found) - 1 and not head:
            reason = "the head: the last layer of the model (head=True prunes it)"
        weights.append(Weight(name, module, parameter, reason))
    return weights


def _read_arguments(skip: str | Iterable[str], stem: bool, head: bool, multiple_of: int) -> Sequence[str]:
    patterns = [skip] if isinstance(skip, str) else list(skip) if isinstance(skip, Iterable) else [skip]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"skip: expected names of layers, with wildcards as in file names, got {skip!r}")
    for name, value in (("stem", stem), ("head", head)):
        if not isinstance(value, bool):
            raise UserError(f"{name}: expected True or False, got {value!r}")
    if type(multiple_of) is not int or multiple_of < GROUP or multiple_of % GROUP:
        raise UserError(f"multiple_of: expected a multiple of {GROUP} (16 for 16-bit kernels, 32 for 8-bit ones), got {multiple_of!r}")
    return patterns


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, parameter) of each."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *TRANSPOSED)):
            yield path or type(module).__name__, module, "weight"
        elif isinstance(module, nn.MultiheadAttention) and (module.in_proj_weight is not None):
            yield f"{path}.in_proj".removeprefix("."), module, "in_proj_weight"


def _own_parameters(module: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def _starts_with_embedding(model: nn.Module) -> bool:
    """Whether the model looks its input up: then its first layer reads no raw input."""
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return True
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *TRANSPOSED, nn.MultiheadAttention)):
            return False
    return False


def _reason(module: nn.Module, parameter: str, multiple_of: int, uses: Counter[int]) -> str:
    """Why this weight cannot be pruned, whatever its place in the model; "" when it can."""
    if parametrize.is_parametrized(module, parameter) and not has_mask(module, parameter):
        return "its weight is computed by another parametrization"
    if not parametrize.is_parametrized(module, parameter) and parameter not in module._parameters:
        return "its weight is no parameter: a hook computes it"
    weight = getattr(module, parameter)
    if is_lazy(weight):
        return "its weight has no shape yet: call the model once first"
    if isinstance(module, TRANSPOSED):
        return "a transposed convolution"
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
        return "a depthwise convolution" if module.groups == module.in_channels else f"a convolution of {module.groups} groups"
    if not has_values(weight):
        what = "on the meta device" if weight.is_meta else f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')}"
        return f"its weight is {what}: expected fp16, bf16, fp32 or fp64 values"
    if not has_mask(module, parameter) and uses[id(weight)] > 1:
        return "its weight is shared with another module"
    for size, what in ((weight.shape[1], "input"), (weight.shape[0], "output")):
        if size % multiple_of or not size:
            return f"its {what} dimension is {size}, no multiple of {multiple_of}"
    return ""


def has_values(tensor: torch.Tensor) -> bool:
    """Whether it is a plain tensor of floating-point numbers."""
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta
    return is_plain and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
