"""sparse_weights=True in the report: a line for each layer, whatever backend is kept, and the same in the file."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchkiln
from torchkiln.cli.app import app
from torchkiln.engine.report import Report, SparseLayerReport
from torchkiln.errors import CorruptEngineFile, UserError
from torchkiln.race.describe_sparse import _from_backend

X = torch.randn(2, 16, 4, 4)


class Net(nn.Module):
    """2:4 in a convolution with a batch norm behind it, a transposed convolution, a matrix [in, out]; not in ``dense``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 32, 2, 2)
        self.matrix, self.dense = nn.Parameter(torch.randn(32, 16)), nn.Linear(16, 16)
        self.product = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        x = torch.tanh(self.dense(torch.tanh(x @ self.matrix)))
        return torch.tanh(self.product(x)) + x


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = torchkiln.sparsify(Net().eval(), stem=True, head=True, skip="dense")
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 2)
        net.up.weight[::2] = 0  # [in, out, ...]
        net.matrix[1::2] = 0
    return net


LAYERS = ["conv", "up", "matmul", "dense", "product"]


def layers_of(engine):
    return engine.report().sparse_layers


def test_a_cpu_says_that_and_why_it_is_dense(net, made_backend, tmp_path):
    made_backend()
    engine = torchkiln.compile(net, [X], sparse_weights=True, require_full_compilation=True)  # nothing to race against
    rows = layers_of(engine)
    assert [row.layer for row in rows] == LAYERS
    assert [row.outcome for row in rows] == ["not supported", "not supported", "not supported", "no pattern", "not supported"]
    assert {row.backend for row in rows} == {"openvino"}
    assert "sparsify" in rows[3].reason
    assert all(row.reason == "OpenVINO multiplies it dense: CPUs have no 2:4 instructions" for row in rows if row.outcome == "not supported")
    assert "sparse_weights: not read by openvino, the backend that was kept" in engine.report().notes
    text = str(engine.report())
    assert "2:4 weights: used in 0 of 5 layers, 1 without the pattern" in text
    assert "multiplies it dense" in text
    engine.save(tmp_path / "e.kiln")
    assert layers_of(torchkiln.load(tmp_path / "e.kiln")) == rows
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "e.kiln")])
    assert "2:4 weights: used in 0 of 5 layers" in shown.output
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "e.kiln"), "--json"]).output)
    assert [row["outcome"] for row in facts["targets"][0]["report"]["sparse_layers"]] == [row.outcome for row in rows]


def test_not_asked_for_it_is_not_looked_at(net):
    report = torchkiln.compile(net, [X], backend="torch").report()
    assert report.sparse_layers == []
    assert "2:4" not in str(report)


def test_a_backend_that_cannot_read_it_refuses_it(net):
    with pytest.raises(UserError, match=r"sparse_weights: backend 'openvino' does not read this option \(cuda, tensorrt"):
        torchkiln.compile(net, [X], backend="openvino", sparse_weights=True)


def test_tensorrt_chooses_for_itself(net, made_backend):
    made_backend("tensorrt")
    rows = layers_of(torchkiln.compile(net, [X], backend="tensorrt", sparse_weights=True))
    assert [row.outcome for row in rows] == ["left to the library"] * 3 + ["no pattern", "left to the library"]


def test_what_the_cuda_backend_says_comes_under_the_modules_names(net, made_backend):
    made = made_backend("cuda")
    build = made.build

    def build_and_say(segment, candidate, settings):
        artifact = build(segment, candidate, settings)
        constants = [
            str(n.args[1].target) for n in segment.graph_module.graph.nodes if n.op == "call_function" and str(n.target) == "aten.linear.default"
        ]
        assert len(constants) == 2
        row = {"label": "linear_7", "outcome": "used", "tactic": "cusparselt", "sparse_us": 3.25, "dense_us": 4.5, "reason": ""}
        artifact.metadata["sparse_layers"] = [
            {**row, "weight": f"{constants[0]}_low"},
            {**row, "weight": f"{constants[1]}_transposed_1_low_2", "outcome": "slower", "tactic": "cublas", "dense_us": 2.0},
            {**row, "weight": "joined", "label": "attention_1", "outcome": "not supported", "sparse_us": None, "reason": "fused [away]"},
        ]
        return artifact

    made.build = build_and_say
    report = torchkiln.compile(net, [X], backend="cuda", sparse_weights=True).report()
    assert report.sparse_layers == [
        SparseLayerReport("dense", "cuda", "used", "cusparselt", 3.25, 4.5),
        SparseLayerReport("product", "cuda", "slower", "cublas", 3.25, 2.0),
        SparseLayerReport("attention_1", "cuda", "not supported", "cusparselt", None, 4.5, "fused [away]"),
    ]
    text = str(report)
    assert "2:4 weights: used in 1 of 3 layers, 0 without the pattern" in text
    assert "2:4 us ┃ dense us" in text
    for cells in (
        ("dense", "cuda", "used", "cusparselt", "3.25", "4.50"),
        ("product", "cuda", "slower", "cublas", "3.25", "2.00"),
        ("fused [away]",),
    ):
        assert any(all(cell in line for cell in cells) for line in text.splitlines())
    assert Report.from_json(json.loads(json.dumps(report.as_json()))) == report


def test_layers_that_share_a_weight_keep_their_names():
    row = {"label": "linear_7", "weight": "w_low", "outcome": "used", "tactic": "cusparselt", "sparse_us": 3.25, "dense_us": 4.5, "reason": ""}
    names = {"w": ["up", "up#2"]}
    assert [_from_backend(row, names, "cuda").layer for _ in range(2)] == ["up", "up#2"]


@pytest.mark.parametrize(
    "rows", [3, ["used"], [{"layer": 3, "backend": "cuda", "outcome": "used"}], [{"layer": "conv"}], [{"layer": "a", "sparse_us": "3"}]]
)
def test_a_damaged_report_is_refused(rows):
    good = Report("m", "cpu", "torch", "fp32", ["fp32"]).as_json()
    with pytest.raises(CorruptEngineFile):
        Report.from_json({**good, "sparse_layers": rows})


def test_a_report_without_the_field_is_read():
    good = Report("m", "cpu", "torch", "fp32", ["fp32"]).as_json()
    del good["sparse_layers"]
    assert Report.from_json(good).sparse_layers == []


def test_int8_layers_are_listed(backend_table):
    """Their weights are behind a dequantize."""
    for name in list(backend_table):
        if name != "torch":
            del backend_table[name]
    torch.manual_seed(0)
    model = torchkiln.sparsify(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval())
    calibrator = torchkiln.ptq.DataLoaderCalibrator([X])
    engine = torchkiln.compile(model, [X], enabled_precisions={torch.int8}, calibrator=calibrator, sparse_weights=True)
    assert engine.report().precision == "int8+fp32"
    rows = layers_of(engine)
    assert [(row.layer, row.outcome) for row in rows] == [("0", "no pattern"), ("2", "not supported"), ("4", "no pattern")]
