"""The library that is chosen, what is missing, its messages, and the precisions of each GPU."""

from __future__ import annotations

import types

import pytest
import torch

from torchkiln.backends.tensorrt import availability as availability_module
from torchkiln.backends.tensorrt import library
from torchkiln.backends.tensorrt.availability import availability, candidates
from torchkiln.backends.tensorrt.library import FULL, LEAN, RTX, Library, import_builder, import_runtime
from torchkiln.backends.tensorrt.logger import make_logger
from torchkiln.errors import MissingPackage
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

ABSENT, HERE = Target("sm_89"), Target("sm_90", torch.device("cuda", 0))


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these libraries are installed: {flavor: version, or the exception that importing raises}."""

    def pretend(found: dict[str, object]) -> None:
        def load(name):
            if isinstance(found[name], Exception):
                raise found[name]
            return types.SimpleNamespace(__version__=found[name], Runtime=object, Builder=object)

        library._import.cache_clear()
        monkeypatch.setattr(library, "is_installed", lambda flavor: flavor in found)
        monkeypatch.setattr(availability_module, "is_installed", lambda flavor: flavor in found)
        monkeypatch.setattr(library, "import_module", load)

    yield pretend
    library._import.cache_clear()


def test_a_full_tensorrt_builds_for_the_gpu_that_is_here(installed):
    installed({FULL: "10.13.0", RTX: "1.7.1.116"})
    assert import_builder([HERE]).flavor == FULL
    assert import_builder([ABSENT]).flavor == RTX
    with pytest.raises(MissingPackage, match="no kernels for sm_90"):
        import_builder([HERE, ABSENT])
    assert import_runtime(FULL).version == "10.13.0"


@pytest.mark.parametrize("full", ["8.6.1", OSError("libnvinfer.so.11: cannot open shared object file"), ImportError("stub")])
def test_a_tensorrt_that_cannot_be_used_is_passed_over(installed, full):
    installed({FULL: full, RTX: "1.7.1.116"})
    assert import_builder([Target("sm_89", torch.device("cuda", 0))]).flavor == RTX
    with pytest.raises(MissingPackage, match=r"no kernels for sm_90 .*, and no usable TensorRT is installed: install TensorRT 10.13 or later"):
        import_builder([HERE])


def test_a_tensorrt_without_a_usable_builder_still_runs_plans(installed):
    installed({FULL: "10.3.0", RTX: "1.7.1.116"})
    assert import_runtime(FULL).version == "10.3.0"
    with pytest.raises(MissingPackage, match=r"the package tensorrt 10.3.0 has no builder that can be used \(10.13 and later have\)"):
        import_builder([HERE])


def test_nothing_installed(installed):
    installed({})
    with pytest.raises(MissingPackage, match=r"needs the package tensorrt-rtx: pip install torchkiln\[tensorrt\]"):
        import_builder([ABSENT])
    with pytest.raises(MissingPackage, match="built by tensorrt, and running it needs the package tensorrt 10 or 11"):
        import_runtime(FULL)
    assert "not installed: tensorrt-rtx" in availability(ABSENT).reason


def test_the_lean_runtime_runs_version_compatible_plans_only(installed):
    installed({LEAN: "11.4.0.106"})
    assert import_runtime(FULL, version_compatible=True).flavor == LEAN
    with pytest.raises(MissingPackage):
        import_runtime(FULL)
    with pytest.raises(MissingPackage):
        import_runtime(RTX, version_compatible=True)


def test_availability(installed):
    installed({RTX: "1.7.1.116"})
    assert availability(ABSENT) is None
    assert "not for cpu: name one" in availability(Target("cpu", torch.device("cpu"))).reason
    assert "no kernels for sm_90: it has them for sm_75, sm_80" in availability(HERE).reason
    installed({RTX: "1.7.1.116", FULL: "11.4.0"})
    assert availability(HERE) is None
    assert "no kernels for sm_90" in availability(Target("sm_90")).reason, "a full TensorRT builds only for the GPU that is here"


def test_what_converts_is_needed_too(monkeypatch):
    monkeypatch.setattr(availability_module, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert "not installed: onnxscript. pip install torchkiln[tensorrt]" in availability(ABSENT).reason


def test_candidates():
    settings = CompileSettings(enabled_precisions={"fp32", "fp16", "bf16"})
    found, rejects = candidates(ABSENT, settings)
    assert sorted(map(str, found)) == ["tensorrt bf16", "tensorrt fp16", "tensorrt fp32"]
    assert rejects == []
    found, (reject,) = candidates(Target("sm_75"), settings)
    assert sorted(map(str, found)) == ["tensorrt fp16", "tensorrt fp32"]
    assert "sm_75 has no bf16 arithmetic" in reject.reason


def test_messages_are_kept_until_they_are_asked_for():
    trt = pytest.importorskip("tensorrt_rtx")
    no_driver = "CUDA initialization failure with error: 35. CUDA driver version is insufficient for CUDA runtime version"
    logger = make_logger(Library(RTX, trt, trt.__version__))
    logger.log(trt.ILogger.ERROR, no_driver)
    assert logger.errors() == no_driver, "where the GPU is needed this is what is wrong"
    logger = make_logger(Library(RTX, trt, trt.__version__), needs_gpu=False)
    logger.log(trt.ILogger.ERROR, "IBuilder::build: Error Code 9: bad weights  In build at /_src/x.cpp:3)")
    logger.log(trt.ILogger.ERROR, "IBuilder::build: Error Code 9: bad weights  In build at /_src/x.cpp:9)")
    logger.log(trt.ILogger.INTERNAL_ERROR, "cudaError 35: CUDA driver version is insufficient for CUDA runtime version")
    logger.log(trt.ILogger.WARNING, "a warning")
    assert logger.errors() == "IBuilder::build: Error Code 9: bad weights"
    assert logger.errors() == ""
