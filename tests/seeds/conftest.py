"""What the articles' snippets share: the device they run on, and short builds."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> str:
    """The articles say "cuda"; a machine without a GPU says "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def one_native_backend(device: str, backend_table: dict[str, str]) -> None:
    """Leave one backend and PyTorch to choose from: racing all of them over these large models takes minutes, and the race has tests of its own."""
    kept = "inductor" if device == "cuda" else "openvino"
    for name in list(backend_table):
        if name not in (kept, "torch"):
            del backend_table[name]
