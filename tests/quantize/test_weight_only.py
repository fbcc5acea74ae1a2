"""Weights in 8 and 4 bits: their numbers, which layers have them, sizes, kernels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchkiln
from torchkiln.backends.openvino.quantized import is_constant, is_part_of_constant
from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.errors import BackendUnavailable, ParityFailed, UserError
from torchkiln.lower.pipeline import lower
from torchkiln.progress import report_progress
from torchkiln.ptq import DataLoaderCalibrator
from torchkiln.quantize.compress_weights import compress_weights
from torchkiln.quantize.round_weight import pack_int4, round_to_int4

IDS = torch.arange(14).view(2, 7) * 13
OPENVINO = {"backend": "openvino"}


class Net(nn.Module):
    """An embedding table, linear layers, a product in each of its spellings, and layers that stay floating."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 256)
        self.widen, self.narrow = nn.Linear(256, 384), nn.Linear(384, 256, bias=False)
        self.bias, self.product = nn.Parameter(torch.randn(256)), nn.Parameter(torch.randn(256, 256) / 16)
        self.odd, self.small, self.head = nn.Linear(256, 130), nn.Linear(130, 256), nn.Linear(256, 200)
        self.small.weight = nn.Parameter(self.small.weight.detach() * 3)
        self.tiny = nn.Linear(256, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        x = x + self.narrow(F.gelu(self.widen(x)))
        x = torch.addmm(self.bias, x.flatten(0, 1), self.product).view(x.shape)
        x = x @ self.product + self.small(F.gelu(self.odd(x))) + self.tiny(x).sum(-1, keepdim=True)
        return self.head(F.gelu(x))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def engines(net):
    return {p: torchkiln.compile(net, [IDS], weight_precision=p, **OPENVINO) for p in ("int8", "int4")}


@pytest.fixture(scope="module")
def rounded_programs(net):
    return {p: compress_weights(program_of(net, IDS), p, 128) for p in ("int8", "int4")}


def program_of(model: nn.Module, *inputs: torch.Tensor):
    program = capture(model.eval(), read_arguments(list(inputs), None, torch.device("cpu"), 0))
    lower(program)
    return program


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def rounded(weight: torch.Tensor, group: int) -> torch.Tensor:
    integers, scales = round_to_int4(weight, group)
    assert integers.dtype is torch.int8
    assert (integers.min() >= -8, integers.max() <= 7) == (True, True)
    return (integers.unflatten(1, (-1, group)) * scales[..., None]).flatten(1)


@pytest.mark.parametrize("group", [16, 32, 128])
def test_a_scale_for_each_group_and_the_best_of_several(group):
    weight = torch.randn(37, 256, generator=torch.Generator().manual_seed(group))
    weight[3, :group] = 0
    weight[4] *= 1000
    found = rounded(weight, group)
    assert (found[3, :group] == 0).all()
    groups = weight.unflatten(1, (-1, group))
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7
    nearest = ((groups / scales).round() * scales).flatten(1)
    for row in range(len(weight)):
        assert (found[row] - weight[row]).norm() <= (nearest[row] - weight[row]).norm() * 1.0001
    assert relative_error(found[5:], weight[5:]) < 0.9 * relative_error(nearest[5:], weight[5:])


def test_two_integers_in_a_byte():
    integers = torch.randint(-8, 8, (5, 32), dtype=torch.int8)
    packed = pack_int4(integers)
    assert packed.shape == (5, 16)
    assert torch.equal(torch.stack([packed << 4 >> 4, packed >> 4], -1).flatten(1), integers)


def test_which_layers_and_why_not_the_others(net, rounded_programs):
    found = rounded_programs
    assert found["int8"].notes[0] == "weights: 8 of 9 layers in int8; in floating point: 1 its weight has fewer than 32768 elements: tiny"
    note = found["int4"].notes[0]
    assert note.startswith("weights: 5 of 9 layers in int4 by groups of 128, 3 of 9 layers in int8 (")
    assert "an embedding table: words" in note
    assert "rows of 130 are no multiple of the group of 128: small" in note
    assert "the head: it gives the model's output: head" in note
    with torch.no_grad():
        expected = net(IDS)
        errors = [relative_error(found[p].program.graph_module(IDS)[0], expected) for p in ("int8", "int4")]
    assert 1e-3 < errors[0] < 0.02 < errors[1] < 0.2


def test_a_weight_read_twice_is_stored_once(rounded_programs):
    graph_module = rounded_programs["int4"].program.graph_module
    names = [n.target for n in graph_module.graph.find_nodes(op="get_attr")]
    assert names.count("product_int4") == 1
    assert "product" not in names


def test_conv_and_shared_weights_stay_floating():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.other = nn.Conv2d(64, 64, 3), nn.Linear(256, 256), nn.Linear(256, 256)

        def forward(self, x, y):
            return self.conv(x), self.linear(y) + (y.unsqueeze(1) * self.linear.weight).sum(-1), self.other(y).relu()

    note = compress_weights(program_of(Shared(), torch.randn(1, 64, 5, 5), torch.randn(3, 256)), "int8", 128).notes[0]
    assert note.startswith("weights: 1 of 3 layers in int8; in floating point: ")
    assert "a convolution: its weights are few for its work: conv" in note
    assert "its weight is read in floating point too: linear" in note


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_openvino_reads_the_integers_in_its_kernels(engines, rounded_programs, precision):
    report, (segment,) = engines[precision].report(), engines[precision].contents.segments
    kind = {"int8": "w8", "int4": "w4"}[precision]
    assert report.precision == segment.precision == f"{kind}+fp32"
    assert segment.artifact.metadata["weight_layers"] == (8 - 1, 8), "all products but the tiny one, which is no weight of few bits"
    products = [layer["dtype"] for layer in segment.artifact.metadata["layers"] if layer["type"] == "FullyConnected"]
    assert products.count("w4+fp32") == (5 if precision == "int4" else 0)
    exact = rounded_programs[precision].program.graph_module(IDS)[0]
    assert relative_error(engines[precision](IDS), exact) < 1e-5, "activations are not rounded"
    assert 1e-3 < report.parity.relative_error < report.parity.tolerance
    assert report.parity.tolerance == {"int8": 5e-2, "int4": 0.4}[precision]


def test_files_are_as_small_as_promised(net, engines, tmp_path):
    floats = sum(p.numel() * 4 for p in net.parameters())
    sizes = {}
    for precision, engine in engines.items():
        engine.save(tmp_path / precision)
        sizes[precision] = (tmp_path / precision).stat().st_size
        again = torchkiln.load(tmp_path / precision)
        assert torch.equal(again(IDS), engine(IDS))
        assert any(note.startswith("weights: the engine holds 0.") for note in again.report().notes)
    assert sizes["int8"] < floats / 4 + 120_000, "a quarter, the floating layer, biases and the graph"
    packed = sum(m.weight.numel() for m in (net.widen, net.narrow, net.odd)) + net.product.numel()
    assert sizes["int8"] - sizes["int4"] > packed * 0.4, "half a byte less for each weight in 4 bits, but for scales"


def test_the_same_numbers_in_pytorch(net, engines, tmp_path):
    seen = []
    with report_progress(lambda *step: seen.append(step)):
        engine = torchkiln.compile(net, [IDS], weight_precision="int4", backend="torch")
    assert ("compress weights", 8, 8) in seen
    assert relative_error(engine(IDS), engines["int4"](IDS)) < 1e-5
    engine.save(tmp_path / "m.kiln")
    assert (tmp_path / "m.kiln").stat().st_size < 0.25 * sum(p.numel() * 4 for p in net.parameters())
    assert any("torch makes them floating in each call" in note for note in engine.report().notes)


def test_a_dynamic_batch_in_low_precision(net):
    ids = torchkiln.Input(min_shape=(1, 7), opt_shape=(2, 7), max_shape=(5, 7), dtype=torch.int64, tensor_domain=(0, 200))
    engine = torchkiln.compile(net, [ids], weight_precision="int4", enabled_precisions={torch.bfloat16}, **OPENVINO)
    assert {c.name.split(" ")[1] for c in engine.report().candidates} <= {"w4+fp32", "w4+bf16"}
    for size in (1, 5):
        x = torch.randint(0, 200, (size, 7))
        assert relative_error(engine(x), net(x).detach()) < 0.2


def test_int8_beside_it_allows_activations_to_be_rounded(net):
    engine = torchkiln.compile(net, [IDS], weight_precision="int8", enabled_precisions={torch.int8}, **OPENVINO)
    (segment,) = engine.contents.segments
    rounds = segment.artifact.metadata["rounds_activations"]
    assert any("rounds activations" in note for note in engine.report().notes) is rounds
    assert engine.report().parity.relative_error < 0.03


def test_what_a_backend_computes_is_checked_apart_from_the_rounding(net, monkeypatch):
    import torchkiln.backends.openvino.pack_int4 as packing

    right = packing._nibbles
    monkeypatch.setattr(packing, "_nibbles", lambda values: right(values) ^ (np.arange(values.size // 2) % 8 == 0))
    with pytest.raises(ParityFailed, match="from the graph with these weights in PyTorch: relative error"):
        torchkiln.compile(net, [IDS], weight_precision="int4", **OPENVINO)


@pytest.mark.parametrize("backend", ["onnxruntime", "inductor", "tensorrt", "cuda"])
def test_other_backends_refuse_by_name(net, backend):
    with pytest.raises(BackendUnavailable, match=f"backend '{backend}': weight_precision: "):
        torchkiln.compile(net, [IDS], weight_precision="int8", backend=backend)


def test_auto_lists_who_refused(net):
    report = torchkiln.compile(net, [IDS], weight_precision="int8", dryrun=True)
    assert report.precision == "w8+fp32"
    assert {r.backend for r in report.rejects if r.subject == "int8 weights"} >= {"onnxruntime", "inductor"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_precision": "int3"}, "weight_precision: expected 'int8', 'int4' or None, got 'int3'"),
        ({"weight_precision": "int4", "weight_group_size": 100}, "expected one of 16, 32, 64, 128, 256, got 100"),
        ({"weight_precision": "int8", "weight_group_size": 64}, "it is for int4 weights"),
        (
            {"weight_precision": "int8", "enabled_precisions": {torch.int8}, "calibrator": DataLoaderCalibrator([IDS])},
            "weights in 8 bits already",
        ),
    ],
)
def test_options_that_make_no_sense(net, options, words):
    with pytest.raises(UserError, match=words):
        torchkiln.compile(net, [IDS], **options)


def test_nothing_to_compress_is_an_error():
    with pytest.raises(UserError, match=r"no weight of the model can be compressed.*fewer than 32768 elements"):
        compress_weights(program_of(nn.Linear(8, 8), torch.randn(2, 8)), "int8", 128)


@pytest.mark.parametrize("way", ["int8", "int3", "int4 by channel", "by channel"])
def test_models_that_torchao_quantized(way):
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.quantization.granularity import PerAxis, PerGroup

    configs = {
        "int8": lambda: quantization.Int8WeightOnlyConfig(),
        "int3": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32)),
        "int4 by channel": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)),
        "by channel": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 192), nn.GELU(), nn.Linear(192, 64)).eval()
    quantization.quantize_(model, configs[way]())
    x = torch.randn(5, 128)
    engine = torchkiln.compile(model, [x], **OPENVINO)
    kind = "w4+fp32" if way in ("int3", "int4 by channel") else "w8+fp32"
    assert engine.report().precision == kind
    assert "weights: the model's own, kept as integers in 2 of 2 layers" in engine.report().notes
    layers = engine.contents.segments[0].artifact.metadata["layers"]
    assert [layer["dtype"] for layer in layers if layer["type"] == "FullyConnected"] == [kind, kind]
    assert relative_error(engine(x), model(x).detach()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_a_product_of_integers_beyond_float32_keeps_its_numbers(dtype):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("integers", torch.arange(128, dtype=torch.int8).view(16, 8))
            self.register_buffer("scales", torch.arange(16).to(dtype) * 1234567 + 0.3 if dtype is torch.float64 else torch.arange(16).int() * 1234567)

        def forward(self, x):
            return x.mm(self.integers.t().to(dtype)) * self.scales

    x, model = torch.arange(24).view(3, 8).to(dtype), Scaled()
    assert torch.equal(program_of(model, x).graph_module(x)[0], model(x))


def test_constants_are_told_apart_in_graphs_deeper_than_the_stack():
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    for _ in range(2000):
        node = graph.call_function(torch.ops.aten.neg.default, (node,))
        node.meta["val"] = torch.zeros(2, dtype=torch.int32)
    graph.output(node)
    assert not is_constant(node)
    assert not is_part_of_constant(next(iter(graph.nodes)).next)


@pytest.mark.parametrize(
    ("blocks", "computed", "words"),
    [
        ([2, 32], False, r"expected a matrix with a scale for each row, or for each group of a row, got blocks of \[2, 32\]"),
        ([1, 32], True, "expected a weight and scales that are constants, got computed ones"),
    ],
)
def test_forms_of_torchao_that_no_dequantize_says(blocks, computed, words):
    pytest.importorskip("torchao.quantization")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("integers", torch.ones(16, 64, dtype=torch.int8))
            self.register_buffer("scales", torch.rand(16 // blocks[0], 2))

        def forward(self, x):
            scales = self.scales * x.sum() if computed else self.scales
            return x @ torch.ops.torchao.dequantize_affine(self.integers, blocks, scales, None, torch.int8, -8, 7).t()

    with pytest.raises(UserError, match=words):
        torchkiln.compile(Odd().eval(), [torch.rand(3, 64)], backend="torch")


def test_a_layer_kept_in_float32_keeps_its_weight(net):
    report = torchkiln.compile(net, [IDS], weight_precision="int8", keep_float32={"widen"}, dryrun=True)
    assert any("1 kept in float32 (keep_float32): widen" in note for note in report.notes)
