"""cuSPARSELt's products: recipes, refusals and whole plans on the CPU, the library itself on a GPU."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import CpuPlan, choose
from torch import nn

import torchkiln
from torchkiln.backends.cuda import cusparselt, runtime
from torchkiln.backends.cuda.assemble_plan import Codes, Constants, assemble_plan
from torchkiln.backends.cuda.compile_kernel import Compiled
from torchkiln.backends.cuda.mark_two_of_four import TWO_OF_FOUR, mark_two_of_four
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.plan import Bundle, decode_bundle, encode_bundle
from torchkiln.backends.cuda.recipe import Launch, TensorSpec, TorchCall
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.tactics import sparse
from torchkiln.backends.cuda.tactics.registry import Option, options_of
from torchkiln.backends.cuda.tactics.sparse import CuSparseLt
from torchkiln.backends.cuda.trace import trace
from torchkiln.backends.cuda.tuner import Choice
from torchkiln.errors import BuildFailed, TargetMismatch
from torchkiln.sparsity.pattern import choose_pruned

from .interpret import check
from .problems import conv_problem, linear_problem, nhwc

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 3e-3, BFLOAT: 2e-2}
SPARSE = CuSparseLt()
product = torch.ops.torchkiln.cusparselt


@pytest.fixture(autouse=True)
def _library(request, monkeypatch):
    """As where torch has the library: what is tested without a GPU does not call it."""
    if not request.node.get_closest_marker("cuda"):
        monkeypatch.setattr(sparse, "missing", lambda: "")


def marked(problem):
    return dataclasses.replace(problem, attributes={**problem.attributes, TWO_OF_FOUR: True})


def linear(*args, **options):
    return marked(linear_problem(*args, **options))


def conv(*args, **options):
    return marked(conv_problem(*args, **options))


def calls(problem, config):
    return [call.op if isinstance(call, TorchCall) else "kernel" for call in SPARSE.recipe(problem, config).launches]


OP = "torchkiln.cusparselt.default"


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bias": False}, [OP]),
        ({}, [OP]),
        ({"activation": "relu"}, [OP, "kernel"]),
        ({"residual": True, "bias": False}, [OP, "kernel"]),
        ({"residual": True, "activation": "gelu"}, [OP, "kernel"]),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda **o: linear((3, 7, 32), 48, **o), lambda **o: conv((3, 32, 5, 2), (48, 32, 1, 1), **o)], ids=["linear", "conv"]
)
def test_one_call_or_one_and_the_epilogue(make, options, expected, dtype):
    problem = make(dtype=dtype, **options)
    assert SPARSE.reject(problem) == ""
    (config,) = SPARSE.configs(problem, 0)
    assert calls(problem, config) == expected
    check(SPARSE, problem, config, TOLERANCE[dtype])
    recipe = SPARSE.recipe(problem, config)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert set(recipe.packed) == {"weight"}
    assert set(recipe.scratch) == (set() if expected == [OP] else {"product"})


@pytest.mark.parametrize("shape", [(32,), (1, 32), (2, 1, 32), (8, 32)])
def test_few_rows(shape):
    problem = linear(shape, 16)
    check(SPARSE, problem, SPARSE.configs(problem, 0)[0], TOLERANCE[HALF])


def test_a_wider_result():
    problem = linear((5, 32), 16, HALF)
    wide = dataclasses.replace(problem, outputs=(TensorSpec.contiguous((5, 16), FLOAT),))
    (config,) = SPARSE.configs(wide, 0)
    assert calls(wide, config) == [OP, "kernel"]
    check(SPARSE, wide, config, TOLERANCE[HALF])


def test_convolutions_of_one_and_three_dimensions():
    for x, kernel in (((2, 16, 9), (1,)), ((2, 16, 3, 2, 5), (1, 1, 1))):
        problem = conv(x, (32, 16, *kernel), activation="silu")
        check(SPARSE, problem, SPARSE.configs(problem, 0)[0], TOLERANCE[HALF])


def test_a_result_inside_a_concatenation():
    """Its rows are further apart than the product's, which is copied there."""
    problem = conv((2, 16, 3, 5), (32, 16, 1, 1))
    whole = nhwc((2, 80, 3, 5), HALF)
    inside = dataclasses.replace(problem, outputs=(TensorSpec((2, 32, 3, 5), whole.strides, HALF),))
    recipe = SPARSE.recipe(inside, SPARSE.configs(inside, 0)[0])
    assert recipe.launches[0].args[-2:] == ([2, 32, 3, 5], list(nhwc((2, 32, 3, 5), HALF).strides))
    check(SPARSE, inside, SPARSE.configs(inside, 0)[0], TOLERANCE[HALF])


def test_effort_is_the_number_of_algorithms():
    plain, apart = linear((8, 32), 16), linear((8, 32), 16, activation="relu")
    counts = [len(SPARSE.configs(plain, level)) for level in range(6)]
    assert counts == sorted(set(counts))
    assert counts[0] == 1
    assert [config["algorithm"] for config in SPARSE.configs(plain, 5)] == list(range(cusparselt.ALGORITHMS))
    assert len({config["block"] for config in SPARSE.configs(apart, 5)}) > len({config["block"] for config in SPARSE.configs(apart, 3)}) == 1
    assert all(SPARSE.configs(plain, level)[0]["algorithm"] == 0 for level in range(6))


def test_rejects(monkeypatch):
    rows_apart = dataclasses.replace(linear((8, 32), 16), inputs=(TensorSpec((8, 32), (40, 1), HALF), *linear((8, 32), 16).inputs[1:]))
    for problem, reason in (
        (linear_problem((8, 32), 16), "no 2:4 pattern, or sparse_weights is off"),
        (linear((8, 32), 16, capability=75), "2:4 needs compute capability 8.0, this GPU has 7.5"),
        (linear((8, 32), 16, FLOAT), "expected the same of fp16 and bf16"),
        (linear((8, 40), 16), "the weight's input dimension is 40, no multiple of 16"),
        (linear((8, 32), 24), "the weight's output dimension is 24, no multiple of 16"),
        (linear((0, 32), 16), "an empty operand"),
        (rows_apart, "rows are 40 elements apart"),
        (linear((2**17, 2**14), 16), "2**31"),
        (conv((2, 16, 9, 7), (16, 16, 3, 3)), "only a 1x1"),
        (conv((2, 16, 9, 7), (16, 16, 1, 1), stride=2), "only a 1x1"),
        (conv((2, 16, 9, 7), (16, 16, 1, 1), padding=1), "only a 1x1"),
        (conv((2, 32, 9, 7), (32, 16, 1, 1), groups=2), "only a 1x1"),
        (conv((2, 16, 9, 7), (16, 16, 1, 1), scale=True), "does not scale"),
        (conv((2, 16, 9, 7), (16, 16, 1, 1), channels_last=False), "not rows of channels"),
    ):
        assert reason in SPARSE.reject(problem)
    monkeypatch.setattr(sparse, "missing", lambda: "this build of torch has no cuSPARSELt")
    assert SPARSE.reject(linear((8, 32), 16)) == "this build of torch has no cuSPARSELt"


def test_a_torch_without_the_library_is_named(monkeypatch):
    monkeypatch.setattr(torch._C, "_has_cusparselt", False)
    assert "this build of torch has no cuSPARSELt" in cusparselt.missing()
    monkeypatch.setattr(torch.backends, "cusparselt", None)
    assert "this build of torch has no cuSPARSELt" in cusparselt.missing()


def test_the_shapes_are_those_that_torch_gives_the_library():
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as Own

    table = Own._DTYPE_SHAPE_CONSTRAINTS
    for dtype in cusparselt.DTYPES:
        shape = table[dtype]
        assert (shape.sparse_min_rows, shape.sparse_min_cols) == (cusparselt.WEIGHT_MULTIPLE,) * 2
        assert shape.dense_min_cols == shape.dense_min_rows == cusparselt.ROW_MULTIPLE
    assert FLOAT not in cusparselt.DTYPES


def operands(device="cpu", rows=13, depth=64, columns=32, dtype=HALF):
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(size, depth, device=device, generator=generator).to(dtype) for size in (rows, columns))
    bias = torch.randn(columns, device=device, generator=generator).to(dtype)
    return x, weight.masked_fill(choose_pruned(weight), 0), bias


WRONG = {
    "a vector": {"x": torch.zeros(64, dtype=HALF)},
    "rows apart": {"x": torch.zeros(13, 80, dtype=HALF)[:, :64]},
    "floats": {"x": torch.zeros(13, 64)},
    "an odd depth": {"x": torch.zeros(13, 60, dtype=HALF)},
    "no rows": {"x": torch.zeros(0, 64, dtype=HALF)},
    "odd columns": {"columns": 33},
    "no columns": {"columns": 0},
    "a short weight": {"weight": torch.zeros(31, 64, dtype=torch.int16)},
    "short rows": {"weight": torch.zeros(32, 35, dtype=torch.int16)},
    "a flat weight": {"weight": torch.zeros(32 * 64, dtype=torch.int16)},
    "more rows than columns": {"weight": torch.zeros(64, 64, dtype=torch.int16)},
    "a weight that is not packed": {"weight": torch.zeros(32, 64, dtype=HALF)},
    "a short bias": {"bias": torch.zeros(31, dtype=HALF)},
    "a float bias": {"bias": torch.zeros(32)},
}


@pytest.mark.parametrize("what", WRONG)
def test_operands_that_are_not_what_they_say_are_an_error(what):
    x, weight, bias = operands()
    given = {"weight": cusparselt.compress(weight), "x": x, "bias": bias, "columns": 32, "algorithm": 0, "shape": [13, 32], "strides": [32, 1]}
    product(**given)
    with pytest.raises(BuildFailed, match="cuSPARSELt: "):
        product(**{**given, **WRONG[what]})
    with pytest.raises(RuntimeError, match="out of bounds"):
        product(**{**given, "shape": [14, 32]})


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", [36, 40])  # 9/16 of 64, and what the library fills up to
def test_what_torch_is_given(width, has_bias, monkeypatch):
    """The library's side, without it: which operands, how they lie, and which rows of its result are taken."""
    x, _, bias = operands()
    weight = torch.zeros(32, width, dtype=torch.int16)
    calls = []

    def sparse_mm(compressed, dense, **options):
        calls.append((compressed, dense, options))
        return torch.arange(dense.shape[1] * 32.0).view(-1, 32)  # transposed: a row of the result is one of x

    monkeypatch.setattr(torch, "_cslt_sparse_mm", sparse_mm)
    given = bias if has_bias else None
    got = cusparselt._product_cuda(weight, x, given, 32, 7, [13, 32], [32, 1])
    ((compressed, dense, options),) = calls
    assert compressed.dtype == HALF
    assert compressed.shape == (32, width)
    assert dense.shape == (64, 16)
    assert dense.stride() == (1, 64), "columns are the dense rows"
    assert torch.equal(dense[:, :13].t(), x)
    assert not dense[:, 13:].any()
    assert options == {"bias": given, "transpose_result": True, "alg_id": 7}
    assert torch.equal(got, torch.arange(13 * 32.0).view(13, 32))
    with pytest.raises(BuildFailed, match="32 dense rows of at least 36 int16"):
        cusparselt._product_cuda(weight[:, :35].contiguous(), x, given, 32, 7, [13, 32], [32, 1])


class Layers(nn.Module):
    """A 1x1 convolution and linear layers that are sparsified, between a first convolution and a head that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 7)

    def forward(self, x):
        x = torch.relu(self.point(torch.relu(self.stem(x)))).flatten(2).transpose(1, 2)
        return self.head(x + self.down(nn.functional.gelu(self.up(x))))


SHAPE = (2, 3, 5, 6)


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    return torchkiln.sparsify(Layers().eval())


@pytest.fixture(scope="module")
def graph_module(layers):
    """Fused, in fp16."""
    module = specialize(lowered(layers, [SHAPE], HALF), [SHAPE])
    fuse(module)
    return module


def chosen_of(operation):
    """cuSPARSELt where it runs the operation, else what other tests of plans choose."""
    options = [option for option in options_of(operation, 0)[0] if option.tactic == SPARSE.name]
    if not options:
        return choose(operation, tactics=True)
    kernels = [launch.kernel for launch in options[0].recipe.launches if isinstance(launch, Launch)]
    codes = {kernel: Compiled(repr(kernel).encode(), "k", shared_bytes=0, threads=128) for kernel in kernels}
    return Choice(Option(SPARSE.name, options[0].config, options[0].recipe), 1.5, codes)


def test_a_plan_runs_2_4_layers_over_compressed_constants(graph_module, layers):
    codes, constants, kernels, plans = Codes(), Constants(), {}, []
    for _ in range(2):  # as for two batch sizes
        traced = trace(graph_module, 80, 108, lambda op: "ieee")
        assert mark_two_of_four(traced) == 3
        choices = [chosen_of(operation) for operation in traced.operations]
        plans.append(assemble_plan(traced, choices, codes, constants))
        for choice in choices:
            kernels |= {codes.add(kernel, compiled): kernel for kernel, compiled in choice.codes.items()}
    assert [info.tactic for info in plans[0].infos].count("cusparselt") == 3
    packed = [name for name, tensor in constants.held.items() if tensor.dtype == torch.int16]
    assert len(packed) == 3, "each weight is compressed once"
    bundle = decode_bundle(encode_bundle(Bundle(plans, codes.held, {})))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    loaded = CpuPlan(bundle.plans[0], kernels, constants.held)
    memory = loaded.start([x])
    for number, step in enumerate(loaded.plan.steps):
        loaded.launcher(step, memory)(0)
        for index in loaded._last_use[number]:
            memory._by_torch.pop(index, None)
    with torch.no_grad():
        expected = layers(x)
    assert (memory.outputs[0] - expected).norm() < 5e-3 * expected.norm()


def test_without_the_mark_no_sparse_kernel_is_tried(graph_module):
    traced = trace(graph_module, 80, 108, lambda op: "ieee")
    for operation in traced.operations:
        assert all(option.tactic != SPARSE.name for option in options_of(operation, 5)[0])


def test_compressed_weights_of_another_version_are_refused(monkeypatch):
    here = {"compute_capability": "9.0", "gpu": "H200"}
    monkeypatch.setattr(runtime, "describe_target", lambda device: here)
    monkeypatch.setattr(runtime, "cusparselt_version", lambda: 801)
    device = torch.device("cuda")
    runtime.check_target(here, device)
    runtime.check_target({**here, "cusparselt": 801}, device)
    with pytest.raises(TargetMismatch, match="compressed by cuSPARSELt 702, this torch has 801"):
        runtime.check_target({**here, "cusparselt": 702}, device)
    monkeypatch.setattr(runtime, "cusparselt_version", lambda: 0)
    with pytest.raises(TargetMismatch, match="this torch has none"):
        runtime.check_target({**here, "cusparselt": 801}, device)


# -- on a GPU --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("rows", [1, 8, 13, 197, 1024])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("depth", "columns"), [(768, 3072), (16, 16), (48, 80)])
def test_the_library(dtype, rows, has_bias, depth, columns):
    if cusparselt.missing():
        pytest.skip(cusparselt.missing())
    x, weight, bias = operands("cuda", rows, depth, columns, dtype)
    compressed = cusparselt.compress(weight)
    assert compressed.shape[0] == columns
    assert compressed.shape[1] >= depth * 9 // 16, "more where the library fills a small weight up"
    expected = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    right = 0
    for algorithm in range(cusparselt.ALGORITHMS):
        try:
            got = product(compressed, x, bias if has_bias else None, columns, algorithm, [rows, columns], [columns, 1])
        except RuntimeError:
            continue  # no such algorithm here
        assert (got.double() - expected).norm() < TOLERANCE[dtype] * expected.norm()
        right += 1
    assert right


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [HALF, BFLOAT])
def test_an_engine(precision, tmp_path, monkeypatch):
    if cusparselt.missing():
        pytest.skip(cusparselt.missing())
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = torchkiln.sparsify(nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024), nn.Linear(1024, 10)).eval().cuda(), stem=True)
    x = torch.randn(2048, 1024, device="cuda")
    engine = torchkiln.compile(model, [x], backend="cuda", enabled_precisions={precision}, sparse_weights=True)
    assert engine.cuda_graph_note == ""
    rows = engine.report().sparse_layers
    assert [(row.layer, row.outcome == "no pattern") for row in rows] == [("0", False), ("2", False), ("3", True)]
    for row in rows[:2]:
        assert row.outcome in ("used", "slower")
        assert row.sparse_us > 0
        assert row.dense_us > 0
        assert (row.tactic == "cusparselt") == (row.outcome == "used")
    with torch.no_grad():
        expected = model(x)
    assert (engine(x) - expected).norm() < 5 * TOLERANCE[precision] * expected.norm()
    engine.save(tmp_path / "e.kiln")
    loaded = torchkiln.load(tmp_path / "e.kiln", trusted=True)
    assert torch.equal(loaded(x), engine(x))
    assert loaded.report().sparse_layers == rows


@pytest.mark.cuda
@pytest.mark.parametrize("config", [{"algorithm": 0, "block": 0}, {"algorithm": 0, "block": 1024}])
def test_it_is_measured_right(config):
    """In a CUDA graph, against torch, on a weight with the pattern."""
    from torchkiln.backends.cuda.measure import Job
    from torchkiln.backends.cuda.recipe import Recipe, Ref
    from torchkiln.backends.cuda.worker_pool import WorkerPool, compiled_of

    if cusparselt.missing():
        pytest.skip(cusparselt.missing())
    major, minor = torch.cuda.get_device_capability()
    problem = linear((2048, 1024), 4096, activation="relu" if config["block"] else "none", capability=major * 10 + minor)
    recipe = SPARSE.recipe(problem, config)
    arguments = (Ref("x0"), Ref("x1"), Ref("x2"), None, problem.attributes["activation"], 0.0)
    reference = Recipe((TorchCall("torchkiln.linear.default", arguments),))
    with WorkerPool(problem.capability, torch.cuda.current_device()) as pool:
        kernels = [launch.kernel for launch in recipe.launches if isinstance(launch, Launch)]
        compiled, why = compiled_of([(kernel, pool.compile(kernel)) for kernel in kernels])
        assert why == ""
        (outcome,) = pool.measure(Job(problem.inputs, problem.outputs, "ieee", reference, (recipe,), compiled, two_of_four=True))
    assert outcome.median_us, outcome.why
