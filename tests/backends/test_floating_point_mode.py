"""A library that runs a segment must not change how the caller's thread computes everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import torch, torchkiln
x = torch.randn(1, 3, 8, 8)
for backend in ("openvino", "onnxruntime"):
    engine = torchkiln.compile(torch.nn.Conv2d(3, 4, 3).eval(), [x], backend=backend)
    engine(x)
    assert float.fromhex("0x1p-1060") / 2 > 0, f"{backend} flushes subnormal numbers to zero"
"""


def test_subnormal_numbers_stay():
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    subprocess.run([sys.executable, "-c", CODE], check=True)
