"""Compile a torchvision model, check it, save it, load it again.

python examples/quickstart.py --model resnet50 --size 224 --precision bf16
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torchvision

import torchkiln

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet18")
parser.add_argument("--size", type=int, default=96)
parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
parser.add_argument("--backend", default="auto")
args = parser.parse_args()

model = torchvision.models.get_model(args.model, weights=None).eval()
shape = (2, 3, args.size, args.size)

# One line: measured on this machine, checked against the model; whatever no backend takes stays in PyTorch.
engine = torchkiln.compile(model, inputs=[torchkiln.Input(shape)], enabled_precisions={args.precision}, backend=args.backend)
print(engine.report())

x = torch.randn(shape)
with torch.inference_mode():
    expected = model(x)
error = (engine(x) - expected).norm() / expected.norm()
print(f"relative error on new data: {error:.1e}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / f"{args.model}.kiln"
    engine.save(path)
    # A file made by the inductor backend holds native code: torchkiln.load(path, trusted=True) loads one whose origin you trust.
    again = torchkiln.load(path, trusted=True)  # this process wrote it a moment ago
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, same outputs after loading: {torch.equal(again(x), engine(x))}")
