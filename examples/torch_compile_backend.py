"""torch.compile with torchkiln as its backend: for models whose Python torch.export cannot take whole.

python examples/torch_compile_backend.py
"""

import torch
from torch import nn

import torchkiln


class Branching(nn.Module):
    """It looks at a value and decides in Python, so there is no single graph."""

    def __init__(self, width: int = 19) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.LayerNorm(32))
        self.quiet = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        self.loud = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encode(x)
        return self.loud(hidden) if x.abs().max().item() > 3 else self.quiet(hidden)


model = Branching().eval()
x = torch.rand(6, 19)

try:
    torchkiln.compile(model, inputs=[x])
except torchkiln.errors.ExportFailed as error:
    print(f"torchkiln.compile: {str(error).splitlines()[0]}")

compiled = torch.compile(model, backend="torchkiln", options={"min_block_size": 1})
with torch.inference_mode():
    for name, value in (("quiet", x), ("loud", 10 * x)):
        print(f"{name}: largest difference {(compiled(value) - model(value)).abs().max():.1e}")
