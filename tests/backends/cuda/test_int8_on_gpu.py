"""int8 engines on a real GPU."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.int8_models import EVERYTHING, Bottlenecks, Joined
from tests.quantize.digits import Vit

import torchkiln
from torchkiln.errors import UserError
from torchkiln.ptq import DataLoaderCalibrator, QuantizeOptions

pytestmark = pytest.mark.cuda

MODELS = {"bottlenecks": (Bottlenecks, (4, 3, 61, 59)), "joined": (Joined, (2, 16, 24, 20)), "transformer": (Vit, (4, 1, 8, 8))}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))


def data(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def build(name, precisions, inputs=None, options=EVERYTHING, level=0):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval().cuda()
    calibrator = DataLoaderCalibrator([data(shape, seed) for seed in range(3)], algorithm="max", options=options)
    engine = torchkiln.compile(
        model, inputs or [data(shape)], enabled_precisions=precisions, backend="cuda", calibrator=calibrator, optimization_level=level
    )
    return model, engine


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def error(got, right):
    return ((got.double() - right.double()).norm() / right.double().norm()).item()


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, precision):
    precisions = {torch.int8} if precision is torch.float32 else {torch.int8, precision}
    model, engine = build(name, precisions)
    candidates = {candidate.name: candidate.status for candidate in engine.report().candidates}
    label = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[precision]
    assert candidates[f"cuda int8+{label}"] in ("kept", "slower")
    x = data(MODELS[name][1], 9)
    with torch.no_grad():
        for got, right in zip(leaves(engine(x)), leaves(model(x)), strict=True):
            assert error(got, right) < 0.1


def test_layers_run_by_int8_kernels(tmp_path):
    _, engine = build("bottlenecks", {torch.int8}, level=1)
    (segment,) = engine.contents.segments
    assert segment.artifact.metadata["int8_layers"] in ((9, 9), [9, 9])
    assert "segment_0: cuda runs 9 of 9 convolutions and matrix products by int8 kernels" in engine.report().notes
    path = tmp_path / "e.kiln"
    engine.save(path)
    loaded, x = torchkiln.load(path, trusted=True), data(MODELS["bottlenecks"][1], 9)
    assert torch.equal(loaded(x), engine(x))


def test_what_is_refused_is_in_the_report():
    _, engine = build("joined", {torch.int8})
    assert any("though the graph has it in int8" in note and "a convolution in 2 groups" in note for note in engine.report().notes)


def test_the_same_integers_as_the_graph_in_pytorch():
    torch.manual_seed(0)
    make, shape = MODELS["bottlenecks"]
    model, x = make().eval().cuda(), data(MODELS["bottlenecks"][1], 9)
    found = {}
    for backend in ("cuda", "torch"):
        calibrator = DataLoaderCalibrator([data(shape, seed) for seed in range(3)], algorithm="max", options=EVERYTHING)
        engine = torchkiln.compile(model, [data(shape)], enabled_precisions={torch.int8}, backend=backend, calibrator=calibrator)
        found[backend] = engine(x)
    assert error(found["cuda"], found["torch"]) < 5e-3


def test_batches_between_buckets():
    shape = MODELS["bottlenecks"][1]
    ranged = torchkiln.Input(min_shape=(1, *shape[1:]), opt_shape=shape, max_shape=(5, *shape[1:]))
    model, engine = build("bottlenecks", {torch.int8}, inputs=[ranged], options=QuantizeOptions())
    for batch in (1, 2, 3, 5):
        x = data((batch, *shape[1:]), batch)
        with torch.no_grad():
            assert error(engine(x), model(x)) < 0.1


def test_int8_without_ranges_is_an_error():
    with pytest.raises(UserError, match="int8 needs the range"):
        torchkiln.compile(Bottlenecks().eval().cuda(), [data((1, 3, 32, 32))], enabled_precisions={torch.int8}, backend="cuda")
