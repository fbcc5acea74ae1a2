"""torchkiln.compile for targets: several in one engine, GPUs that are not here, profiles, and what a backend refuses of a whole segment."""

from __future__ import annotations

import copy

import pytest
import torch

import torchkiln
from test_compiler import Small, double_relu
from torchkiln.backends.contract import Reject
from torchkiln.capture.model_device import devices_of, move_model
from torchkiln.errors import BackendUnavailable, BuildFailed, CompilerBug, ParityFailed, TargetMismatch, UserError
from torchkiln.inputs import ShapeRange, resolve_profiles

X = torch.randn(3, 3, 13, 11)
BATCH = torchkiln.Input(min_shape=(1, 3, 13, 11), opt_shape=(4, 3, 13, 11), max_shape=(9, 3, 13, 11), name="x")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def cross(made_backend):
    """A backend "tensorrt" that builds for GPUs that are not here, and one for the CPU besides."""

    def make(**options):
        backend = made_backend("tensorrt", **options)
        refuse = lambda target: Reject("tensorrt", "builds for GPUs only") if target.device_type == "cpu" else None  # noqa: E731
        backend.availability = refuse
        return backend

    return make


def test_gpus_that_are_not_here(model, cross, tmp_path):
    backend = cross()
    engine = torchkiln.compile(model, [BATCH], target=["sm_89", "SM86"], enabled_precisions={"fp32", "fp16"})
    assert engine.targets == ("sm_89", "sm_86")
    assert backend.builds == 1, "one build serves both, and the narrowest precision that passes is kept"
    report = engine.report()
    assert (report.backend, report.precision) == ("tensorrt", "fp16")
    assert report.parity.verified
    assert report.parity.relative_error < 1e-4
    assert [text.partition(":")[0] for text in report.parity.checked_shapes] == ["opt", "min", "max"]
    assert [c.status for c in report.candidates if c.name.startswith("tensorrt")] == ["skipped", "kept"]
    assert any("built for sm_89, sm_86, which this machine does not have: not run and not timed" in note for note in report.notes)
    assert "sm_89, sm_86" in str(report)
    with pytest.raises(TargetMismatch, match="torchkiln compile MODEL --target cpu"):
        engine(X)
    engine.save(tmp_path / "m.kiln")
    with pytest.raises(TargetMismatch, match="the engine holds sm_89, sm_86 \\(tensorrt fp16\\)"):
        torchkiln.load(tmp_path / "m.kiln")


def test_wrong_numbers_for_an_absent_gpu_fail_the_build(model, cross):
    cross(spoil=double_relu)
    with pytest.raises(ParityFailed, match="relu"):
        torchkiln.compile(model, [X], target="sm_89")


def test_a_backend_without_a_stand_in_is_a_bug(model, cross):
    backend = cross()
    build = backend.build

    def without(*arguments):
        artifact = build(*arguments)
        artifact.stand_in = None
        return artifact

    backend.build = without
    with pytest.raises(CompilerBug, match="nothing to check it by"):
        torchkiln.compile(model, [X], target="sm_89")


def test_pytorch_segments_of_an_absent_gpu(model, cross):
    cross(refuses=lambda op: "relu" in op)
    report = torchkiln.compile(model, [X], target="sm_89", min_block_size=1).report()
    assert [s.backend for s in report.segments] == ["tensorrt", "torch", "tensorrt"]
    assert all(s.time_us is None for s in report.segments)


def test_cpu_and_gpus_in_one_engine(model, cross, tmp_path):
    cross()
    engine = torchkiln.compile(model, [BATCH], target="sm_120,cpu,sm_89")
    assert engine.targets == ("cpu", "sm_120", "sm_89")
    assert [r.backend for r in engine.reports()] == ["torch", "tensorrt"]
    torch.testing.assert_close(engine(X), model(X))
    engine.save(tmp_path / "m.kiln")
    loaded = torchkiln.load(tmp_path / "m.kiln")
    assert (loaded.targets, loaded.target_note) == (("cpu",), "this machine has no GPU")
    torch.testing.assert_close(loaded(X[:1]), model(X[:1]))
    with pytest.raises(UserError, match="dryrun: one kind of target at a time"):
        torchkiln.compile(model, [X], target="cpu,sm_89", dryrun=True)


def test_no_backend_for_a_target(model, made_backend):
    made_backend(unavailable="builds for the moon only")
    with pytest.raises(BackendUnavailable, match="no backend can build for sm_89 on this machine:\n  openvino: builds for the moon only\n  torch: "):
        torchkiln.compile(model, [X], target="sm_89")
    with pytest.raises(BackendUnavailable, match="'openvino': builds for the moon only"):
        torchkiln.compile(model, [X], target="sm_89", backend="openvino")


def test_what_is_refused_in_its_segment_goes_to_pytorch(model, made_backend):
    backend = made_backend(refuses_in_segment=lambda op: "mean" in op)
    engine = torchkiln.compile(model, [X], backend="openvino", min_block_size=1)
    torch.testing.assert_close(engine(X), model(X), rtol=1e-4, atol=1e-5)
    assert [s.backend for s in engine.report().segments] == ["openvino", "torch", "openvino"]
    assert [(r.subject, r.reason) for r in engine.report().rejects] == [("aten.mean.dim", "refused in its segment by the test")]
    assert len(backend.examined) == 3, "the whole, then the two parts that are left"
    report = torchkiln.compile(model, [X], backend="openvino", min_block_size=1, dryrun=True)
    assert report.torch_op_count == 1
    with pytest.raises(BuildFailed, match="refused in its segment"):
        torchkiln.compile(model, [X], backend="openvino", require_full_compilation=True)


def test_segments_carry_the_profiles(model, made_backend):
    backend = made_backend("tensorrt", refuses=lambda op: "relu" in op)
    profiles = [{"x": ((1, 3, 13, 11), (1, 3, 13, 11), (2, 3, 13, 11))}, {"x": (9, 3, 13, 11)}]
    torchkiln.compile(model, [BATCH], backend="tensorrt", profiles=profiles, min_block_size=1)
    first, second = backend.examined[0], backend.examined[1]
    assert first.profiles == ((ShapeRange((1, 3, 13, 11), (1, 3, 13, 11), (2, 3, 13, 11)),), (ShapeRange(*[(9, 3, 13, 11)] * 3),))
    assert [(p[0].min, p[0].opt, p[0].max) for p in second.profiles] == [((1, 7, 13, 11), (1, 7, 13, 11), (2, 7, 13, 11)), ((9, 7, 13, 11),) * 3]
    backend.examined.clear()
    torchkiln.compile(model, [BATCH], backend="tensorrt", min_block_size=1)
    assert backend.examined[0].profiles == ((ShapeRange(BATCH.min_shape, BATCH.opt_shape, BATCH.max_shape),),)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"y": (1, 3, 13, 11)}, "there is no input 'y': expected names among x"),
        ({"x": (10, 3, 13, 11)}, "dimension 0: expected 1 <= min <= opt <= max <= 9"),
        ({"x": ((2, 3, 13, 11), (1, 3, 13, 11), (3, 3, 13, 11))}, "dimension 0: expected .* got 2, 1, 3"),
        ({"x": (1, 3)}, "expected shapes of 4 dimensions"),
        ({"x": "big"}, "expected a sequence of integers"),
    ],
)
def test_profiles_that_do_not_fit(profile, message):
    with pytest.raises(UserError, match=message):
        resolve_profiles([profile], [BATCH])


def test_options_that_the_backend_does_not_read(model, made_backend):
    with pytest.raises(UserError, match="workspace_size: backend 'openvino' does not read this option \\(tensorrt does\\)"):
        torchkiln.compile(model, [X], backend="openvino", workspace_size=1 << 20)
    made_backend()
    notes = torchkiln.compile(model, [X], workspace_size=1 << 20, sparse_weights=True).report().notes
    assert sum("not read by" in note for note in notes) == 2


def test_a_model_is_moved_as_a_copy(model):
    assert move_model(model, torch.device("cpu")) is model
    moved = move_model(model, torch.device("meta"))
    assert devices_of(moved) == [torch.device("meta")]
    assert devices_of(model) == [torch.device("cpu")]
    program = torch.export.export(copy.deepcopy(model), (X,))
    assert devices_of(move_model(program, torch.device("meta"))) == [torch.device("meta")]
    assert devices_of(program) == [torch.device("cpu")]
