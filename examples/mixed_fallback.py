"""An operator that no backend knows runs in PyTorch, inside the same engine; the report says which and why.

python examples/mixed_fallback.py
"""

import torch
from torch import nn

import torchkiln


@torch.library.custom_op("torchkiln_example::clip_outliers", mutates_args=())
def clip_outliers(x: torch.Tensor, deviations: float) -> torch.Tensor:
    """Clip each row to within so many standard deviations of its mean. It stands for an operator of your own, in C++ perhaps."""
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    return torch.clamp(x, mean - deviations * std, mean + deviations * std)


@clip_outliers.register_fake
def _(x: torch.Tensor, deviations: float) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self, width: int = 33) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.Sigmoid())
        self.after = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 7), nn.Tanh(), nn.Softmax(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.ops.torchkiln_example.clip_outliers(self.before(x), 1.5))


model = Net().eval()
x = torch.randn(5, 33)

# Ask first: a dry run shows what would be left to PyTorch, without building anything.
print(torchkiln.compile(model, inputs=[x], dryrun=True))

engine = torchkiln.compile(model, inputs=[x], min_block_size=2)
print(engine.report())
with torch.inference_mode():
    print(f"largest difference: {(engine(x) - model(x)).abs().max():.1e}")
