"""Small models with a planted weakness each, and their lowered programs."""

from __future__ import annotations

import torch
from torch import nn

from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.lower.pipeline import lower
from torchkiln.program import Program


class Overflow(nn.Module):
    """``mul_1`` leaves the range of fp16; with ``together`` so does what reads it, ``mul_2``; the numbers are small again after."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(7, 11), nn.Linear(11, 11), nn.Linear(11, 5)
        self.together = together

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.stem(x).relu()) * 3000.0
        x = (x * 3000.0).unsqueeze(1)
        x = x * 1e-3 if self.together else x / (1.0 + x.abs())
        return self.head((x * 1e-3).squeeze(1))


class Constant(nn.Module):
    """``offset`` reads a large constant and removes it: its input has no room for what differs in 8 bits, nor in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.offset, self.plain = (nn.Conv2d(inputs, 9, 3) for inputs in (2, 9, 9))
        self.head = nn.Linear(9, 5)
        with torch.no_grad():
            self.offset.bias -= 80 * self.offset.weight.sum((1, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.offset(self.stem(x).relu() + 80)
        return self.head(self.plain(x.relu()).relu().mean((2, 3)))


def program_of(model: nn.Module, *inputs: torch.Tensor) -> Program:
    """The model captured for ``inputs`` and lowered."""
    program = capture(model, read_arguments(list(inputs), None, torch.device("cpu"), 0))
    lower(program)
    return program


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
