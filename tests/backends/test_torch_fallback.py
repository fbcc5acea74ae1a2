"""The fallback backend: segments run as PyTorch runs them, from several threads, and their owner cannot be harmed through them."""

from __future__ import annotations

import gc
import linecache
import threading
import weakref

import pytest
import torch
from torch.fx import Graph, GraphModule

from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.backends.torch_fallback.runtime import load
from torchkiln.engine.artifact import Artifact
from torchkiln.errors import BuildFailed, CorruptEngineFile
from torchkiln.partition.segment import Segment
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

aten = torch.ops.aten
CPU = torch.device("cpu")
CPU_TARGET = Target.of(CPU)
BACKEND = get_backend("torch")


def module_of(tensors, inputs, write):
    root, graph = torch.nn.Module(), Graph()
    nodes = {name: graph.placeholder(name) for name in inputs}
    for name, tensor in tensors.items():
        root.register_buffer(name, tensor)
        nodes[name] = graph.get_attr(name)
    graph.output(tuple(write(lambda op, *args, **kwargs: graph.call_function(op, args, kwargs), nodes)))
    return GraphModule(root, graph)


def build(module, *examples):
    segment = Segment("segment_0", module, tuple({} for _ in examples), examples, 1)
    return BACKEND.build(segment, Candidate("torch", torch.float32), CompileSettings())


def test_one_candidate_for_every_precision():
    candidates, rejects = BACKEND.candidates(CPU_TARGET, CompileSettings(enabled_precisions={"fp16", "bf16"}))
    assert [str(c) for c in candidates] == ["torch fp32"]
    assert rejects == []
    assert BACKEND.availability(CPU_TARGET) is None
    assert "sm_89 is not in it" in BACKEND.availability(Target("sm_89")).reason


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_runs_the_graph_in_its_own_dtypes(rows):
    weight = torch.randn(5, 7, dtype=torch.bfloat16)
    module = module_of({"w": weight}, ["x"], lambda call, n: [call(aten.mm.default, n["x"], n["w"]), call(aten.sum.dim_IntList, n["x"], [1])])
    x = torch.randn(rows, 5, dtype=torch.bfloat16)
    product, total = BACKEND.load(build(module, x), CPU, None)([x])
    assert torch.equal(product, x @ weight)
    assert torch.equal(total, x.sum(1))


def test_outputs_belong_to_the_caller():
    """Constants, views of constants and composites that may return their input: writing to what came back must not change the next call."""

    def write(call, n):
        view = call(aten.view.default, n["w"], [3, 4])
        return [n["w"], view, call(aten.reshape.default, view, [12]), call(aten.contiguous.default, n["w"]), call(aten.add.Tensor, n["w"], n["x"])]

    module = module_of({"w": torch.randn(4, 3)}, ["x"], write)
    run = load(build(module, torch.ones(4, 3)), CPU, None)
    first = [output.clone() for output in run([torch.ones(4, 3)])]
    for output in run([torch.ones(4, 3)]):
        output.zero_()
    assert all(torch.equal(a, b) for a, b in zip(run([torch.ones(4, 3)]), first, strict=True))
    assert not first[-1].requires_grad


def test_the_source_model_may_train_on():
    weight = torch.nn.Parameter(torch.randn(4))
    module = module_of({}, ["x"], lambda call, n: [n["x"]])
    module.weight = weight
    graph = Graph()
    graph.output((graph.call_function(aten.mul.Tensor, (graph.placeholder("x"), graph.get_attr("weight"))),))
    module = GraphModule(module, graph)
    run = load(build(module, torch.ones(4)), CPU, None)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    (output,) = run([torch.ones(4)])
    assert torch.equal(output, before)


def test_eight_threads():
    def write(call, n):
        value = n["x"]
        for _ in range(20):
            value = call(aten.tanh.default, call(aten.mm.default, value, n["w"]))
        return [value]

    weight = torch.randn(33, 33)
    run = load(build(module_of({"w": weight}, ["x"], write), torch.randn(5, 33)), CPU, None)
    inputs = [torch.randn(3 + i, 33) for i in range(8)]
    expected = [run([x])[0] for x in inputs]
    failures = []

    def work(i):
        for _ in range(15):
            if not torch.allclose(run([inputs[i]])[0], expected[i], rtol=1e-5, atol=1e-6):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_values_are_freed_after_their_last_use():
    alive = []

    @torch.library.custom_op("kilnfallback::watch", mutates_args=())
    def watch(x: torch.Tensor) -> torch.Tensor:
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
        made = x + 1
        refs.append(weakref.ref(made))
        return made

    refs: list = []

    def write(call, n):
        value = n["x"]
        for _ in range(6):
            value = call(torch.ops.kilnfallback.watch.default, value)
        return [value]

    run = load(build(module_of({}, ["x"], write), torch.ones(3)), CPU, None)
    assert torch.equal(run([torch.ones(3)])[0], torch.full((3,), 7.0))
    assert max(alive) <= 1


def test_a_runner_is_freed():
    runner = load(build(module_of({"w": torch.randn(3)}, ["x"], lambda call, n: [call(aten.add.Tensor, n["x"], n["w"])]), torch.ones(3)), CPU, None)
    ref = weakref.ref(runner._graph_module.tensor_w)
    source = runner._forward.__code__.co_filename
    assert linecache.getlines(source)
    del runner
    gc.collect()
    assert ref() is None
    assert source not in linecache.cache
    assert source not in torch.fx.graph_module._loader.eval_cache


def test_build_says_which_node_cannot_be_kept():
    module = module_of({}, ["x"], lambda call, n: [call(aten.from_file.default, "/tmp/x")])
    with pytest.raises(BuildFailed, match=r"segment_0: torch: node from_file.*cannot hold it"):
        build(module, torch.ones(1))


def test_wrong_number_of_inputs():
    artifact = build(module_of({}, ["x", "y"], lambda call, n: [call(aten.add.Tensor, n["x"], n["y"])]), torch.ones(1), torch.ones(1))
    with pytest.raises(CorruptEngineFile, match="takes 2 inputs"):
        load(artifact, CPU, None)([torch.ones(1)])
    with pytest.raises(CorruptEngineFile, match="output_count"):
        load(Artifact(artifact.payload, artifact.tensors, {**artifact.metadata, "output_count": 2}), CPU, None)


@pytest.mark.parametrize(
    ("op", "blocked"),
    [(aten.relu.default, False), (aten.nonzero.default, True), (aten._local_scalar_dense.default, True), (aten.view_as.default, False)],
)
def test_what_a_cuda_graph_cannot_hold(op, blocked):
    module = module_of({}, ["x"], lambda call, n: [call(op, n["x"], n["x"]) if op is aten.view_as.default else call(op, n["x"])])
    assert bool(load(build(module, torch.ones(1)), CPU, None).capture_blocker) is blocked


@pytest.mark.cuda
def test_on_cuda():
    weight = torch.randn(5, 7, device="cuda")
    module = module_of(
        {"w": weight}, ["x"], lambda call, n: [call(aten.mm.default, n["x"], n["w"]), call(aten.zeros.default, [3], device=torch.device("cuda:0"))]
    )
    x = torch.randn(3, 5, device="cuda")
    artifact = build(module, x)
    stored = Artifact(artifact.payload, {k: t.cpu() for k, t in artifact.tensors.items()}, artifact.metadata)
    product, zeros = load(stored, torch.device("cuda:0"), None)([x])
    torch.testing.assert_close(product, x @ weight)
    assert zeros.device.type == "cuda"
