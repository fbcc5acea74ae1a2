"""A calibrated model in TensorRT: the pairs become int8 kernels of the plan, for GPUs that are not here."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import torchkiln

pytest.importorskip("tensorrt_rtx")


class Net(nn.Module):
    """A stem and a head, which stay floating; between them two convolutions, a residual and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.first = nn.Conv2d(32, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.linear = nn.Linear(32, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(nn.functional.gelu(self.linear(x.mean((2, 3)))))


def test_calibrated_layers_are_int8_kernels_of_the_plan():
    torch.manual_seed(0)
    calibrator = torchkiln.ptq.DataLoaderCalibrator([torch.randn(3, 3, 17, 15) for _ in range(3)], algorithm="max")
    engine = torchkiln.compile(
        Net().eval(),
        [torchkiln.Input((1, 3, 17, 15))],
        backend="tensorrt",
        target="sm_86,sm_89,sm_120",
        enabled_precisions={torch.int8, torch.half},
        calibrator=calibrator,
    )
    report = engine.report()
    assert (report.precision, report.rejects) == ("int8+fp16", [])
    assert 1e-4 < report.parity.relative_error < 0.05
    assert any("int8: 3 of 5 layers" in note for note in report.notes)
    (segment,) = engine.contents.segments
    # TensorRT-RTX describes its kernels in the plan, as text: which tensors each reads, and their types.
    text = bytes(segment.artifact.payload).decode("latin-1")
    types = dict(re.findall(r'tensor=\{[^\n]* name="([^"]+)"[^\n]* type=(\w+) \}', text))
    products = re.findall(r'(?:corrltn|fully_connected|gemm)=\{ name="([^"]+)" output=\{[^}]*\} input=\{"([^"]+)" "([^"]+)"', text)
    int8 = {name for name, data, weight in products if types.get(data) == types.get(weight) == "int8"}
    assert int8 == {"node_convolution_1", "node_convolution_2", "node_linear"}, products
