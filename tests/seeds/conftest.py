"""What the articles' snippets share: the device they run on, and short builds."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.registry import BACKENDS


@pytest.fixture
def device() -> str:
    """The articles say "cuda"; a machine without a GPU says "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def one_native_backend(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one backend and PyTorch to choose from: racing all of them over these large models takes minutes, and the race has tests of its own."""
    kept = "inductor" if device == "cuda" else "openvino"
    table = {name: BACKENDS[name] for name in (kept, "torch")}
    monkeypatch.setattr("torchkiln.backends.registry.BACKENDS", table)
    monkeypatch.setattr("torchkiln.race.race.BACKENDS", table)
