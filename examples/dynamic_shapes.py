"""One engine for a range of shapes: any batch from 1 to 16, any width from 24 to 96.

python examples/dynamic_shapes.py
"""

import torch
from torch import nn

import torchkiln


class Denoiser(nn.Module):
    """A convolution net that keeps the image's size, so that every size is legal."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 3, 3, padding=1), nn.Tanh()
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image - self.layers(image)


model = Denoiser().eval()
image = torchkiln.Input(min_shape=(1, 3, 40, 24), opt_shape=(4, 3, 40, 64), max_shape=(16, 3, 40, 96), name="image")
engine = torchkiln.compile(model, inputs=[image])

for batch, width in [(1, 24), (3, 51), (16, 96)]:
    x = torch.randn(batch, 3, 40, width)
    with torch.inference_mode():
        difference = (engine(x) - model(x)).abs().max()
    print(f"{batch:>2}x3x40x{width}: largest difference {difference:.1e}")

try:
    engine(torch.randn(17, 3, 40, 64))
except torchkiln.errors.InputMismatch as error:
    print(f"out of range, as it should be: {error}")
