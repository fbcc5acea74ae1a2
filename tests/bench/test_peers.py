"""Every peer that this machine has: right numbers at each precision, or a refusal with a reason."""

import pytest
import torch
from torch import nn

from torchkiln import Input
from torchkiln.bench import BenchmarkModel, BenchmarkRequest
from torchkiln.bench.case import make_cases
from torchkiln.bench.peers import INT8_PEERS, PEERS, PRESETS, Refused, choose_peers
from torchkiln.bench.peers.compiled import own_forward
from torchkiln.bench.peers.contract import refuse_missing
from torchkiln.errors import UnknownOption
from torchkiln.verify.parity import compare
from torchkiln.verify.tolerance import TOLERANCES

from .fakes import small_model

#: max-autotune is torch.compile with another mode; benchmarking its templates takes too long for a test.
QUICK = [name for name in PEERS if name != "compile-max-autotune" and name not in INT8_PEERS]


def make_case(model=None, inputs=None, **values):
    entry = BenchmarkModel("net", model or small_model(), inputs or [Input((2, 3, 9, 11))])
    (case,) = make_cases(BenchmarkRequest(models=[entry], **values), entry)
    case.compute_references()
    return case


def build(name, case, precision=torch.float32):
    """The runner, or a skip with the refusal's reason."""
    peer = PEERS[name]
    refusal = peer.refuse(case, precision)
    if refusal is not None:
        assert refusal.status in ("missing", "skipped")
        assert refusal.reason
        pytest.skip(refusal.reason)
    try:
        with torch.no_grad():
            return peer.build(case, precision)
    except Refused as refused:
        pytest.skip(refused.refusal.reason)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", QUICK)
def test_outputs_agree_with_the_source_model_on_every_input_set(name, precision):
    case = make_case(input_count=2)
    runner = build(name, case, precision)
    with torch.inference_mode():
        # There and back again: a runner that keeps the last input or output would be caught.
        for index in (0, 1, 0):
            outputs = runner.tensors(runner.call(*runner.input_sets[index]))
            assert compare(outputs, case.references[index]).relative_error < TOLERANCES[precision]


@pytest.mark.parametrize("name", sorted(INT8_PEERS))
def test_int8_peers_are_calibrated_and_near_the_source_model(name):
    case = make_case(precisions=[torch.int8], calibration_count=3)
    assert len(case.calibration_sets) == 3
    runner = build(name, case, torch.int8)
    assert "NNCF" in runner.options
    with torch.inference_mode():
        error = compare(runner.tensors(runner.call(*runner.input_sets[0])), case.references[0]).relative_error
    assert 1e-4 < error < TOLERANCES[torch.int8]  # not the float model under another name


class DictOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(13, 7)

    def forward(self, x, index):
        y = self.linear(x)
        return {"first": y.relu(), "second": (y[index], index * 2)}


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_several_inputs_and_nested_outputs(name):
    case = make_case(DictOutput(), [Input((5, 13)), Input((3,), dtype=torch.int64)])
    runner = build(name, case)
    with torch.inference_mode():
        assert compare(runner.tensors(runner.call(*runner.input_sets[0])), case.references[0]).relative_error < 1e-4


def test_channels_last_is_what_it_says():
    case = make_case()
    runner = build("eager-channels-last", case)
    assert runner.input_sets[0][0].is_contiguous(memory_format=torch.channels_last)
    assert runner.call[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert PEERS["eager-channels-last"].refuse(make_case(nn.Linear(13, 7), [Input((5, 13))]), torch.float32).status == "skipped"


def test_torchscript_falls_back_to_the_frozen_module_when_the_optimizing_pass_breaks_it():
    # oneDNN has no adaptive pooling to a size that does not divide the input; the pass uses it all the same.
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.AdaptiveAvgPool2d(3)).eval()
    case = make_case(model, [Input((2, 3, 33, 31))])
    runner = build("torchscript-traced", case)
    assert runner.options == "frozen (optimize_for_inference fails on this model)"
    with torch.inference_mode():
        assert compare(runner.tensors(runner.call(*runner.input_sets[0])), case.references[0]).relative_error < 1e-4


def test_torchscript_takes_a_scripted_model():
    case = make_case(torch.jit.script(small_model()))
    runner = build("torchscript-scripted", case)
    with torch.inference_mode():
        assert compare(runner.tensors(runner.call(*runner.input_sets[0])), case.references[0]).relative_error < 1e-4


def test_compiled_runners_have_code_objects_of_their_own():
    first, second = own_forward(nn.Linear(3, 5)), own_forward(nn.Linear(3, 7))
    assert first.__code__ is not second.__code__
    assert first(torch.ones(2, 3)).shape == (2, 5)
    assert second(torch.ones(2, 3)).shape == (2, 7)


def test_what_needs_cuda_says_so_on_the_cpu():
    case = make_case()
    for name in ("cuda-graph", "cuda-graph-channels-last", "compile-reduce-overhead"):
        refusal = PEERS[name].refuse(case, torch.float32)
        assert (refusal.status, "CUDA" in refusal.reason) == ("skipped", True)


def test_a_missing_package_names_the_extra(monkeypatch):
    assert refuse_missing("torch", "onnx") is None
    refusal = refuse_missing("no_such_package", "onnx")
    assert refusal.status == "missing"
    assert refusal.reason == 'no_such_package is not installed: pip install "torchkiln[onnx]"'
    monkeypatch.setattr("torchkiln.bench.peers.contract.find_spec", lambda name: None)
    case = make_case()
    assert PEERS["onnxruntime"].refuse(case, torch.float32).status == "missing"
    assert PEERS["openvino"].refuse(case, torch.float32).status == "missing"


def test_choosing_peers():
    assert [p.name for p in choose_peers("all")] == list(PEERS)
    assert [p.name for p in choose_peers("seed")] == ["eager", "torchscript-traced", "torchscript-scripted"]
    assert choose_peers("none") == []
    assert [p.name for p in choose_peers(["openvino", "seed", "eager"])] == [*PRESETS["seed"], "openvino"]
    with pytest.raises(UnknownOption, match="Did you mean 'openvino'"):
        choose_peers(["openvno"])
    assert all(name == peer.name for name, peer in PEERS.items())
    assert next(reversed(PEERS.values())).slow_build
