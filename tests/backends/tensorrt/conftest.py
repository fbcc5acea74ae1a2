"""A machine with a FakeGpu and a FakeLibrary, in place of what open_plan finds."""

from __future__ import annotations

import pytest

from torchkiln.backends.tensorrt import execution_context, open_plan
from torchkiln.backends.tensorrt.library import Library

from .fake_tensorrt import ALIGNMENT_BYTES, FakeGpu, FakeLibrary


class FakeLogger:
    def __init__(self):
        self.messages = []

    def say(self, text):
        self.messages.append(text)

    def errors(self):
        return "; ".join(self.messages)


class Machine:
    """``gpu`` and ``module`` are what a load finds; ``flavor`` and ``version`` may be changed before it."""

    def __init__(self, flavor="tensorrt_rtx", version="1.7.1"):
        self.gpu, self.module = FakeGpu(), FakeLibrary(flavor)
        self.flavor, self.version = flavor, version
        self.asked = []

    def import_runtime(self, flavor, *, version_compatible):
        self.asked.append((flavor, version_compatible))
        return Library(module=self.module, flavor=self.flavor, version=self.version)


@pytest.fixture
def make_machine(monkeypatch, tmp_path):
    """``make_machine(flavor)``; the runtime cache is in ``tmp_path``."""

    def make(flavor="tensorrt_rtx", version=None):
        machine = Machine(flavor, version or ("1.7.1" if flavor == "tensorrt_rtx" else "11.4.0"))
        monkeypatch.setattr(open_plan, "find_gpu", lambda device: machine.gpu)
        monkeypatch.setattr(open_plan, "import_runtime", machine.import_runtime)
        monkeypatch.setattr(open_plan, "make_logger", lambda library: FakeLogger())
        monkeypatch.setattr(execution_context, "ALIGNMENT_BYTES", ALIGNMENT_BYTES)
        monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
        return machine

    return make
