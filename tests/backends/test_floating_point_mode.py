"""A library that runs a segment must not change how the caller's thread computes everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import torch, torchkiln
x = torch.randn(1, 3, 8, 8)
engine = torchkiln.compile(torch.nn.Conv2d(3, 4, 3).eval(), [x], backend={backend!r})
engine(x)
assert float.fromhex("0x1p-1060") / 2 > 0, "subnormal numbers are flushed to zero"
"""


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_subnormal_numbers_stay(backend):
    pytest.importorskip(backend)
    subprocess.run([sys.executable, "-c", CODE.format(backend=backend)], check=True)
