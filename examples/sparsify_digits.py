"""2:4 sparsity: prune half of the weights, fine-tune, and see in the report where sparse kernels are used.

    pip install torchkiln scikit-learn
    python examples/sparsify_digits.py

Trains a small convolution network on scikit-learn's 8x8 digits (seconds on a CPU). Sparse kernels are the GPU's: on a CPU the report says so.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import torchkiln


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 4, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()


def percent_right(model: object, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())  # type: ignore[operator]


def main() -> None:
    torch.manual_seed(0)
    device, threads = "cuda" if torch.cuda.is_available() else "cpu", torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small are faster on one
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits))
    images = (torch.from_numpy(pixels).float().view(-1, 1, 8, 8)[order] / 16).to(device)
    labels = torch.from_numpy(digits).long()[order].to(device)
    known, known_labels, new, new_labels = images[:1000], labels[:1000], images[1000:], labels[1000:]
    model = network().to(device)
    train(model, known, known_labels, epochs=8, rate=5e-3)
    print(f"dense: {percent_right(model, new, new_labels):.1f} %")

    torchkiln.sparsify(model)
    print(f"pruned to 2:4: {percent_right(model, new, new_labels):.1f} %")
    train(model, known, known_labels, epochs=5, rate=3e-3)
    print(f"fine-tuned: {percent_right(model, new, new_labels):.1f} %")
    print(torchkiln.sparsity_report(model))

    torch.set_num_threads(threads)
    precision = torch.half if device == "cuda" else torch.float32
    engine = torchkiln.compile(model, [new], enabled_precisions={precision}, sparse_weights=True)
    print(f"engine: {percent_right(engine, new, new_labels):.1f} %")
    print(engine.report())


if __name__ == "__main__":
    main()
