"""postprocess: softmax, argmax, a threshold or the choice of a channel behind a model, as part of its engine.

    model = torchkiln.with_postprocess(unet, postprocess.softmax(dim=1), postprocess.select(1))
    engine = torchkiln.compile(model, inputs=[x])

The engine computes them with the rest of the graph, and only what is left of the output leaves the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .errors import UserError

#: What argmax and threshold can give; uint8 and bool take an eighth of int64's memory.
LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int64, torch.int32, torch.float32, torch.float16, torch.bfloat16)


def with_postprocess(model: Callable[..., Any], *steps: Callable[[Any], Any]) -> nn.Module:
    """``model`` with ``steps`` applied to what it returns, one after another: a module that ``torchkiln.compile`` and torch.export take.

    ``model`` itself stays as it is, its training mode and the keys of its ``state_dict()`` too; it is the ``model`` of what is returned, which has
    its training mode.

    Args:
        model: an nn.Module, or the ExportedProgram of one.
        steps: those of this module, or any module or function of one argument: it gets the whole output. Those of this module apply to each
            tensor of an output that is a tuple, list or dict.

    Raises UserError for a ScriptModule, which torch.export cannot take as a part of another module, and for what cannot be called.
    """
    is_exported = isinstance(model, torch.export.ExportedProgram)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("with_postprocess: a ScriptModule cannot be part of another module here: give the nn.Module that it was made from")
    if not isinstance(model, nn.Module):
        raise UserError(f"with_postprocess: model: expected an nn.Module, got {type(model).__name__}")
    if not steps:
        raise UserError("with_postprocess: expected at least one step, as torchkiln.postprocess.softmax(dim=1)")
    for index, step in enumerate(steps):
        if isinstance(step, type) or not callable(step):
            what = f"the class {step.__name__}; give an instance" if isinstance(step, type) else repr(step)
            raise UserError(f"with_postprocess: step {index}: expected a module or a function of the output, got {what}")
    wrapped = _wrap(model, steps)
    if is_exported:
        wrapped.training = False  # its mode was settled when it was exported; the module that it gives says True in any case
    return wrapped


class WithPostprocess(nn.Module):
    """A model and the steps behind it. ``with_postprocess`` makes one, whose ``forward`` has the parameters of the model's."""

    model: nn.Module
    steps: nn.ModuleList

    def __init__(self, model: nn.Module, *steps: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.steps = nn.ModuleList(step if isinstance(step, nn.Module) else _Function(step) for step in steps)
        # nn.Module begins in training mode; this one has its model's, whose own parts are left as they are.
        self.training = model.training
        #: The name that reports show.
        self.original_name = " + ".join([type(model).__name__, *(str(step) for step in self.steps)])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value = self.model(*args, **kwargs)
        for step in self.steps:
            value = step(value)
        return value

    def __reduce__(self) -> Any:
        # Copies and pickles name no class, as each has one of its own.
        return _wrap, (self.model, tuple(self.steps)), self.__dict__


def _wrap(model: nn.Module, steps: Sequence[Callable[[Any], Any]]) -> nn.Module:
    """A WithPostprocess of a class of its own: torch.export, and so an engine, takes the names of inputs from the signature of ``forward``."""

    def forward(self: WithPostprocess, *args: Any, **kwargs: Any) -> Any:
        return WithPostprocess.forward(self, *args, **kwargs)

    parameters = inspect.signature(model.forward).parameters.values()
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    return type("WithPostprocess", (WithPostprocess,), {"forward": forward, "__module__": __name__})(model, *steps)


def softmax(dim: int = 1) -> nn.Module:
    """Probabilities along ``dim`` (1: the channels). Output in the dtype of the input."""
    return _Softmax(_int(dim, "softmax", "dim"))


def sigmoid() -> nn.Module:
    """Each element's own probability. Output in the dtype of the input."""
    return _Sigmoid()


def select(*channels: int, dim: int = 1, keepdim: bool = True) -> nn.Module:
    """Only these channels, in this order; negative ones count from the end.

    Args:
        dim: where the channels are.
        keepdim: False, for one channel: without the dimension. Sliding windows need it.
    """
    if not channels:
        raise UserError("postprocess.select: expected at least one channel, as select(1)")
    if not keepdim and len(channels) > 1:
        raise UserError(f"postprocess.select: keepdim=False is for one channel, got {len(channels)}")
    return _Select(tuple(_int(channel, "select", "channel") for channel in channels), _int(dim, "select", "dim"), keepdim)


def argmax(dim: int = 1, *, keepdim: bool = False, dtype: torch.dtype = torch.int64) -> nn.Module:
    """The index of the largest element along ``dim``, as ``dtype``: int64, int32, or uint8 for at most 256 channels."""
    if dtype not in LABEL_DTYPES:
        raise UserError(f"postprocess.argmax: dtype: expected one of {_names(LABEL_DTYPES)}, got {dtype}")
    return _Argmax(_int(dim, "argmax", "dim"), keepdim, dtype)


def threshold(value: float, *, dtype: torch.dtype = torch.bool) -> nn.Module:
    """Whether an element is larger than ``value``, as ``dtype``: bool, or 0 and 1 as a number."""
    if dtype not in MASK_DTYPES:
        raise UserError(f"postprocess.threshold: dtype: expected one of {_names(MASK_DTYPES)}, got {dtype}")
    return _Threshold(float(value), dtype)


def pick(key: Any) -> nn.Module:
    """One entry of an output that is a dict, tuple or list: ``pick("out")`` for torchvision's segmentation models."""
    return _Pick(key)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, value: Any) -> Any:
        return self._function(value)

    def extra_repr(self) -> str:
        return str(getattr(self._function, "__name__", self._function))

    def __repr__(self) -> str:
        return self.extra_repr()


class _EachTensor(nn.Module):
    """Applies ``apply_to`` to every tensor of a nested output."""

    def forward(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.apply_to(value)
        if isinstance(value, Mapping):
            return {key: self.forward(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            items = [self.forward(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        raise UserError(f"{self}: expected an output of tensors, tuples, lists and dicts, got {type(value).__name__}")

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower().removeprefix('_')}({self.extra_repr()})"


class _Softmax(_EachTensor):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        return torch.softmax(value, self._dim)

    def extra_repr(self) -> str:
        return f"dim={self._dim}"


class _Sigmoid(_EachTensor):
    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(value)


class _Select(_EachTensor):
    def __init__(self, channels: tuple[int, ...], dim: int, keepdim: bool) -> None:
        super().__init__()
        self._channels, self._dim, self._keepdim = channels, dim, keepdim

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        count = value.shape[self._dim]
        channels = [channel + count if channel < 0 else channel for channel in self._channels]
        if not all(0 <= channel < count for channel in channels):
            raise UserError(f"{self}: dimension {self._dim} of the output has {count} channels, of shape {tuple(value.shape)}")
        if not self._keepdim:
            return value.select(self._dim, channels[0])
        # Of the numbers as they were given: torch.export would take a dynamic count for a constant. 0 does not follow -1.
        if all(after == before + 1 and after for before, after in pairwise(self._channels)):
            return value.narrow(self._dim, channels[0], len(channels))
        return torch.cat([value.narrow(self._dim, channel, 1) for channel in channels], self._dim)

    def extra_repr(self) -> str:
        return ", ".join([*map(str, self._channels), f"dim={self._dim}"])


class _Argmax(_EachTensor):
    def __init__(self, dim: int, keepdim: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self._dim, self._keepdim, self._dtype = dim, keepdim, dtype

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        if self._dtype is torch.uint8 and value.shape[self._dim] > 256:
            raise UserError(f"{self}: dimension {self._dim} has {value.shape[self._dim]} channels, and uint8 counts to 256: use dtype=torch.int32")
        return torch.argmax(value, self._dim, self._keepdim).to(self._dtype)

    def extra_repr(self) -> str:
        return f"dim={self._dim}"


class _Threshold(_EachTensor):
    def __init__(self, value: float, dtype: torch.dtype) -> None:
        super().__init__()
        self._value, self._dtype = value, dtype

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        return (value > self._value).to(self._dtype)

    def extra_repr(self) -> str:
        return f"{self._value:g}"


class _Pick(nn.Module):
    def __init__(self, key: Any) -> None:
        super().__init__()
        self._key = key

    def forward(self, value: Any) -> Any:
        try:
            return value[self._key]
        except (KeyError, IndexError, TypeError):
            has = f"the keys {list(value)}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise UserError(f"{self}: the model's output is {has}") from None

    def __repr__(self) -> str:
        return f"pick({self._key!r})"


def _int(value: Any, step: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"postprocess.{step}: {name}: expected a whole number, got {value!r}")
    return value


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
