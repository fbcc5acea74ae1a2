"""The precision of each layer, chosen under a budget of error; and the layer that does not fit it, by bisection.

    pip install "torchkiln[report]" scikit-learn
    python examples/precision_auto.py --frontier frontier.png

Trains a small convolution network on scikit-learn's 8x8 digits (seconds on a CPU), in which one layer does not bear int8.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import torchkiln
from torchkiln.ptq import DataLoaderCalibrator


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.offset, self.plain = (nn.Sequential(nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(32 * 16, 10)
        self.register_buffer("constant", torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.offset(self.stem(x).relu() + self.constant)).flatten(1))

    @torch.no_grad()
    def add_constant(self, value: float) -> None:
        """The same function, but few of int8's 256 steps are left for what differs: a convolution reads a constant, which its norm removes."""
        convolution, norm, _ = self.offset
        self.constant += value
        norm.running_mean += value * convolution.weight.sum((1, 2, 3))


def percent_right(model: object, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(100), labels.split(100), strict=True))  # type: ignore[operator]
    return 100 * right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="the backend to build with; auto measures all")
    parser.add_argument("--frontier", help="draw time against error into this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers this small are faster on one
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(digits).long()
    known, known_labels, new, new_labels = images[:1000], labels[:1000], images[1000:1700], labels[1000:1700]
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(4):
        for rows in torch.randperm(len(known)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(known[rows]), known_labels[rows]).backward()
            optimizer.step()
    model.eval().add_constant(50)
    print(f"float model: {percent_right(model, new, new_labels):.1f} %")

    inputs, calibrator = [known[:100]], DataLoaderCalibrator(known[:500].split(100))
    found = torchkiln.bisect(model, inputs, precision="int8", tolerance=0.02, calibrator=calibrator)
    print(found)  # the layer, and what to pass to compile

    engine = torchkiln.compile(model, inputs, precision="auto", max_error=0.02, calibrator=calibrator, backend=options.backend)
    report = engine.report()
    print(report)
    print(f"within an error of 0.02: {report.backend} {report.precision}, error {report.parity.relative_error:.2g}")
    print(f"accuracy: {percent_right(engine, new, new_labels):.1f} %")
    if options.frontier:
        report.frontier.plot(options.frontier)


if __name__ == "__main__":
    main()
