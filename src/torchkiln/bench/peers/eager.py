"""Eager PyTorch: as it comes, and with the convolution layout that its kernels prefer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..case import Case
from .contract import Refusal, Runner

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Eager:
    """The model called as it is, under inference mode."""

    name: str = "eager"
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        return None

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        return Runner(case.copy_model(precision), case.cast_inputs(precision))


@dataclass(frozen=True)
class EagerChannelsLast:
    """Weights and inputs in channels_last (4-D) or channels_last_3d (5-D)."""

    name: str = "eager-channels-last"
    slow_build: bool = False

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        return refuse_without_images(case)

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        model = case.copy_model(precision)
        for rank in image_ranks(case):
            model = model.to(memory_format=_LAYOUTS[rank])
        return Runner(model, [tuple(channels_last(t) for t in inputs) for inputs in case.cast_inputs(precision)])


def image_ranks(case: Case) -> set[int]:
    return {t.dim() for t in case.input_sets[0]} & _LAYOUTS.keys()


def refuse_without_images(case: Case) -> Refusal | None:
    return None if image_ranks(case) else Refusal("skipped", "channels_last needs an input of 4 or 5 dimensions")


def channels_last(tensor: Tensor) -> Tensor:
    layout = _LAYOUTS.get(tensor.dim())
    return tensor if layout is None else tensor.contiguous(memory_format=layout)
