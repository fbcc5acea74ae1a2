"""One engine file for this CPU and for GPUs that this machine does not have; load picks what fits the machine it runs on.

pip install "torchkiln[tensorrt,models]"
python examples/other_gpus.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torchvision

import torchkiln

model = torchvision.models.resnet18(weights=None).eval()
image = torchkiln.Input(min_shape=(1, 3, 96, 96), opt_shape=(4, 3, 96, 96), max_shape=(8, 3, 96, 96), name="image")

engine = torchkiln.compile(
    model,
    inputs=[image],
    target=["cpu", "sm_86", "sm_89"],
    enabled_precisions={torch.float32, torch.float16},
)
for report in engine.reports():
    print(f"{report.device}: {report.backend} {report.precision}, relative error {report.parity.relative_error:.1e}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "resnet18.kiln"
    engine.save(path)
    print(f"one file for {', '.join(engine.targets)}: {path.stat().st_size / 1e6:.1f} MB")
    loaded = torchkiln.load(path, device="cpu")
    print(f"runs {loaded.report().backend} here: {loaded.target_note}")
    x = torch.randn(3, 3, 96, 96)
    print(f"difference: {float((loaded(x) - model(x)).norm() / model(x).norm()):.1e}")
