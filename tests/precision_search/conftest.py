"""Programs captured once, and a backend that computes in what it is asked for and states what it takes."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from torchkiln.backends.contract import Candidate
from torchkiln.backends.copy_graph_module import copy_graph_module
from torchkiln.backends.registry import get_backend
from torchkiln.engine.engine import Engine
from torchkiln.errors import BuildFailed
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.program import Program
from torchkiln.ptq import DataLoaderCalibrator, QuantizeOptions
from torchkiln.quantized_ops import is_dequantize
from torchkiln.race import race

from .models import Constant, Overflow, draw, program_of


@pytest.fixture(scope="session")
def overflow() -> Program:
    torch.manual_seed(0)
    return program_of(Overflow(together=False).eval(), draw(3, 7))


@pytest.fixture(scope="session")
def overflow_together() -> Program:
    torch.manual_seed(0)
    return program_of(Overflow(together=True).eval(), draw(3, 7))


@pytest.fixture(scope="session")
def constant_model() -> Constant:
    torch.manual_seed(0)
    return Constant().eval()


@pytest.fixture(scope="session")
def constant(constant_model: Constant) -> Program:
    return program_of(constant_model, draw(3, 2, 13, 11))


@pytest.fixture(scope="session")
def calibrator() -> DataLoaderCalibrator:
    """Of ``constant``: every layer but the stem may become int8."""
    return DataLoaderCalibrator([draw(3, 2, 13, 11, seed=seed) for seed in range(3)], options=QuantizeOptions(head=True), algorithm="max")


class RoundingBackend:
    """Runs segments in PyTorch, in the candidate's precision, and states times: a layer in fp32 takes 4 ms, in a low precision 2 ms, in int8 1 ms."""

    name = "inductor"
    no_int8 = ""
    no_weight_only = "not for the test"

    def __init__(self) -> None:
        self.built: list[str] = []
        self.fails_when: Any = lambda candidate: False

    def availability(self, target: Any) -> None:
        return None

    def candidates(self, target: Any, settings: Any) -> Any:
        return [Candidate(self.name, p) for p in (torch.float32, torch.bfloat16) if p in settings.enabled_precisions], []

    def examine(self, segment: Any, candidate: Any, settings: Any) -> dict[Any, Any]:
        return {}

    def supports(self, node: Any) -> None:
        return None

    def build(self, segment: Any, candidate: Candidate, settings: Any) -> Any:
        self.built.append(str(candidate))
        if self.fails_when(candidate):
            raise BuildFailed("as the test asks")
        module = copy_graph_module(segment.graph_module)
        if candidate.precision is not torch.float32:
            convert_precision(module, candidate.precision)
        milliseconds = 0
        for node in module.graph.nodes:
            if str(node.target).startswith(("aten.convolution", "aten.linear")):
                int8 = all(_is_dequantized(source) for source in node.args[:2])
                milliseconds += 1 if int8 else 4 if node.meta["val"].dtype is torch.float32 else 2
        segment = type(segment)(**{**segment.__dict__, "graph_module": module})
        artifact = get_backend("torch").build(segment, candidate, settings)
        artifact.metadata["milliseconds"] = milliseconds
        return artifact

    def load(self, artifact: Any, device: Any, num_threads: Any) -> Any:
        return get_backend("torch").load(artifact, device, num_threads)


def stated_us(calls: Sequence[Callable[[], object]], *_: Any, **__: Any) -> list[float]:
    """In place of measuring: what the engines of these calls take, as the backend has it."""
    found = []
    for call in calls:
        (engine,) = [cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, Engine)]  # type: ignore[attr-defined]
        found.append(1e3 * sum(segment.artifact.metadata["milliseconds"] for segment in engine.contents.segments))
    return found


def _is_dequantized(node: Any) -> bool:
    """Through the cast that a low precision puts behind it."""
    while str(node.target) == "aten._to_copy.default":
        node = node.args[0]
    return is_dequantize(node)


@pytest.fixture
def rounding_backend(monkeypatch: pytest.MonkeyPatch, backend_table: dict[str, str]) -> Iterator[RoundingBackend]:
    """The only backend beside torch, under the name inductor; times are what it says."""
    backend = RoundingBackend()
    module = types.ModuleType("rounding_backend")
    module.BACKEND = backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in list(backend_table):
        if name != "torch":
            del backend_table[name]
    backend_table["inductor"] = module.__name__
    get_backend.cache_clear()
    monkeypatch.setattr(race, "race_us", stated_us)
    yield backend
    monkeypatch.undo()
    get_backend.cache_clear()
