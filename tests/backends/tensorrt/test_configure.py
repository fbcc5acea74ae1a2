"""configure: settings on the library's own configuration object. A full TensorRT is pretended by TensorRT-RTX's module under that name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchkiln.backends.contract import Candidate
from torchkiln.backends.tensorrt.configure import configure, save_timing_cache
from torchkiln.backends.tensorrt.convert import convert_segment
from torchkiln.backends.tensorrt.library import FULL, RTX, Library
from torchkiln.backends.tensorrt.network import parse_network
from torchkiln.errors import BuildFailed, UserError
from torchkiln.inputs import ShapeRange
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

from ..make_segment import make_segment

trt = pytest.importorskip("tensorrt_rtx")
TARGETS = (Target("sm_86"), Target("sm_120"))


@pytest.fixture(scope="module")
def segment():
    return make_segment(torch.nn.Linear(7, 5), (torch.randn(3, 7),), [{0: (1, 9)}])


def configured(segment, flavor=RTX, **options):
    library = Library(flavor, trt, trt.__version__)
    graph = convert_segment(segment, torch.float32)
    settings = CompileSettings(backend="tensorrt", **options)
    return configure(parse_network(library, graph), graph.segment, Candidate("tensorrt", torch.float32, targets=TARGETS), settings)


def test_defaults(segment):
    config = configured(segment)
    assert config.num_compute_capabilities == 2
    assert [config.get_compute_capability(i) for i in range(2)] == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]
    assert config.num_optimization_profiles == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    flags = trt.BuilderFlag
    assert config.get_flag(flags.TF32)
    for flag in (flags.REFIT, flags.STRIP_PLAN, flags.SPARSE_WEIGHTS, flags.VERSION_COMPATIBLE):
        assert not config.get_flag(flag)


@pytest.mark.parametrize(
    ("option", "set_flags"),
    [
        ({"sparse_weights": True}, {"SPARSE_WEIGHTS"}),
        ({"immutable_weights": False}, {"REFIT"}),
        ({"strip_engine_weights": True}, {"REFIT", "STRIP_PLAN"}),
    ],
)
def test_flags(segment, option, set_flags):
    config = configured(segment, **option)
    for name in ("SPARSE_WEIGHTS", "REFIT", "STRIP_PLAN"):
        assert config.get_flag(getattr(trt.BuilderFlag, name)) == (name in set_flags), name


def test_limits(segment):
    config = configured(segment, workspace_size=3 << 20, optimization_level=1, max_aux_streams=2, disable_tf32=True)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 3 << 20
    assert (config.builder_optimization_level, config.max_aux_streams) == (1, 2)
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_a_full_tensorrt(segment):
    config = configured(segment, FULL, version_compatible=True, hardware_compatible=True)
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert config.get_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME), "a plan with a runtime inside would not load"


def test_the_timing_cache(segment, tmp_path: Path):
    path = tmp_path / "timings.cache"
    settings = CompileSettings(backend="tensorrt", timing_cache_path=path)
    save_timing_cache(configured(segment, FULL, timing_cache_path=path), settings)
    first = path.read_bytes()
    assert first
    save_timing_cache(configured(segment, FULL, timing_cache_path=path), settings)
    assert [p.name for p in tmp_path.iterdir()] == ["timings.cache"]
    absent = CompileSettings(backend="tensorrt", timing_cache_path=tmp_path / "absent" / "timings.cache")
    with pytest.raises(UserError, match=r"timing_cache_path: .*absent.* cannot be written"):
        save_timing_cache(configured(segment, FULL, timing_cache_path=path), absent)
    with pytest.raises(UserError, match="cannot be read"):
        configured(segment, FULL, timing_cache_path=tmp_path)


def test_a_profile_that_the_library_refuses(segment):
    graph = convert_segment(segment, torch.float32)
    graph.segment.profiles = ((ShapeRange((5, 7), (3, 7), (9, 7)),),)
    try:
        with pytest.raises((BuildFailed, ValueError)):
            configured(segment)
    finally:
        del segment.prepared[("tensorrt", torch.float32, False)]
