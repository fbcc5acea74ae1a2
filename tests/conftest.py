"""Shared by all tests: CUDA tests are skipped without a GPU; a backend made to order."""

from __future__ import annotations

import copy
import gc
import os
import sys
import types
from collections.abc import Callable

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run under Triton's interpreter; it must be chosen before Triton is imported

from quick_export import quicken
from torchkiln.backends.contract import Candidate, Reject
from torchkiln.backends.registry import BACKENDS, get_backend

quicken()


def pytest_collection_finish():
    """What imports made stays: collections of garbage in tests need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


class MadeBackend:
    """Runs segments in PyTorch, but refuses, spoils or slows what a test asks for."""

    def __init__(
        self, name: str, refuses: Callable[[str], bool], refuses_in_segment: Callable[[str], bool], spoil: Callable, delay_s: float, unavailable: str
    ) -> None:
        self.name = name
        self._refuses, self._refuses_in_segment = refuses, refuses_in_segment
        self._spoil, self._delay_s, self._unavailable = spoil, delay_s, unavailable
        self.builds = 0
        self.examined = []

    def availability(self, target):
        return Reject(self.name, self._unavailable) if self._unavailable else None

    def examine(self, segment, candidate, settings):
        self.examined.append(segment)
        nodes = [n for n in segment.graph_module.graph.nodes if n.op == "call_function" and self._refuses_in_segment(str(n.target))]
        return {node: Reject(str(node.target), "refused in its segment by the test") for node in nodes}

    def candidates(self, target, settings):
        return [Candidate(self.name, p) for p in settings.enabled_precisions], []

    def supports(self, node):
        return Reject(str(node.target), "refused by the test") if self._refuses(str(node.target)) else None

    def build(self, segment, candidate, settings):
        self.builds += 1
        spoiled = copy.copy(segment)
        spoiled.graph_module = copy.deepcopy(segment.graph_module)
        self._spoil(spoiled.graph_module)
        spoiled.graph_module.recompile()
        artifact = get_backend("torch").build(spoiled, candidate, settings)
        if not candidate.is_here:
            artifact.stand_in = get_backend("torch").load(artifact, torch.device("cpu"), None)
        return artifact

    def load(self, artifact, device, num_threads):
        import time

        run = get_backend("torch").load(artifact, device, num_threads)

        def slow(inputs):
            time.sleep(self._delay_s)
            return run(inputs)

        return slow if self._delay_s else run


@pytest.fixture
def backend_table():
    """The registry's table, to be changed in place (modules imported meanwhile hold the same one); as it was, order and all, after the test."""
    saved = dict(BACKENDS)
    yield BACKENDS
    BACKENDS.clear()
    BACKENDS.update(saved)
    get_backend.cache_clear()


@pytest.fixture
def made_backend(monkeypatch, backend_table):
    """``made_backend(name, ...)`` puts a MadeBackend in the registry for one test; the name must be one the settings know."""

    def make(
        name="openvino",
        *,
        refuses=lambda op: False,
        refuses_in_segment=lambda op: False,
        spoil=lambda graph_module: None,
        delay_s=0.0,
        unavailable="",
        alone=True,
    ):
        backend = MadeBackend(name, refuses, refuses_in_segment, spoil, delay_s, unavailable)
        module = types.ModuleType(f"made_{name}")
        module.BACKEND = backend
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for other in list(backend_table) if alone else ():
            if other not in (name, "torch"):
                del backend_table[other]
        backend_table[name] = module.__name__
        get_backend.cache_clear()
        return backend

    yield make
    monkeypatch.undo()
    get_backend.cache_clear()
