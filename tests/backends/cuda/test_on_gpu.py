"""The CUDA backend on a real GPU: precisions, files, batch sizes, the timing cache, candidates that crash."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.test_plan import MODELS

import torchkiln
from torchkiln.errors import TargetMismatch
from torchkiln.fp32_math import fp32_math

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))


def build(name, precision=torch.float16, inputs=None, **options):
    torch.manual_seed(0)
    make, shapes = MODELS[name]
    model = make().eval().cuda()
    inputs = inputs or [torch.randn(shape, device="cuda") for shape in shapes]
    engine = torchkiln.compile(model, inputs, enabled_precisions={precision}, backend="cuda", **{"optimization_level": 0, **options})
    return model, engine


def error(got, right):
    return ((got.double() - right.double()).norm() / right.double().norm()).item()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, precision):
    model, engine = build(name, precision, disable_tf32=True)
    assert engine.report().backend == "cuda"
    inputs = [torch.randn(shape, device="cuda") for shape in MODELS[name][1]]
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 2e-5}[precision]
    with torch.no_grad(), fp32_math("ieee"):
        for got, right in zip(torch.utils._pytree.tree_leaves(engine(*inputs)), torch.utils._pytree.tree_leaves(model(*inputs)), strict=True):
            assert error(got, right) < tolerance


def test_file_runs_as_built(tmp_path):
    _, engine = build("residual", optimization_level=1)
    path = tmp_path / "e.kiln"
    engine.save(path)
    loaded = torchkiln.load(path, trusted=True)
    x = torch.randn(MODELS["residual"][1][0], device="cuda")
    assert torch.equal(loaded(x), engine(x))


def test_same_cache_same_choices(tmp_path):
    plans = [build("gated", optimization_level=1)[1].runners[0].bundle.plans[0] for _ in range(2)]
    assert [(i.tactic, i.config, i.median_us) for i in plans[0].infos] == [(i.tactic, i.config, i.median_us) for i in plans[1].infos]


def test_batches_between_buckets():
    model, engine = build("residual", inputs=[torchkiln.Input(min_shape=(1, 3, 29, 31), opt_shape=(2, 3, 29, 31), max_shape=(5, 3, 29, 31))])
    assert engine.runners[0].batch_buckets == (1, 2, 4, 5)
    for batch in (1, 2, 3, 4, 5, 3):
        x = torch.randn(batch, 3, 29, 31, device="cuda")
        with torch.no_grad():
            assert error(engine(x), model(x)) < 5e-3


def test_a_candidate_that_crashes_is_out():
    from torchkiln.backends.cuda.measure import Job
    from torchkiln.backends.cuda.recipe import Kernel, Launch, Recipe, Ref, TensorSpec, TorchCall
    from torchkiln.backends.cuda.worker_pool import WorkerPool, compiled_of

    spec = TensorSpec.contiguous((1024,), torch.float32)
    text = "import triton\nimport triton.language as tl\n\n\ndef copy(x, y, FAR: tl.constexpr):\n    i = tl.arange(0, 1024)\n"
    text += "    tl.store(y + i + FAR, tl.load(x + i))\n"
    recipes, capability = [], torch.cuda.get_device_capability()
    with WorkerPool(capability[0] * 10 + capability[1], 0) as pool:
        for far in (2**40, 0):
            kernel = Kernel("copy", (torch.float32, torch.float32), (("FAR", far),), source=text)
            recipes.append(Recipe((Launch(kernel, (1, 1, 1), ("x0", "y0")),)))
        codes, why = compiled_of([(r.launches[0].kernel, pool.compile(r.launches[0].kernel)) for r in recipes])
        assert not why
        reference = Recipe((TorchCall("aten.clone.default", (Ref("x0"),)),))
        outcomes = pool.measure(Job((spec,), (spec,), "ieee", reference, tuple(recipes), codes))
    assert outcomes[0].median_us is None
    assert outcomes[1].median_us > 0


def test_another_kind_of_gpu_is_refused():
    from torchkiln.backends.cuda.runtime import check_target

    with pytest.raises(TargetMismatch, match=r"compute capability 7\.5"):
        check_target({"compute_capability": "7.5", "gpu": "T4"}, torch.device("cuda"))
