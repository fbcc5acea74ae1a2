"""torchkiln.compile from the outside: what it takes, what it gives, what it refuses, and the report."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.errors import BackendUnavailable, BuildFailed, InputMismatch, ParityFailed, UnknownOption, UnsupportedOption, UserError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Linear(7, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


X = torch.randn(3, 3, 13, 11)


def test_one_line(model):
    engine = torchkiln.compile(model, inputs=[torchkiln.Input((3, 3, 13, 11))])
    torch.testing.assert_close(engine(X), model(X), rtol=1e-4, atol=1e-5)
    report = engine.report()
    assert report.parity.verified
    assert report.parity.relative_error < 1e-4
    assert {c.status for c in report.candidates} >= {"kept"}
    assert report.build_s > 0
    assert "Small" in str(report)


def test_auto_keeps_the_fastest_and_says_why_not_the_others(model, made_backend):
    made_backend(delay_s=0.02)
    report = torchkiln.compile(model, [X]).report()
    assert report.backend == "torch"
    slower = next(c for c in report.candidates if c.name.startswith("openvino"))
    assert slower.status == "slower"
    assert "times the kept one" in slower.reason


def test_an_unavailable_backend_is_a_line_in_the_report(model, made_backend):
    made_backend(unavailable="its wheel is not installed: pip install it")
    report = torchkiln.compile(model, [X]).report()
    assert any(c.status == "unavailable" and "pip install" in c.reason for c in report.candidates)
    with pytest.raises(BackendUnavailable, match="pip install"):
        torchkiln.compile(model, [X], backend="openvino")


def double_relu(graph_module):
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            with graph_module.graph.inserting_after(node):
                doubled = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
            doubled.meta = dict(node.meta)
            node.replace_all_uses_with(doubled, delete_user_cb=lambda user, keep=doubled: user is not keep)


def test_wrong_numbers_fail_the_build_and_name_the_operator(model, made_backend):
    made_backend(spoil=double_relu)
    with pytest.raises(ParityFailed, match=r"relative error .*tolerance 0.0001 for fp32.*relu \(test_compiler\.py:\d+\): aten\.relu\.default"):
        torchkiln.compile(model, [X], backend="openvino")


def test_auto_drops_a_candidate_with_wrong_numbers(model, made_backend):
    made_backend(spoil=double_relu)
    engine = torchkiln.compile(model, [X])
    assert engine.report().backend == "torch"
    assert any(c.status == "parity" and "relative error" in c.reason for c in engine.report().candidates)
    torch.testing.assert_close(engine(X), model(X))


def test_verify_off_is_said(model, made_backend):
    made_backend(spoil=double_relu)
    engine = torchkiln.compile(model, [X], backend="openvino", verify=False)
    assert not engine.report().parity.verified
    assert "not verified: verify=False" in engine.report().notes


def test_verify_takes_a_tolerance_and_float64(model):
    engine = torchkiln.compile(model, [X], backend="torch", verify=1e-5, verify_dtype=torch.float64)
    assert engine.report().parity.reference == "float64"
    assert 0 < engine.report().parity.relative_error <= 1e-5
    with pytest.raises(ParityFailed, match="in lowering or the model"):
        torchkiln.compile(model, [X], backend="torch", verify=1e-12, verify_dtype=torch.float64)


def test_slow_segments_go_back_to_pytorch(model, made_backend):
    made_backend(delay_s=0.01, refuses=lambda op: "relu" in op)
    report = torchkiln.compile(model, [X], min_block_size=1).report()
    assert {s.backend for s in report.segments} == {"torch"}
    assert any(c.status in ("failed", "slower") for c in report.candidates if c.name.startswith("openvino"))


def test_mixed_engine_reports_segments_and_reasons(model, made_backend):
    made_backend(refuses=lambda op: "relu" in op)
    engine = torchkiln.compile(model, [X], backend="openvino", min_block_size=1)
    report = engine.report()
    assert [s.backend for s in report.segments] == ["openvino", "torch", "openvino"]
    (reject,) = [r for r in report.rejects if "relu" in r.subject]
    assert reject.reason == "refused by the test"
    assert "test_compiler.py:" in reject.where
    assert all(s.torch_time_us for s in report.segments if s.backend != "torch")
    torch.testing.assert_close(engine(X), model(X), rtol=1e-4, atol=1e-5)


def test_require_full_compilation_names_the_operators(model, made_backend):
    made_backend(refuses=lambda op: "relu" in op)
    with pytest.raises(BuildFailed, match=r"1 operators would stay in PyTorch:\n  relu.*refused by the test"):
        torchkiln.compile(model, [X], backend="openvino", min_block_size=1, require_full_compilation=True)


def test_dryrun_builds_nothing(model, made_backend):
    backend = made_backend(refuses=lambda op: "relu" in op)
    report = torchkiln.compile(model, [X], min_block_size=1, dryrun=True)
    assert isinstance(report, torchkiln.Report)
    assert backend.builds == 0
    assert [s.backend for s in report.segments] == ["openvino", "torch", "openvino"]


def test_options_that_do_not_exist_or_make_no_sense(model):
    with pytest.raises(UnknownOption, match="Did you mean 'min_block_size'"):
        torchkiln.compile(model, [X], min_blok_size=2)
    with pytest.raises(UnsupportedOption, match="say immutable_weights=False"):
        torchkiln.compile(model, [X], refit=True)
    for bad in ({"backend": "tensorrt8"}, {"min_block_size": 0}, {"verify": -1}, {"enabled_precisions": {torch.int8}}, {"enabled_precisions": set()}):
        with pytest.raises(UserError):
            torchkiln.compile(model, [X], **bad)
    with pytest.raises(UserError, match=r"inputs=\[torchkiln.Input"):
        torchkiln.compile(model)
    with pytest.raises(UserError, match="training mode"):
        torchkiln.compile(Small(), [X])
    with pytest.raises(UserError, match=r"(?s)the model itself fails.*tensor_domain"):
        torchkiln.compile(model, [torch.randn(3, 4, 5, 5)])


def test_a_trtorch_compile_spec(model):
    spec = {"inputs": [torchkiln.Input((3, 3, 13, 11))], "enabled_precisions": {torch.float}, "debug": False}
    torch.testing.assert_close(torchkiln.compile(model, spec)(X), model(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="given twice"):
        torchkiln.compile(model, spec, debug=True)


def test_calls_that_do_not_fit(model):
    engine = torchkiln.compile(model, [X], backend="torch")
    for bad, message in (
        ((X[:2],), "dimension 0: expected 3, got 2"),
        ((X.double(),), "expected dtype float32, got float64"),
        ((X, X), "2 positional arguments"),
        ((X.clone().requires_grad_(),), "requires grad"),
        ((X[0],), "expected rank 4"),
        ((X.to_sparse(),), "dense"),
    ):
        with pytest.raises(InputMismatch, match=message):
            engine(*bad)
    with pytest.raises(InputMismatch, match="unexpected keyword"):
        engine(X, mask=X)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_dynamic_shapes(model, backend):
    spec = torchkiln.Input(min_shape=(1, 3, 5, 5), opt_shape=(3, 3, 13, 11), max_shape=(16, 3, 20, 21), name="image")
    engine = torchkiln.compile(model, [spec], backend=backend)
    assert len(engine.report().parity.checked_shapes) == 3
    for shape in ((1, 3, 5, 5), (1, 3, 13, 11), (3, 3, 13, 11), (7, 3, 19, 6), (16, 3, 20, 21)):
        x = torch.randn(shape)
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputMismatch, match=r"input image \(args\[0\]\): dimension 0: expected 1 to 16, got 17"):
        engine(torch.randn(17, 3, 5, 5))


def test_half_inputs_of_a_float_model(model):
    engine = torchkiln.compile(model, [torchkiln.Input((3, 3, 13, 11), dtype=torch.half)], enabled_precisions={torch.half})
    out = engine(X.half())
    assert out.dtype == torch.float32
    assert (out - model(X)).norm() / model(X).norm() < 1e-2


def test_output_dtype(model):
    engine = torchkiln.compile(model, [X], output_dtype=torch.half)
    assert engine(X).dtype == torch.half


def test_a_half_precision_model(model):
    half = Small().eval().bfloat16()
    engine = torchkiln.compile(half, [X.bfloat16()], enabled_precisions={torch.bfloat16})
    out = engine(X.bfloat16())
    assert out.dtype == torch.bfloat16
    reference = half.float()(X)
    assert (out.float() - reference).norm() / reference.norm() < 5e-2


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 12), nn.Linear(12, 50)

    def forward(self, ids, *, mask=None, options=None):
        h = self.embed(ids)
        if mask is not None:
            h = torch.where(mask[..., None], h, 0.0)
        return {"logits": self.out(h), "pooled": (h.mean(1), None)}


def test_keyword_inputs_integers_booleans_and_nested_outputs():
    model = Tokens().eval()
    ids = torchkiln.Input((2, 9), dtype=torch.int64, tensor_domain=(0, 50))
    engine = torchkiln.compile(model, [ids], kwarg_inputs={"mask": torchkiln.Input((2, 9), dtype=torch.bool)})
    x, mask = torch.randint(0, 50, (2, 9)), torch.rand(2, 9) > 0.5
    got, expected = engine(x, mask=mask), model(x, mask=mask)
    torch.testing.assert_close(got["logits"], expected["logits"])
    torch.testing.assert_close(got["pooled"][0], expected["pooled"][0])
    assert got["pooled"][1] is None
    with pytest.raises(InputMismatch, match="missing keyword 'mask'"):
        engine(x)


class Adds(nn.Module):
    def forward(self, a, b):
        return torch.relu(a + b) * 2


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_dimensions_that_must_agree(backend, tmp_path):
    spec = torchkiln.Input(min_shape=(1, 16), opt_shape=(4, 16), max_shape=(8, 16))
    engine = torchkiln.compile(Adds().eval(), [spec, spec], backend=backend)
    engine.save(tmp_path / "m.kiln")
    for candidate in (engine, torchkiln.load(tmp_path / "m.kiln")):
        a, b = torch.randn(3, 16), torch.randn(3, 16)
        torch.testing.assert_close(candidate(a, b), Adds()(a, b))
        with pytest.raises(InputMismatch, match=r"must be the same size.*dimension 0 of a is 8, dimension 0 of b is 2"):
            candidate(torch.randn(8, 16), torch.randn(2, 16))


def test_an_input_without_a_dtype_takes_any_floating_one(model, tmp_path):
    engine = torchkiln.compile(model, [torchkiln.Input((3, 3, 13, 11))], backend="torch")
    engine.save(tmp_path / "m.kiln")
    for candidate in (engine, torchkiln.load(tmp_path / "m.kiln")):
        for dtype in (torch.half, torch.float64):
            torch.testing.assert_close(candidate(X.to(dtype)), model(X.to(dtype).float()))
        with pytest.raises(InputMismatch, match="expected dtype float32, got int64"):
            candidate(X.long())


def test_integer_indices_stay_with_the_backend():
    class Picks(nn.Module):
        def forward(self, x, index):
            return torch.relu(x[:, index]) + 1

    ids = torchkiln.Input((4,), dtype=torch.int64, tensor_domain=(0, 9))
    report = torchkiln.compile(Picks().eval(), [torch.randn(3, 9), ids], backend="openvino").report()
    assert [s.backend for s in report.segments] == ["openvino"]


def test_verify_off_does_not_run_the_reference(model, monkeypatch):
    def refuse(*args):
        raise AssertionError("the reference was run")

    monkeypatch.setattr("torchkiln.compiler.make_check_points", refuse)
    assert torchkiln.compile(model, [X], backend="torch", verify=False).report().parity.verified is False


def test_torch_executed_ops_that_match_nothing_are_said(model):
    report = torchkiln.compile(model, [X], backend="torch", torch_executed_ops="aten.rellu").report()
    assert any("aten.rellu is not in the lowered graph; did you mean aten.relu" in note for note in report.notes)


def test_eight_threads_get_their_own_results(model):
    engine = torchkiln.compile(model, [X])
    inputs = [torch.randn_like(X) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    failures = []

    def work(index):
        for _ in range(40):
            if not torch.allclose(engine(inputs[index]), expected[index], rtol=1e-4, atol=1e-5):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_loading_imports_no_compiler_and_needs_no_source(model, tmp_path):
    path = tmp_path / "m.kiln"
    torchkiln.compile(model, [X], backend="openvino").save(path)
    torch.save((X, model(X)), tmp_path / "sample.pt")
    code = f"""
import sys, torch, torchkiln
engine = torchkiln.load({str(path)!r})
x, expected = torch.load({str(tmp_path / "sample.pt")!r}, weights_only=True)
torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)
parts = ("compiler", "capture", "lower", "partition", "race", "verify", "bench", "cli", "backends.openvino.build")
found = [m for m in sys.modules if any(m == f"torchkiln.{{p}}" or m.startswith(f"torchkiln.{{p}}.") for p in parts)]
assert not found, found
assert "torch._inductor" not in sys.modules and "torch.onnx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ""})


def test_fifty_loads_and_deletes_do_not_grow(model, tmp_path):
    import gc

    import psutil

    path = tmp_path / "m.kiln"
    wide = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval()
    torchkiln.compile(wide, [torch.randn(2, 1024)], backend="openvino").save(path)
    process = psutil.Process()
    x = torch.randn(2, 1024)

    def cycle(count):
        for _ in range(count):
            torchkiln.load(path)(x)
        gc.collect()
        return process.memory_info().rss

    settled = cycle(10)
    # One engine holds over 8 MB of weights: keeping even a few of fifty would show.
    assert cycle(50) - settled < 24e6


def test_import_is_cheap():
    code = "import torch, time; t = time.perf_counter(); import torchkiln; print(time.perf_counter() - t)"
    times_s = (float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(3))
    assert any(time_s < 0.3 for time_s in times_s)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 3


def test_custom_operator_runs_in_pytorch_inside_the_engine(tmp_path):
    @torch.library.custom_op("torchkiln_test::triple", mutates_args=())
    def triple(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    @triple.register_fake
    def _(x):
        return torch.empty_like(x)

    class WithCustom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = torch.tanh(torch.relu(self.a(x)) + 1).sigmoid()
            return self.b(torch.ops.torchkiln_test.triple(x)).relu().tanh().sigmoid() * 2

    model = WithCustom().eval()
    x = torch.randn(3, 8)
    engine = torchkiln.compile(model, [x], backend="openvino", min_block_size=2)
    assert [s.backend for s in engine.report().segments] == ["openvino", "torch", "openvino"]
    torch.testing.assert_close(engine(x), model(x))
    engine.save(tmp_path / "m.kiln")
    torch.testing.assert_close(torchkiln.load(tmp_path / "m.kiln")(x), model(x))


class Detect(nn.Module):
    """NMS-like: boxes kept depend on the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5), nn.Sigmoid())

    def forward(self, features):
        from torchvision.ops import nms

        found = self.backbone(features)
        corner = found[:, :2]
        boxes = torch.cat([corner, corner + found[:, 2:4]], 1)
        kept = nms(boxes, found[:, 4], 0.3)
        confident = torch.nonzero(found[:, 4] > 0.5).squeeze(1)
        return boxes[kept] * 2, found[confident].sum(0), kept


def test_data_dependent_shapes(tmp_path):
    torch.manual_seed(0)
    model = Detect().eval()
    engine = torchkiln.compile(model, [torch.randn(40, 6)], backend="openvino", min_block_size=1)
    assert any("depends on the data" in r.reason for r in engine.report().rejects)
    engine.save(tmp_path / "m.kiln")
    loaded = torchkiln.load(tmp_path / "m.kiln")
    for scale in (0.0, 0.1, 1.0, 5.0):
        x = torch.randn(40, 6) * scale
        for got, expected in zip(loaded(x), model(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
