"""Small models that between them use what real ones do. Each entry: name -> (module, inputs, ranges)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(13), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(13, 13, 3, padding=1, groups=13), nn.BatchNorm2d(13), nn.SiLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(13, 13, 1), nn.Hardsigmoid())
        self.head = nn.Linear(13, 7)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(13) * 0.1
                module.running_var = torch.rand(13) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x)
        x = self.pool(x)
        x = x * self.gate(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 50), nn.GELU(), nn.Linear(50, 24))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).reshape(batch, length, 24))
        return (x + self.mlp(x)).softmax(-1)


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(31, 12), nn.Linear(12, 5)
        self.positions = nn.Buffer(torch.randn(40, 12))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        x = x.masked_fill(~mask[..., None], 0.0)
        scores = self.head(x.sum(1) / mask.sum(1, keepdim=True))
        return scores, scores.argmax(-1), mask & (ids > 3)


class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.down(x).relu()), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Passing(nn.Module):
    """Outputs that are an input, a constant, a copy, another output again and 0-d; and an input that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.arange(5))

    def forward(self, x: torch.Tensor, unused: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = (x * 2 + y).relu()
        return x, z, self.table, z, z.clone(), z.sum(), unused.clone(), (z.mean() > 0), y.view(-1)


def mask(batch: int, length: int) -> torch.Tensor:
    kept = torch.rand(batch, length) > 0.4
    kept[:, 0] = True
    return kept


STATIC = {
    "conv": lambda: (ConvNet(), (torch.randn(2, 3, 33, 47),)),
    "attention": lambda: (Attention(), (torch.randn(2, 11, 24), mask(2, 11))),
    "embedding": lambda: (Embedding(), (torch.randint(0, 31, (3, 9)), mask(3, 9))),
    "segmentation": lambda: (Segmentation(), (torch.randn(1, 3, 35, 21),)),
    "passing": lambda: (Passing(), (torch.randn(3, 5), torch.randn(4), torch.randn(3, 5))),
}
BATCH = {0: (1, 16)}
DYNAMIC = {
    "conv": lambda n: (ConvNet(), (torch.randn(n, 3, 33, 47),), [BATCH]),
    "attention": lambda n: (Attention(), (torch.randn(n, 11, 24), mask(n, 11)), [BATCH, BATCH]),
    "embedding": lambda n: (Embedding(), (torch.randint(0, 31, (n, 9)), mask(n, 9)), [BATCH, BATCH]),
}
