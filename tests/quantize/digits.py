"""Small networks on scikit-learn's 8x8 digits, trained in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) float32 in 0..1, labels (N,) int64."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    def batches(self, size: int = 100, count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Calibration data: (images, labels) of the training part."""
        return [(self.train[i * size : (i + 1) * size], self.train_labels[i * size : (i + 1) * size]) for i in range(count)]


def load_digits() -> Digits:
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8)[order] / 16
    y = torch.from_numpy(labels).long()[order]
    return Digits(x[:1000], y[:1000], x[1000:], y[1000:])


class Residual(nn.Module):
    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(wider)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(wider)
        self.shortcut = nn.Conv2d(channels, wider, 1, 2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(wider)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut_norm(self.shortcut(x)))


class Cnn(nn.Module):
    """A stem, a residual block, a depthwise and a pointwise convolution, a hidden and a last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.block = Residual(16, 32)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.pointwise = nn.Conv2d(32, 48, 1)
        self.hidden = nn.Linear(48 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.block(x)
        x = F.relu(self.pointwise(F.relu(self.depthwise(x))))
        x = F.max_pool2d(x, 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.project(attended)
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Vit(nn.Module):
    """Patches of 2x2, two encoder layers."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.Sequential(*[EncoderLayer(width, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


def train(model: nn.Module, digits: Digits, epochs: int, rate: float, seed: int = 0, after_step: Iterable[object] = ()) -> nn.Module:
    """Train in place, in the mode the model is in. Returns the model."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    steps = epochs * -(-len(digits.train) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train), generator=generator).split(100):
            loss = F.cross_entropy(model(digits.train[rows]), digits.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def accuracy(model: object, digits: Digits) -> float:
    """Percent of the test images that are recognised, called in batches of 100 and a rest."""
    right = 0
    with torch.no_grad():
        for images, labels in zip(digits.test.split(100), digits.test_labels.split(100), strict=True):
            right += int((model(images).argmax(1) == labels).sum())  # type: ignore[operator]
    return 100 * right / len(digits.test)
