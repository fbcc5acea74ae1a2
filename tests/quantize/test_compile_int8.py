"""int8 through torchkiln.compile: backends, reports, files, errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.backends.openvino.exact_sums import has_exact_sums
from torchkiln.backends.openvino.quantized import quantized_reason
from torchkiln.backends.registry import get_backend
from torchkiln.errors import BackendUnavailable, CalibrationCacheError, ParityFailed, UserError
from torchkiln.progress import report_progress
from torchkiln.ptq import CacheCalibrator, Calibration, CalibrationAlgo, DataLoaderCalibrator, QuantizeOptions, TensorRange
from torchkiln.quantized_ops import register_quantized_ops

from .digits import Cnn, Vit

_q = register_quantized_ops()
IMAGE = torchkiln.Input((4, 1, 8, 8))
INT8 = {torch.int8}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Cnn().eval()


def data(count: int = 2, size: int = 6) -> list[torch.Tensor]:
    return [torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def calibrator(**options) -> DataLoaderCalibrator:
    return DataLoaderCalibrator(data(), algorithm="max", **options)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("backend", ["openvino", "inductor", "torch"])
def test_backends_give_int8_s_numbers(model, backend):
    engine = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend=backend, calibrator=calibrator())
    report = engine.report()
    assert report.precision == "int8+fp32"
    x = data(1)[0][:4]
    with torch.no_grad():
        expected = model(x)
    assert 1e-4 < relative_error(engine(x), expected) < 0.05
    assert report.segments[0].precision == "int8+fp32"
    assert any("computes it in floating point" in note for note in report.notes) is (backend != "openvino")
    assert "int8: calibrated by max over 12 samples in 2 batches" in report.notes
    assert any(n.startswith("int8: 5 of 8 layers; in floating point: ") and "the stem" in n and "(stem)" in n for n in report.notes)


def test_backends_agree_with_the_graph_in_pytorch(model):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    found = {
        backend: torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend=backend, calibrator=calibrator(), verify=False)(x)
        for backend in ("openvino", "torch")
    }
    # The same integers: only values that lie between two of them may differ.
    assert relative_error(found["openvino"], found["torch"]) < 5e-3


def test_openvino_runs_int8_kernels(model):
    engine = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="openvino", calibrator=calibrator())
    (segment,) = engine.contents.segments
    convolutions = [layer for layer in segment.artifact.metadata["layers"] if layer["type"] == "Convolution"]
    assert sorted(layer["dtype"] for layer in convolutions) == ["fp32"] * 2 + ["int8"] * 4
    # At some sizes OpenVINO makes one floating kernel of neighbouring linear layers: the note says what it runs, the one before what it was asked.
    int8, count = segment.artifact.metadata["int8_layers"]
    assert (int8 >= 4, count >= 6) == (True, True)
    assert f"segment_0: openvino runs {int8} of {count} convolutions and matrix products by int8 kernels" in engine.report().notes
    weights = segment.artifact.tensors["weights"].numel()
    floats = torchkiln.compile(model, [IMAGE], backend="openvino").contents.segments[0].artifact
    assert weights < floats.tensors["weights"].numel() * 0.5, "weights are kept in 8 bits"
    assert {layer["dtype"] for layer in floats.metadata["layers"]} == {"fp32"}


@pytest.mark.parametrize("is_exact", [True, False])
def test_a_cpu_whose_sums_may_saturate_is_noted(model, monkeypatch, is_exact):
    capabilities = {"architecture": "x86_64", "avx2": True, "avx512_vnni": is_exact}
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_exact_sums() is is_exact
    report = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="openvino", calibrator=calibrator()).report()
    assert any("neither VNNI nor AMX" in note for note in report.notes) is not is_exact


def test_everything_can_be_int8(model):
    options = QuantizeOptions(stem=True, head=True, depthwise=True)
    engine = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="openvino", calibrator=calibrator(options=options))
    assert "int8: 8 of 8 layers" in engine.report().notes
    assert engine.report().parity.relative_error < 0.05


def test_a_float_precision_beside_int8_races_with_it(model):
    engine = torchkiln.compile(model, [IMAGE], enabled_precisions={torch.int8, torch.float32}, backend="openvino", calibrator=calibrator())
    assert {c.name for c in engine.report().candidates} == {"openvino int8+fp32", "openvino fp32"}
    assert engine.report().enabled_precisions == ["fp32", "int8"]


def test_a_dynamic_batch_is_checked_with_calibration_data(model):
    ranged = torchkiln.Input(min_shape=(1, 1, 8, 8), opt_shape=(4, 1, 8, 8), max_shape=(9, 1, 8, 8))
    engine = torchkiln.compile(model, [ranged], enabled_precisions=INT8, backend="openvino", calibrator=calibrator())
    assert [s.split(":")[0] for s in engine.report().parity.checked_shapes] == [f"{p} (calibration data)" for p in ("opt", "min", "max")]
    for size in (1, 9):
        x = data(1, size)[0]
        assert relative_error(engine(x), model(x).detach()) < 0.06


def test_int8_without_ranges_is_an_error(model):
    with pytest.raises(UserError, match=r"int8 needs the range.*DataLoaderCalibrator"):
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8)
    with pytest.raises(UserError, match=r"add torch.int8 to enabled_precisions"):
        torchkiln.compile(model, [IMAGE], calibrator=calibrator())
    with pytest.raises(UserError, match=r"expected a torchkiln.ptq.DataLoaderCalibrator"):
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, calibrator=data())


def test_a_backend_without_int8_says_so(model):
    unread = iter(data())
    with pytest.raises(BackendUnavailable, match="backend 'onnxruntime': int8: "):
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="onnxruntime", calibrator=DataLoaderCalibrator(unread))
    assert len(list(unread)) == 2, "refused before calibrating"
    report = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, calibrator=calibrator(), dryrun=True)
    assert [r.backend for r in report.rejects if r.subject == "int8"] == ["onnxruntime"]
    assert report.precision == "int8+fp32"


def test_ranges_that_clip_everything_fail_the_check(model, tmp_path):
    path = tmp_path / "calib.json"
    torchkiln.ptq.calibrate(model, [IMAGE], calibrator(cache_file=path))
    content = json.loads(path.read_text())
    for row in content["tensors"].values():
        row["amax"] *= 1e-3
    path.write_text(json.dumps(content))
    with pytest.raises(ParityFailed, match=r"tolerance 0\.25 for int8\+fp32"):
        torchkiln.compile(model, data(1, 4), enabled_precisions=INT8, backend="torch", calibrator=CacheCalibrator(path))


def test_a_cache_without_data_is_checked_against_its_own_graph(model, tmp_path):
    path = tmp_path / "calib.json"
    torchkiln.ptq.calibrate(model, [IMAGE], calibrator(cache_file=path))
    options = {"enabled_precisions": INT8, "backend": "openvino", "calibrator": CacheCalibrator(path)}
    report = torchkiln.compile(model, [IMAGE], **options).report()
    assert (report.parity.tolerance, report.parity.relative_error < 5e-3) == (5e-2, True)
    assert any("compared with the calibrated graph" in note for note in report.notes)
    both = torchkiln.compile(model, [IMAGE], **{**options, "enabled_precisions": {torch.int8, torch.float32}}).report()
    by_name = {c.name: c.relative_error for c in both.candidates}
    assert by_name["openvino fp32"] < 1e-4
    report = torchkiln.compile(model, data(1, 4), **options).report()
    assert (report.parity.tolerance, report.parity.relative_error > 1e-4) == (0.25, True)
    assert not any("compared with the calibrated graph" in note for note in report.notes)


def test_an_engine_file_runs_in_a_fresh_process(model, tmp_path):
    engine = torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="torch", calibrator=calibrator())
    x = data(1)[0][:4]
    engine.save(tmp_path / "m.kiln")
    torch.save((x, engine(x)), tmp_path / "call.pt")
    code = (
        "import sys, torch, torchkiln\n"
        "x, y = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(torchkiln.load(sys.argv[1])(x), y)\n"
        "assert not any(m.startswith(('torchkiln.quantize.', 'torchkiln.compiler')) for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.kiln"), str(tmp_path / "call.pt")], check=True)


def test_cache_is_readable_and_gives_the_same_engine(model, tmp_path):
    path = tmp_path / "calib.json"
    seen = []
    with report_progress(lambda phase, done, total: seen.append((phase, done, total))):
        torchkiln.ptq.calibrate(model, [IMAGE], calibrator(cache_file=path))
    assert ("calibrate", 1, 2) in seen
    content = json.loads(path.read_text())
    assert (content["torchkiln"], content["algorithm"], content["batches"], content["samples"]) == (torchkiln.__version__, "max", 2, 12)
    assert list(content["tensors"])[:2] == ["stem.input", "block.first.input"]
    values = torch.cat(data())
    row = content["tensors"]["stem.input"]
    assert (row["min"], row["max"]) == (values.min().item(), values.max().item())
    assert row["amax"] == values.abs().max().item()
    x = data(1)[0][:4]
    engines = [
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, backend="torch", calibrator=c)
        for c in (calibrator(), CacheCalibrator(path), DataLoaderCalibrator(iter(()), algorithm="max", cache_file=path, use_cache=True))
    ]
    assert torch.equal(engines[0](x), engines[1](x))
    assert torch.equal(engines[0](x), engines[2](x))


def test_cache_serves_every_batch_size(model, tmp_path):
    path = tmp_path / "calib.json"
    torchkiln.ptq.calibrate(model, [IMAGE], calibrator(cache_file=path))
    ranged = torchkiln.Input(min_shape=(1, 1, 8, 8), opt_shape=(3, 1, 8, 8), max_shape=(9, 1, 8, 8))
    for spec in (torchkiln.Input((1, 1, 8, 8)), ranged):
        report = torchkiln.compile(model, [spec], enabled_precisions=INT8, backend="torch", calibrator=CacheCalibrator(path), dryrun=True)
        assert report.precision == "int8+fp32"


def test_cache_of_another_model_is_refused(model, tmp_path):
    path = tmp_path / "calib.json"
    torchkiln.ptq.calibrate(model, [IMAGE], calibrator(cache_file=path))
    torch.manual_seed(1)
    for loader in (CacheCalibrator(path), DataLoaderCalibrator(data(), algorithm="max", cache_file=path, use_cache=True)):
        with pytest.raises(CalibrationCacheError, match="belongs to another model"):
            torchkiln.compile(Cnn().eval(), [IMAGE], enabled_precisions=INT8, calibrator=loader)
    other = DataLoaderCalibrator(data(), algorithm="percentile", percentile=99.9, cache_file=path, use_cache=True)
    with pytest.raises(CalibrationCacheError, match=r"was made by max, asked for is percentile 99\.9"):
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, calibrator=other)


def fingerprint_of(model: nn.Module, batch: int = 4) -> str:
    return torchkiln.ptq.calibrate(model, [torchkiln.Input((batch, 1, 8, 8))], calibrator()).fingerprint


@pytest.mark.parametrize("name", ["layers.0.norm1.weight", "layers.1.norm2.bias", "layers.0.qkv.bias", "positions"])
def test_every_floating_constant_tells_models_apart(name):
    torch.manual_seed(0)
    model = Vit().eval()
    before = fingerprint_of(model)
    assert fingerprint_of(model, batch=1) == before
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] += 0.01
    assert fingerprint_of(model) != before


class Token(nn.Module):
    """Its token is expanded to the batch size, by a constant where that is small."""

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.slope = slope
        self.token = nn.Parameter(torch.arange(8.0).view(1, 1, 1, 8) / 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1, -1), x], 2)
        return nn.functional.leaky_relu(self.second(nn.functional.leaky_relu(self.first(x), self.slope)), self.slope).sum(-1)


def test_a_fingerprint_is_of_the_model_not_of_the_batch_size():
    torch.manual_seed(0)
    model, other = Token().eval(), Token(slope=0.2).eval()
    other.load_state_dict(model.state_dict())
    assert len({fingerprint_of(model, batch) for batch in (1, 2, 8, 9)}) == 1
    assert fingerprint_of(other) != fingerprint_of(model)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"format": "torchkiln calibration", "version": 2}', '{"format": "torchkiln calibration", "version": 1}']
)
def test_damaged_caches_are_refused(model, tmp_path, content):
    path = tmp_path / "calib.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CalibrationCacheError, match=r"calib\.json"):
        torchkiln.compile(model, [IMAGE], enabled_precisions=INT8, calibrator=CacheCalibrator(path))


@pytest.mark.parametrize(
    "row", [{"amax": 10**400}, {"amax": -1.0}, {"amax": float("nan")}, {"min": 2.0, "max": 1.0}, {"max": None}, {"min": float("-inf")}]
)
def test_ranges_that_are_none_are_refused(tmp_path, row):
    path = tmp_path / "calib.json"
    calibration = Calibration("0", "max", 99.0, 1, 1, QuantizeOptions(), {"a.input": TensorRange(1.0, -1.0, 1.0)})
    calibration.write(path)
    assert Calibration.read(path) == calibration
    content = json.loads(path.read_text())
    content["tensors"]["a.input"].update(row)
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationCacheError, match=r"calib\.json"):
        Calibration.read(path)


def test_a_cache_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "calib.json"
    path.write_text("[" * 200_000)
    with pytest.raises(CalibrationCacheError, match=r"calib\.json"):
        Calibration.read(path)


def test_torch_tensorrt_s_words(model, tmp_path):
    algo = CalibrationAlgo.ENTROPY_CALIBRATION_2
    found = DataLoaderCalibrator(data(), cache_file=tmp_path / "c", use_cache=False, algo_type=algo, device=torch.device("cpu"))
    assert found.algorithm == "entropy"
    assert CalibrationAlgo.MINMAX_CALIBRATION.value == "max"
    torchkiln.ptq.calibrate(model, [IMAGE], found)
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DataLoaderCalibrator(data(), algorithm="median"), "expected one of entropy, max, percentile, mse"),
        (lambda: DataLoaderCalibrator(3), "expected an iterable"),
        (lambda: DataLoaderCalibrator(data(), use_cache=True), "use_cache needs cache_file"),
        (lambda: DataLoaderCalibrator(iter(())), "the data has no batch"),
        (lambda: DataLoaderCalibrator(data(), device="cuda:0"), "cuda:0 was asked for, but the engine is built on cpu"),
        (lambda: DataLoaderCalibrator([torch.full((2, 1, 8, 8), float("nan"))]), "NaN or infinity on this batch.*stem.input"),
    ],
)
def test_calibrators_that_make_no_sense(model, make, words):
    with pytest.raises(UserError, match=words):
        torchkiln.ptq.calibrate(model, [IMAGE], make())


def test_a_calibrator_is_for_one_model(model):
    used = calibrator()
    torchkiln.ptq.calibrate(model, [IMAGE], used)
    torchkiln.ptq.calibrate(model, [torchkiln.Input((2, 1, 8, 8))], used)  # another size of the same
    with pytest.raises(UserError, match="another model"):
        torchkiln.ptq.calibrate(Cnn().eval(), [IMAGE], used)


class FakeQuantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.register_buffer("scales", torch.rand(4) * 0.002 + 0.002)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))

    def forward(self, x):
        x = torch.fake_quantize_per_tensor_affine(x, 0.03, 5, -128, 127)
        weight = torch.fake_quantize_per_channel_affine(self.conv.weight, self.scales, self.zeros, 0, -127, 127)
        return torch.nn.functional.conv2d(x, weight, self.conv.bias).relu().flatten(1)


def test_int8_that_was_not_asked_for_is_not_missed(monkeypatch):
    monkeypatch.setattr(get_backend("openvino"), "no_int8", "none here")
    report = torchkiln.compile(FakeQuantized().eval(), [IMAGE], backend="openvino").report()
    assert report.precision == "fp32"
    assert not any("it is enabled" in note for note in report.notes)


@pytest.mark.parametrize(
    "spec", [IMAGE, torchkiln.Input(min_shape=(1, 1, 8, 8), opt_shape=(4, 1, 8, 8), max_shape=(9, 1, 8, 8))], ids=["fixed", "ranged"]
)
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_fake_quantized_models_need_no_calibrator(spec, backend):
    engine = torchkiln.compile(FakeQuantized().eval(), [spec], enabled_precisions=INT8, backend=backend)
    assert engine.report().precision == "int8+fp32"
    assert engine.report().parity.relative_error < 1e-2
    assert "int8: by the model's own quantize/dequantize pairs" in engine.report().notes
    with pytest.raises(UserError, match="pairs of its own"):
        torchkiln.compile(FakeQuantized().eval(), [spec], enabled_precisions=INT8, calibrator=calibrator())


@pytest.mark.parametrize(
    ("low", "high", "dtype", "words"),
    [
        (-128, 127, torch.int8, ""),
        (0, 127, torch.uint8, ""),
        (-32768, 32767, torch.int16, "not -32768 to 32767 in int16"),
        (-128, 127, torch.int32, "not -128 to 127 in int32"),
        (0, 255, torch.int8, "not 0 to 255 in int8"),
    ],
)
def test_openvino_takes_pairs_of_8_bits(low, high, dtype, words):
    graph = torch.fx.Graph()
    whole = (0.1, 0, low, high, dtype)
    pair = [graph.call_function(_q.quantize_per_tensor.default, (graph.placeholder("x"), *whole))]
    pair.append(graph.call_function(_q.dequantize_per_tensor.default, (pair[0], *whole)))
    graph.output(pair[1])
    reasons = [quantized_reason(node) for node in pair]
    assert all(reasons) if words else reasons == ["", ""]
    assert words in reasons[0]


@pytest.mark.parametrize("net", [nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5)), nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))])
def test_graphs_of_operators_that_train_are_refused(net):
    graph = torch.export.export(net.train(), (torch.randn(4, 1, 8, 8),)).module()
    with pytest.raises(UserError, match="training mode"):
        torchkiln.compile(graph, [IMAGE], backend="torch")


@pytest.mark.filterwarnings("ignore")
def test_models_of_torch_ao_s_eager_training():
    from torch.ao import quantization

    torch.manual_seed(0)
    net = nn.Sequential(quantization.QuantStub(), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).train()
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    net = quantization.prepare_qat(quantization.fuse_modules_qat(net, [["1", "2", "3"]]))
    for batch in data(4):
        net(batch)
    observing = torchkiln.errors.StatefulModel
    with pytest.raises(observing):
        torchkiln.compile(net.eval(), [IMAGE], enabled_precisions=INT8)
    net.apply(quantization.disable_observer)
    engine = torchkiln.compile(net, [IMAGE], enabled_precisions=INT8, backend="openvino")
    assert engine.report().precision == "int8+fp32"
    assert engine.report().parity.relative_error < 2e-2
    assert any("runs 2 of 2 convolutions" in note for note in engine.report().notes), engine.report().notes
