"""int8 in three ways: calibration with data, calibration from a file, and a model whose quantization was trained.

    pip install "torchkiln[quantize]" scikit-learn
    python examples/quantize_digits.py

Trains a small convolution network on scikit-learn's 8x8 digits (seconds on a CPU), and prints the accuracy of each engine.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import torchkiln
from torchkiln.ptq import ALGORITHMS, CacheCalibrator, DataLoaderCalibrator

INPUT = torchkiln.Input(min_shape=(1, 1, 8, 8), opt_shape=(100, 1, 8, 8), max_shape=(128, 1, 8, 8))


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs in ((16, 32), (32, 48)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 4, 64), nn.ReLU(), nn.Linear(64, 10))


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()


def percent_right(model: object, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(100), labels.split(100), strict=True))  # type: ignore[operator]
    return 100 * right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="the backend to build with; auto measures all")
    options: dict[str, Any] = {"enabled_precisions": {torch.int8}, "backend": parser.parse_args().backend}
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers this small are faster on one
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits))
    images, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)[order] / 16, torch.from_numpy(digits).long()[order]
    known, known_labels, new, new_labels = images[:1000], labels[:1000], images[1000:], labels[1000:]
    model = network()
    train(model, known, known_labels, epochs=6, rate=5e-3)
    model.eval()
    print(f"float model: {percent_right(model, new, new_labels):.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "calib.json")
        batches = list(zip(known[:600].split(100), known_labels[:600].split(100), strict=True))  # (images, labels), as a DataLoader gives them
        for algorithm in ALGORITHMS:
            calibrator = DataLoaderCalibrator(batches, algorithm=algorithm, cache_file=cache)
            engine = torchkiln.compile(model, [INPUT], calibrator=calibrator, **options)
            print(f"int8, calibrated by {algorithm}: {percent_right(engine, new, new_labels):.1f} %")
        engine = torchkiln.compile(model, [INPUT], calibrator=CacheCalibrator(cache), **options)
        print(f"int8, from the cache of {ALGORITHMS[-1]}: {percent_right(engine, new, new_labels):.1f} %")
        print(engine.report())

    warnings.simplefilter("ignore")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    batch = torch.export.Dim.DYNAMIC(min=1, max=128)
    exported = torch.export.export(model.train(), (known[:100],), dynamic_shapes=({0: batch},)).module()
    prepared = prepare_qat_pt2e(exported, torchkiln.ptq.quantizer())
    train(prepared, known, known_labels, epochs=2, rate=5e-4)
    move_exported_model_to_eval(prepared)
    engine = torchkiln.compile(convert_pt2e(prepared), [INPUT], **options)
    print(f"int8, trained: {percent_right(engine, new, new_labels):.1f} %")


if __name__ == "__main__":
    main()
