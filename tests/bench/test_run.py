"""run_benchmark: every runner is a row, right ones and wrong ones, and what cannot be measured says why."""

import math
import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from torchkiln import Input
from torchkiln.bench import BenchmarkModel, BenchmarkRequest, run_benchmark
from torchkiln.bench import run as bench_run
from torchkiln.bench.case import make_cases
from torchkiln.bench.peers import PEERS
from torchkiln.bench.peers.contract import Refusal, Refused, Runner
from torchkiln.bench.peers.engine import compile_engine
from torchkiln.bench.results_file import as_json, from_json
from torchkiln.errors import BackendUnavailable, MissingPackage, UnknownOption, UserError
from torchkiln.fp32_math import SWITCHES

from .fakes import FakeEngine, build_exact, small_model

SHAPE = (2, 3, 9, 11)
QUICK = {"min_time_s": 1e-6, "min_samples": 4, "rounds": 2, "warm_up_s": 0.0, "pause_s": 0.0, "settle_s": 0.0, "peers": "none"}


def run(model=None, inputs=None, build_engine=build_exact, **values):
    entry = BenchmarkModel("net", model or small_model(), inputs or [Input(SHAPE)])
    return run_benchmark(BenchmarkRequest(**{"models": [entry], **QUICK, **values}), build_engine=build_engine)


def rows_by_key(result):
    return {(row.runner, row.precision): row for row in result.rows}


@dataclass
class MadePeer:
    """A peer that does what a test asks."""

    make: object
    name: str = "made"
    slow_build: bool = False
    refusal: Refusal | None = None

    def refuse(self, case, precision):
        return self.refusal

    def build(self, case, precision):
        return self.make(case, precision)


@pytest.fixture
def made_peer(monkeypatch):
    def put(make, **values):
        peer = MadePeer(make, **values)
        monkeypatch.setitem(PEERS, peer.name, peer)
        return [peer.name]

    return put


def test_a_row_for_each_runner_and_precision_with_all_figures():
    result = run(peers="seed", precisions=[torch.float32, torch.bfloat16])
    rows = rows_by_key(result)
    runners = ("eager", "torchscript-traced", "torchscript-scripted", "torchkiln")
    assert set(rows) == {(r, p) for r in runners for p in ("fp32", "bf16")} | {("torchkiln", "auto")}
    for row in result.rows:
        assert row.status == "ok", row.reason
        assert row.shape == "2x3x9x11"
        assert row.samples == 4
        assert 0 < row.latency_ms.min <= row.latency_ms.median <= row.latency_ms.max
        assert row.throughput_per_s == pytest.approx(2 / row.latency_ms.median * 1e3)
        assert row.build_s > 0
    assert result.settings["cudnn_benchmark"] is False
    assert [rows["torchkiln", p].chosen_precision for p in ("fp32", "auto")] == ["fp32", "fp32"]
    assert rows["eager", "fp32"].relative_error == 0
    assert 1e-5 < rows["eager", "bf16"].relative_error < 5e-2
    assert from_json(as_json(result)) == result


def test_int8_rows_are_the_engines_and_the_int8_peers():
    calibrated = []

    def build(case, precisions, options):
        calibrated.append((torch.int8 in precisions, len(case.calibration_sets)))
        return build_exact(case, precisions, options)

    result = run(build_engine=build, peers=["eager", "openvino-nncf"], precisions=[torch.float32, torch.int8], calibration_count=2)
    assert {(row.runner, row.precision) for row in result.rows} == {
        *(("eager", "fp32"), ("openvino-nncf", "int8")),
        *(("torchkiln", precision) for precision in ("fp32", "int8", "auto")),
    }
    assert calibrated == [(False, 2), (True, 2), (True, 2)]
    assert all(row.status == "ok" for row in result.rows), [row.reason for row in result.rows]


def test_the_engine_is_calibrated_on_the_models_own_data():
    batches = [(torch.full(SHAPE, 3.0),), (torch.full(SHAPE, -5.0),)]
    middle = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    entry = BenchmarkModel("net", middle, [Input(SHAPE)], calibration=batches)
    result = run(models=[entry], build_engine=compile_engine, precisions=[torch.int8], engine_options={"backend": "openvino"})
    (row,) = result.rows
    assert (row.status, row.precision, row.chosen_precision) == ("ok", "int8", "int8+fp32"), row.reason
    assert 1e-4 < row.relative_error < 0.25
    (case,) = make_cases(BenchmarkRequest(models=[entry], precisions=[torch.int8]), entry)
    assert [batch[0].amax() for batch in case.calibration_sets] == [3.0, -5.0]


def test_the_engine_may_use_each_precision_and_then_any():
    asked = []

    def build(case, precisions, options):
        asked.append((precisions, dict(options)))
        return FakeEngine(case.model)

    run(precisions=[torch.float32, torch.bfloat16], engine_options={"backend": "torch"}, build_engine=build)
    fp32, bf16 = torch.float32, torch.bfloat16
    assert asked == [(frozenset(p), {"backend": "torch"}) for p in ({fp32}, {bf16}, {fp32, bf16})]
    asked.clear()
    run(precisions=[bf16], build_engine=build)
    assert [precisions for precisions, _ in asked] == [{bf16}]


def test_figures_follow_the_runner(made_peer):
    # No arithmetic and the minimum of many calls: on a busy machine too, only the sleep can make the difference.
    slow = made_peer(lambda case, p: Runner(lambda x: (time.sleep(0.004), x)[1], case.input_sets))
    rows = rows_by_key(run(nn.Identity(), peers=slow, min_samples=20))
    assert rows["made", "fp32"].latency_ms.min >= 4
    assert rows["torchkiln", "fp32"].latency_ms.min < 1


def test_a_wrong_engine_is_measured_and_exposed():
    model = small_model()
    rows = rows_by_key(run(model, build_engine=lambda case, *_: FakeEngine(lambda x: case.model(x) * 1.5), peers=["eager"]))
    wrong = rows["torchkiln", "fp32"]
    assert wrong.status == "ok"
    assert wrong.relative_error == pytest.approx(0.5, rel=1e-5)
    assert wrong.within_tolerance is False
    assert any("inaccurate" in note for note in wrong.notes)
    assert rows["eager", "fp32"].within_tolerance is True


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_an_infinite_error(bad):
    (row,) = run(build_engine=lambda case, *_: FakeEngine(lambda x: case.model(x) * bad)).rows
    assert row.relative_error == math.inf
    assert row.within_tolerance is False
    assert any(note.startswith("wrong") for note in row.notes)


def test_an_engine_that_goes_wrong_after_some_calls_is_exposed():
    def build(case, precisions, options):
        def compute(x):
            return case.model(x) * (1.0 if engine.calls < 6 else 1.25)

        engine = FakeEngine(compute)
        return engine

    (row,) = run(build_engine=build).rows
    assert row.relative_error == pytest.approx(0.25, rel=1e-5)


def test_outputs_of_another_shape_or_number_fail():
    (row,) = run(build_engine=lambda case, *_: FakeEngine(lambda x: case.model(x)[:1])).rows
    assert (row.status, row.latency_ms) == ("failed", None)
    assert "expected shape (2, 5), got (1, 5)" in row.reason
    (row,) = run(build_engine=lambda case, *_: FakeEngine(lambda x: (case.model(x), x))).rows
    assert "expected 1 outputs" in row.reason


def fail(error):
    def make(case, precision):
        raise error

    return make


@pytest.mark.parametrize(
    ("make", "status", "reason"),
    [
        (fail(RuntimeError("no such\nkernel")), "failed", "RuntimeError: no such kernel"),
        (fail(MissingPackage("give me onnx: pip install torchkiln[onnx]")), "missing", "give me onnx: pip install torchkiln[onnx]"),
        (fail(Refused(Refusal("skipped", "computes in bf16"))), "skipped", "computes in bf16"),
        (lambda case, p: Runner(lambda x: 1 / 0, case.input_sets), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_peer_that_cannot_be_built_is_a_row(made_peer, make, status, reason):
    rows = rows_by_key(run(peers=made_peer(make)))
    assert (rows["made", "fp32"].status, rows["made", "fp32"].reason) == (status, reason)
    assert rows["made", "fp32"].latency_ms is None
    assert rows["torchkiln", "fp32"].status == "ok"


def test_a_refused_peer_is_a_row_and_is_not_built(made_peer):
    peers = made_peer(fail(AssertionError("built")), refusal=Refusal("missing", "pip install it"))
    assert rows_by_key(run(peers=peers))["made", "fp32"].status_text == "missing: pip install it"


def test_a_peer_that_fails_while_it_is_timed_is_a_row(made_peer):
    calls = []

    def call(x):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("worn out")
        return x

    row = rows_by_key(run(nn.Identity(), peers=made_peer(lambda case, p: Runner(call, case.input_sets))))["made", "fp32"]
    assert (row.status, row.reason, row.latency_ms, row.relative_error) == ("failed", "RuntimeError: worn out", None, None)


def test_a_build_over_the_limit_is_a_row(made_peer):
    peers = made_peer(lambda case, p: time.sleep(5))
    row = rows_by_key(run(peers=peers, max_build_s=0.1))["made", "fp32"]
    assert (row.status, row.reason) == ("timeout", "the build took longer than 0.1 s")
    assert 0.1 <= row.build_s < 4


def test_long_messages_keep_their_ends(made_peer):
    row = rows_by_key(run(peers=made_peer(fail(RuntimeError("first " + "x" * 2000 + " last")))))["made", "fp32"]
    assert len(row.reason) < 400
    assert row.reason.startswith("RuntimeError: first")
    assert row.reason.endswith("last")


def test_slow_builds_come_last(made_peer):
    result = run(peers=[*made_peer(lambda case, p: Runner(case.model, case.input_sets), slow_build=True), "eager"])
    assert [row.runner for row in result.rows] == ["eager", "torchkiln", "made"]


def test_a_sweep_measures_each_resolution():
    result = run(sweep_resolution=[8, 13], peers=["eager"])
    assert list(result.groups()) == [("net", "2x3x8x8", "cpu"), ("net", "2x3x13x13", "cpu")]
    assert all(row.status == "ok" for row in result.rows)


def test_an_engine_file_alone_has_a_row_and_no_errors():
    engine = FakeEngine(small_model())
    request = BenchmarkRequest(models=[BenchmarkModel("net.kiln", None, [Input(SHAPE)], engine=engine)], **{**QUICK, "peers": "seed"})
    rows = rows_by_key(run_benchmark(request))
    row = rows["torchkiln", "fp32"]
    assert (row.status, row.relative_error, row.build_s, row.within_tolerance) == ("ok", None, None, None)
    assert rows["eager", "fp32"].status == "skipped"
    assert "no source model" in rows["eager", "fp32"].reason


def test_a_ready_engine_is_compared_with_its_model():
    request = BenchmarkRequest(models=[BenchmarkModel("net", small_model(), [Input(SHAPE)], engine=FakeEngine(lambda x: x))], **QUICK)
    (row,) = run_benchmark(request).rows
    assert row.status == "failed"


def test_a_constant_reference_is_noted_in_the_rows():
    model = small_model()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    (row,) = run(model).rows
    assert any("constant" in note for note in row.notes)
    assert row.relative_error == 0


def test_inputs_rotate():
    seen = set()

    def build(case, *_):
        return FakeEngine(lambda x: (seen.add(x.data_ptr()), case.model(x))[1])

    run(build_engine=build, input_count=3)
    assert len(seen) == 3


def test_few_calls_are_noted():
    (row,) = run(build_engine=lambda case, *_: FakeEngine(case.model, delay_s=0.01), min_samples=50, max_time_s=0.02).rows
    assert row.samples < 50
    assert any("fewer than the 50 asked for" in note for note in row.notes)


def test_threads_and_models_are_as_before():
    model, threads = small_model().train(), torch.get_num_threads()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    used = []

    def build(case, *_):
        return FakeEngine(lambda x: (used.append(torch.get_num_threads()), case.model(x))[1])

    result = run(model, build_engine=build, num_threads=1, peers="seed")
    assert set(used) == {1}
    assert result.environment["num_threads"] == 1
    assert torch.get_num_threads() == threads
    assert model.training
    # The engine here calls the model itself, in training mode: batch norm's counters are the engine's doing, parameters must not move.
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_requests_that_cannot_be_carried_out():
    with pytest.raises(UnknownOption, match="Did you mean 'eager'"):
        run(peers=["eagre"])
    with pytest.raises(UserError, match="CUDA events"):
        run(clock="events")
    with pytest.raises(UserError, match="nothing to transfer"):
        run(transfers=True)
    with pytest.raises(UserError, match="computes float32 in full"):
        run(tf32=False)
    with pytest.raises(UserError, match="'disable_tf32' is set by the benchmark"):
        run(tf32=False, engine_options={"disable_tf32": True})
    with pytest.raises(UserError, match="expected cpu or cuda, got meta"):
        run(device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="no usable GPU"):
            run(device="cuda")


def test_how_products_of_float32_are_computed_is_for_every_runner(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_run, "_check_device", lambda device, request: None)

    def build(case, precisions, options):
        seen.append((options, [switch.fp32_precision for switch in SWITCHES]))
        return FakeEngine(lambda x: case.model(x))

    before = [switch.fp32_precision for switch in SWITCHES]
    for tf32 in (None, True, False):
        run(tf32=tf32, build_engine=build, peers="none", engine_options={"backend": "torch"})
    assert [options for options, _ in seen] == [{"backend": "torch"}] + [{"backend": "torch", "disable_tf32": disabled} for disabled in (False, True)]
    assert [math for _, math in seen] == [before, ["tf32"] * 3, ["ieee"] * 3]
    assert [switch.fp32_precision for switch in SWITCHES] == before
    with pytest.raises(UserError, match="ready engine computes as it was built"):
        BenchmarkRequest(models=[BenchmarkModel("net", None, [Input(SHAPE)], engine=FakeEngine(lambda x: x))], tf32=True)


def test_the_real_engine_is_the_default():
    request = BenchmarkRequest(models=[BenchmarkModel("net", small_model(), [Input(SHAPE)])], **QUICK, engine_options={"backend": "torch"})
    (row,) = run_benchmark(request).rows
    assert row.status == "ok", row.reason
    assert row.relative_error < 1e-5
    assert "torch" in row.options


@pytest.mark.cuda
def test_on_cuda_graphs_transfers_and_memory():
    everything = run(device="cuda", peers=["eager", "eager-channels-last", "cuda-graph", "cuda-graph-channels-last"], clock="host")
    for row in everything.rows:
        assert row.status == "ok", row.reason
        assert row.relative_error < 1e-2
        assert row.peak_memory_bytes is not None
    moved = run(device="cuda", peers=["eager", "cuda-graph"], transfers=True, input_count=2)
    assert all(row.status == "ok" and row.relative_error < 1e-2 for row in moved.rows)
    events = run(device="cuda", peers=["eager"], clock="events")
    assert all(row.latency_ms.min > 0 for row in events.rows)
