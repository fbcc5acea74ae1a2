"""The builder side on real TensorRT-RTX: plans for GPUs that this machine does not have, and what they are checked by."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.backends.tensorrt.build import build
from torchkiln.backends.tensorrt.convert import convert_segment
from torchkiln.backends.tensorrt.onnx_check import make_stand_in, onnx_error
from torchkiln.errors import BackendUnavailable, BuildFailed, CompilerBug, UnsupportedOption
from torchkiln.progress import report_progress
from torchkiln.settings import CompileSettings
from torchkiln.target import Target
from torchkiln.verify.parity import compare

from ..make_segment import make_segment

pytest.importorskip("tensorrt_rtx")

ADA = (Target("sm_86"), Target("sm_89"), Target("sm_120"))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 13, 3, stride=2, padding=1), nn.Conv2d(13, 13, 5, padding=2, groups=13)
        self.norm, self.head = nn.GroupNorm(13, 13), nn.Linear(13, 7)

    def forward(self, x):
        y = nn.functional.silu(self.stem(x))
        y = self.norm(y + nn.functional.hardswish(self.depthwise(y)))
        return self.head(y.mean((2, 3))), y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(31, 24), nn.LayerNorm(24)
        self.query, self.out = nn.Linear(24, 72), nn.Linear(24, 5)

    def forward(self, ids, mask):
        x = self.norm(self.embed(ids))
        q, k, v = self.query(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(torch.nn.functional.gelu(y.transpose(1, 2).flatten(2) + x))


def candidate(precision=torch.float32, targets=ADA):
    return Candidate("tensorrt", precision, targets=targets)


def conv_segment(batch=3):
    torch.manual_seed(0)
    return make_segment(ConvNet(), (torch.randn(batch, 3, 19, 23),), [{0: (1, 8)}] if batch > 1 else None)


@pytest.mark.parametrize(("precision", "limit"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_convolution_net(precision, limit):
    segment = conv_segment()
    artifact = build(segment, candidate(precision), CompileSettings())
    metadata = artifact.metadata
    assert json.loads(json.dumps(metadata)) == metadata
    assert len(artifact.payload) > 10_000
    assert artifact.native_code
    assert metadata["library"] == "tensorrt_rtx"
    assert metadata["targets"] == ["sm_86", "sm_89", "sm_120"]
    assert 0 < metadata["onnx_error"] < limit
    (port,) = metadata["inputs"]
    assert (port["dtype"], port["shape"]) == ("fp32", [-1, 3, 19, 23])
    assert port["profiles"] == [{"min": [1, 3, 19, 23], "opt": [3, 3, 19, 23], "max": [8, 3, 19, 23]}]
    assert [(p["dtype"], p["shape"]) for p in metadata["outputs"]] == [("fp32", [-1, 7]), ("fp32", [-1, 13, 10, 12])]
    types = {layer["dtype"] for layer in metadata["layers"] if layer["type"] == "convolution"}
    assert types == {metadata["precision"]}
    for size in (1, 5, 8):
        x = torch.randn(size, 3, 19, 23)
        assert compare(artifact.stand_in([x]), segment.graph_module(x)).relative_error < limit


def test_attention_with_varying_batch_and_length():
    torch.manual_seed(1)
    ids, mask = torch.randint(0, 31, (3, 11)), torch.rand(3, 11) > 0.2
    mask[:, 0] = True
    ranges = {0: (1, 6), 1: (2, 17)}
    segment = make_segment(Attention(), (ids, mask), [ranges, ranges])
    artifact = build(segment, candidate(torch.float16), CompileSettings())
    assert [p["dtype"] for p in artifact.metadata["inputs"]] == ["int64", "bool"]
    assert [p["profiles"][0]["max"] for p in artifact.metadata["inputs"]] == [[6, 17], [6, 17]]
    assert artifact.metadata["onnx_error"] < 2e-3


def test_half_precision_weights_stay_half():
    graph = convert_segment(conv_segment(), torch.float16)
    assert {w.dtype for w in graph.weights.values()} <= {torch.float16}
    assert len(graph.proto) < 60_000
    assert convert_segment(conv_segment(), torch.bfloat16).weights.keys() == graph.weights.keys()


def test_the_segment_is_converted_once_for_examine_and_build():
    segment = conv_segment()
    backend = get_backend("tensorrt")
    assert backend.examine(segment, candidate(), CompileSettings()) == {}
    first = convert_segment(segment, torch.float32)
    build(segment, candidate(), CompileSettings())
    assert convert_segment(segment, torch.float32) is first


def test_every_setting_builds():
    options = [{}, {"optimization_level": 0, "workspace_size": 1 << 24, "max_aux_streams": 0}, {"disable_tf32": True}, {"sparse_weights": True}]
    plans = [build(conv_segment(1), candidate(), CompileSettings(backend="tensorrt", **o)) for o in options]
    assert all(len(plan.payload) > 10_000 for plan in plans)
    assert plans[1].metadata["workspace_size"] == 1 << 24


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"version_compatible": True}, "version_compatible: a plan of TensorRT-RTX is bound to its version"),
        ({"hardware_compatible": True}, "hardware_compatible: .* target='sm_86,sm_89'"),
        ({"timing_cache_path": "timings"}, "timing_cache_path: TensorRT-RTX times nothing"),
    ],
)
def test_settings_that_rtx_cannot_honour(option, message, monkeypatch):
    monkeypatch.setattr("torchkiln.backends.tensorrt.build.convert_segment", None)  # refused before any work
    monkeypatch.setattr("torchkiln.backends.tensorrt.examine.convert_segment", None)
    settings = CompileSettings(backend="tensorrt", **option)
    with pytest.raises(UnsupportedOption, match=message):
        build(conv_segment(1), candidate(), settings)
    with pytest.raises(UnsupportedOption, match=message):
        get_backend("tensorrt").examine(conv_segment(1), candidate(), settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("option", [{"immutable_weights": False}, {"strip_engine_weights": True}])
def test_plans_without_fixed_weights_need_the_gpu(option):
    with pytest.raises(BuildFailed, match="on a machine with a GPU only"):
        build(conv_segment(1), candidate(), CompileSettings(backend="tensorrt", **option))


def test_several_profiles():
    model = ConvNet().eval()
    image = torchkiln.Input(min_shape=(1, 3, 19, 23), opt_shape=(2, 3, 19, 23), max_shape=(16, 3, 19, 23), name="image")
    profiles = [{"image": ((1, 3, 19, 23), (1, 3, 19, 23), (1, 3, 19, 23))}, {"image": ((2, 3, 19, 23), (8, 3, 19, 23), (16, 3, 19, 23))}]
    engine = torchkiln.compile(model, [image], backend="tensorrt", target="sm_89", profiles=profiles)
    (port,) = engine.contents.segments[0].artifact.metadata["inputs"]
    assert [p["opt"][0] for p in port["profiles"]] == [1, 8]


class Mixed(nn.Module):
    """A custom operator and one whose output's size depends on the data, between parts that TensorRT takes."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(9, 9), nn.Linear(9, 9)

    def forward(self, x):
        y = torch.relu(self.before(x)).sigmoid() - 0.3
        y = torch.ops.torchkiln_tests.twice(y)
        z = torch.tanh(self.after(y)).abs().sqrt()
        return z, torch.nonzero(z > 0.5)


@pytest.fixture(scope="module", autouse=True)
def custom_operator():
    library = torch.library.Library("torchkiln_tests", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    yield
    library._destroy()


def test_a_mixed_graph(tmp_path):
    torch.manual_seed(3)
    model, x = Mixed().eval(), torch.randn(5, 9)
    engine = torchkiln.compile(model, [x], backend="tensorrt", target=["sm_86", "sm_120"], min_block_size=2)
    report = engine.report()
    backends = [s.backend for s in report.segments]
    assert backends.count("tensorrt") == 2
    assert "torch" in backends
    reasons = {r.subject: r.reason for r in report.rejects}
    assert "custom operator" in reasons["torchkiln_tests.twice.default"]
    assert "depends on the data" in reasons["aten.nonzero.default"]
    assert report.parity.relative_error < 1e-5
    engine.save(tmp_path / "m.kiln")
    assert (tmp_path / "m.kiln").stat().st_size > sum(len(s.artifact.payload) for s in engine.contents.segments)


class Refused(nn.Module):
    def forward(self, x):
        y = torch.relu(x) + 1
        y = torch.erfinv(y.tanh() * 0.5)  # torch's exporter has no ONNX form for it
        return y.exp().sum(-1)


def test_an_operator_that_cannot_go_to_onnx_goes_to_pytorch():
    engine = torchkiln.compile(Refused().eval(), [torch.randn(3, 17)], backend="tensorrt", target="sm_89", min_block_size=1)
    report = engine.report()
    assert [s.backend for s in report.segments] == ["tensorrt", "torch", "tensorrt"]
    (reject,) = report.rejects
    assert reject.subject == "aten.erfinv.default"
    assert "cannot be exported to ONNX" in reject.reason


def test_wrong_numbers_in_the_onnx_graph_fail_the_build(monkeypatch):
    def spoiled(*arguments):
        run = make_stand_in(*arguments)
        return lambda inputs: [output * 1.001 for output in run(inputs)]

    monkeypatch.setattr("torchkiln.backends.tensorrt.build.make_stand_in", spoiled)
    with pytest.raises(BuildFailed, match=r"run by ONNX Runtime, has relative error 0.001 against PyTorch in fp32, more than 0.0001 for fp32"):
        build(conv_segment(1), candidate(), CompileSettings())
    assert build(conv_segment(1), candidate(), CompileSettings(verify=0.01)).metadata["onnx_error"] == pytest.approx(0.001, rel=0.1)
    assert build(conv_segment(1), candidate(), CompileSettings(verify=False)).metadata["onnx_error"] is None


def test_the_network_is_compared_with_the_segment(monkeypatch):
    from torchkiln.backends.tensorrt import build as module

    describe = module.describe_ports

    def changed(network):
        inputs, outputs = describe(network)
        outputs[0]["dtype"] = "int64"
        return inputs, outputs

    monkeypatch.setattr(module, "describe_ports", changed)
    with pytest.raises(CompilerBug, match=r"output .*: expected torch.float32 of 2 dimensions, got int64 of 2 dimensions"):
        build(conv_segment(1), candidate(), CompileSettings())


def test_progress_is_said():
    seen = []
    with report_progress(lambda phase, done, total: seen.append((phase, done, total))):
        build(conv_segment(1), candidate(), CompileSettings())
    phases = {phase for phase, _, _ in seen if phase.startswith("TensorRT: ")}
    assert phases
    for phase in phases:
        assert any(done == total > 0 for p, done, total in seen if p == phase), phase


class Labels(nn.Module):
    """Class numbers of many pixels: in fp16 a few of them flip."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.scores = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 11, 1)

    def forward(self, x):
        return self.scores(torch.relu(self.features(x))).argmax(1)


def test_class_numbers_may_flip_as_in_any_engine():
    torch.manual_seed(0)
    engine = torchkiln.compile(Labels().eval(), [torch.randn(1, 3, 101, 97)], backend="tensorrt", target="sm_89", enabled_precisions={"fp16"})
    assert 0 < engine.contents.segments[0].artifact.metadata["onnx_error"] < 1e-2


def test_the_worst_output_counts():
    segment = conv_segment(1)
    (x,) = segment.example_inputs
    expected = segment.graph_module(x)
    assert onnx_error(lambda inputs: list(expected), segment) == 0.0
    spoiled = lambda inputs: [expected[0], expected[1] * 1.5]  # noqa: E731
    assert onnx_error(spoiled, segment) == pytest.approx(0.5)
    with pytest.raises(BuildFailed, match=r"gives other outputs than PyTorch: .* expected 2 outputs"):
        onnx_error(lambda inputs: [expected[0]], segment)


def test_unchecked_by_request(monkeypatch):
    def refused(*arguments):
        raise BuildFailed("ONNX Runtime cannot check the graph")

    monkeypatch.setattr("torchkiln.backends.tensorrt.build.make_stand_in", refused)
    here = (Target("sm_89", torch.device("cuda", 0)),)
    artifact = build(conv_segment(1), candidate(targets=here), CompileSettings(verify=False))
    assert artifact.metadata["onnx_error"] is None
    assert artifact.stand_in is None
    with pytest.raises(BuildFailed, match="ONNX Runtime cannot check"):
        build(conv_segment(1), candidate(), CompileSettings(verify=False))


@pytest.mark.parametrize(
    ("target", "message"), [("sm_90", "no kernels for sm_90"), ("cpu", "builds for NVIDIA GPUs, not for cpu: name one, as target='sm_89'")]
)
def test_targets_that_cannot_be_built_for(target, message):
    with pytest.raises(BackendUnavailable, match=message):
        torchkiln.compile(ConvNet().eval(), [torch.randn(1, 3, 19, 23)], backend="tensorrt", target=target)
