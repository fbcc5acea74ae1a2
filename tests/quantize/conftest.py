"""Networks trained once for the whole session, and calibrators on their data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .digits import Cnn, Digits, Vit, load_digits, train


@pytest.fixture(scope="session")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small train several times as fast on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _trained(kind: type[torch.nn.Module], digits: Digits, epochs: int, rate: float) -> torch.nn.Module:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = train(kind().train(), digits, epochs, rate).eval()
    torch.set_num_threads(before)
    return model


@pytest.fixture(scope="session")
def cnn(digits) -> torch.nn.Module:
    return _trained(Cnn, digits, 8, 1e-2)


@pytest.fixture(scope="session")
def vit(digits) -> torch.nn.Module:
    return _trained(Vit, digits, 40, 4e-3)


@pytest.fixture(scope="session")
def models(cnn, vit) -> dict[str, torch.nn.Module]:
    return {"cnn": cnn, "vit": vit}
