"""A volume that is larger than a model's window: softmax inside the engine, windows blended as MONAI does, and the same on several replicas.

python examples/sliding_window.py [BACKEND]
"""

import sys

import torch
from torch import nn

import torchkiln
from torchkiln import postprocess


class SmallUNet(nn.Module):
    """One level down and up again, with a skip connection."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.InstanceNorm3d(16), nn.ReLU())
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.last = nn.Conv3d(16, classes, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        fine = self.first(windows)
        return self.last(torch.cat([fine, self.up(self.down(fine))], 1))


torch.manual_seed(0)
unet = SmallUNet().eval()
volume = torch.randn(1, 1, 27, 34, 31)

# The engine returns the probability of class 1, a third of what the network computes at its end.
model = torchkiln.with_postprocess(unet, postprocess.softmax(dim=1), postprocess.select(1))
engine = torchkiln.compile(model, inputs=[torchkiln.Input((4, 1, 16, 16, 16))], backend=sys.argv[1] if len(sys.argv) > 1 else "auto")

probability = torchkiln.sliding_window_inference(volume, (16, 16, 16), 4, engine, overlap=0.5, mode="gaussian")
reference = torchkiln.sliding_window_inference(volume, (16, 16, 16), 4, lambda w: unet(w).softmax(1)[:, 1:2], overlap=0.5, mode="gaussian")
print(f"probability of class 1: {tuple(probability.shape)}, largest difference {(probability - reference).abs().max():.1e}")

# On every GPU of this machine, or on parts of its CPU; here on two parts. Each takes a slab of the volume.
with torchkiln.replicate(engine, devices=["cpu", "cpu"] if engine.device.type == "cpu" else "all") as pool:
    shared = torchkiln.sliding_window_inference(volume, (16, 16, 16), 4, pool, overlap=0.5, mode="gaussian")
    print(f"{len(pool)} replicas: largest difference {(shared - probability).abs().max():.1e}")

    windows = [volume[..., i : i + 16, :16, :16].expand(4, -1, -1, -1, -1) for i in range(6)]
    results = list(pool.map(windows))  # any iterable, a DataLoader too; results in its order
    worst = max((found - engine(batch)).abs().max() for found, batch in zip(results, windows, strict=True))
    print(f"{len(results)} batches in order: largest difference {worst:.1e}")
