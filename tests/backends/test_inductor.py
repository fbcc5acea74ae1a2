"""The inductor backend. A build takes seconds, so the tests share a few of them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from torchkiln.backends.contract import Candidate
from torchkiln.backends.copy_graph_module import copy_graph_module
from torchkiln.backends.inductor import BACKEND
from torchkiln.backends.inductor.availability import find_compiler
from torchkiln.backends.inductor.export_package import export_package
from torchkiln.backends.inductor.target import check_target, describe_target
from torchkiln.capture.unlift import unlift
from torchkiln.engine.artifact import Artifact
from torchkiln.engine.contents import EngineContents, EngineSegment
from torchkiln.engine.report import Report
from torchkiln.engine.structure import Structure
from torchkiln.errors import BuildFailed, CorruptEngineFile, TargetMismatch, UserError
from torchkiln.inputs import Input
from torchkiln.lower.decompose import decomposition_table
from torchkiln.partition.segment import Segment
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

CPU = torch.device("cpu")
CPU_TARGET = Target.of(CPU)
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(13)
        self.grouped = nn.Conv2d(13, 26, 3, padding=1, groups=13)
        self.linear = nn.Linear(26, 11)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.convolution(image)).relu()
        return self.linear(nn.functional.silu(self.grouped(features)).mean((2, 3)))


class Mixed(nn.Module):
    """An embedding and attention over integers, and outputs that are computed, passed on, viewed and constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(97, 24)
        self.qkv = nn.Linear(24, 72)
        self.norm = nn.LayerNorm(24)
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.embedding(tokens)
        heads = self.qkv(self.norm(hidden)).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        hidden = hidden + attended.transpose(1, 2).flatten(2)
        return hidden, tokens + 1, image, image.flatten(1), self.table, hidden.softmax(-1).argmax(-1)


def make_segment(model: nn.Module, inputs: tuple[torch.Tensor, ...], ranges: tuple[dict[int, tuple[int, int]], ...] = ()) -> Segment:
    dims = tuple({d: Dim.DYNAMIC(min=lo, max=hi) for d, (lo, hi) in r.items()} or None for r in ranges) or None
    graph_module = unlift(export(model, inputs, dynamic_shapes=dims).run_decompositions(decomposition_table()))
    first = next(iter(graph_module.graph.nodes))
    for node in graph_module.graph.find_nodes(op="placeholder"):
        if node is not first:
            first.prepend(node)  # as partition/extract.py lays a segment out
    return Segment("segment_0", graph_module, ranges or tuple({} for _ in inputs), inputs, op_count=9)


def random_norm(model: nn.Module) -> nn.Module:
    """Batch norm statistics that are not those of a new model, so that folding them wrong would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def build(segment: Segment, precision: torch.dtype = torch.float32) -> Artifact:
    return BACKEND.build(segment, Candidate("inductor", precision), CompileSettings())


@pytest.fixture(scope="module")
def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return random_norm(ConvNet())


@pytest.fixture(scope="module")
def conv_artifact(conv_net) -> Artifact:
    """One build with a batch of 1 to 16."""
    return build(make_segment(conv_net, (torch.randn(3, 3, 19, 23),), ({0: (1, 16)},)))


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, Artifact, tuple[torch.Tensor, ...]]:
    torch.manual_seed(1)
    model = Mixed().eval()
    inputs = (torch.randint(0, 97, (2, 7)), torch.randn(2, 3, 5))
    return model, build(make_segment(model, inputs)), inputs


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    output, reference = output.detach(), reference.detach()
    return float((output.double() - reference.double()).norm() / reference.double().norm())


@needs_compiler
def test_a_batch_that_varies(conv_net, conv_artifact):
    run = BACKEND.load(conv_artifact, CPU, None)
    for batch in (1, 3, 16):
        image = torch.randn(batch, 3, 19, 23)
        (output,) = run([image])
        assert output.dtype is torch.float32
        assert relative_error(output, conv_net(image)) < 1e-5


@needs_compiler
def test_inputs_in_any_memory_layout(conv_net, conv_artifact):
    run = BACKEND.load(conv_artifact, CPU, None)
    image = torch.randn(4, 3, 19, 23)
    wide = torch.randn(4, 3, 19, 46)
    for value in (image.to(memory_format=torch.channels_last), wide[..., ::2], image[:1].expand(4, -1, -1, -1), image.clone().requires_grad_()):
        (output,) = run([value])
        assert relative_error(output, conv_net(value).detach()) < 1e-5
        assert not output.requires_grad


@needs_compiler
def test_weights_are_folded(conv_artifact, tmp_path):
    """Freezing must have happened: batch norm is gone, and what is left of a convolution is a packed oneDNN constant."""
    path = tmp_path / "package.pt2"
    path.write_bytes(conv_artifact.payload)
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    code = b"".join(reader.get_record(name) for name in names if name.endswith(".wrapper.cpp")).decode()
    assert "_frozen_param" in code
    assert "norm_running_mean" not in code
    if torch.backends.mkldnn.is_available():
        assert "layout__mkldnn" in code
        assert "mkldnn__convolution_pointwise" in code
    assert conv_artifact.native_code
    assert not any(name.endswith((".pkl", ".pt")) for name in names)


@needs_compiler
def test_bfloat16(conv_net):
    candidates, rejects = BACKEND.candidates(CPU_TARGET, CompileSettings(enabled_precisions=frozenset({torch.bfloat16})))
    if not candidates:
        pytest.skip(rejects[0].reason)
    segment = make_segment(conv_net, (torch.randn(2, 3, 19, 23),))
    before = segment.graph_module.code, {name: tensor.dtype for name, tensor in segment.graph_module.named_buffers()}
    artifact = build(segment, torch.bfloat16)
    after = segment.graph_module.code, {name: tensor.dtype for name, tensor in segment.graph_module.named_buffers()}
    assert before == after, "the segment itself was changed"
    image = torch.randn(2, 3, 19, 23)
    (output,) = BACKEND.load(artifact, CPU, None)([image])
    assert output.dtype is torch.float32
    assert 1e-6 < relative_error(output, conv_net(image)) < 3e-2, "neither computed in float32 nor wrong"
    assert artifact.metadata["precision"] == "bf16"


@needs_compiler
def test_several_inputs_and_outputs(mixed):
    model, artifact, inputs = mixed
    run = BACKEND.load(artifact, CPU, None)
    for seed in range(3):
        torch.manual_seed(seed)
        values = (torch.randint(0, 97, inputs[0].shape), torch.randn(inputs[1].shape))
        outputs, expected = run(values), model(*values)
        assert [o.dtype for o in outputs] == [e.dtype for e in expected]
        for output, reference in zip(outputs[:-1], expected[:-1], strict=True):
            assert output.shape == reference.shape
            torch.testing.assert_close(output, reference.detach(), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_outputs_belong_to_the_caller(mixed):
    """An output that is an input, a view of one, or a constant: writing to it changes neither the input nor the next call."""
    _model, artifact, inputs = mixed
    run = BACKEND.load(artifact, CPU, None)
    kept = [value.clone() for value in inputs]
    expected = [value.clone() for value in run(inputs)]
    for output in run(inputs):
        output.zero_()
    for value, copy in zip(inputs, kept, strict=True):
        assert torch.equal(value, copy)
    for output, value in zip(run(inputs), expected, strict=True):
        assert torch.equal(output, value)


class Forgotten(nn.Module):
    """Holds a megabyte that folds away: no constant is left, where the size of the weights promised many."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(600, 500))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.relu() + torch.ones_like(self.weight)[:3, :5], x.double().sum(-1)


@needs_compiler
def test_a_segment_whose_weights_fold_away():
    model, x = Forgotten().eval(), torch.randn(3, 5)
    outputs = BACKEND.load(build(make_segment(model, (x,))), CPU, None)([x])
    for output, expected in zip(outputs, model(x), strict=True):
        torch.testing.assert_close(output, expected.detach())


@needs_compiler
def test_eight_threads(conv_net, conv_artifact):
    run = BACKEND.load(conv_artifact, CPU, None)
    cases = [torch.randn(batch, 3, 19, 23) for batch in range(1, 9)]
    expected = [run([image])[0] for image in cases]
    failures: list[str] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for index in range(number, number + 40):
            (output,) = run([cases[index % 8]])
            if not torch.allclose(output, expected[index % 8], rtol=1e-5, atol=1e-6):
                failures.append(f"thread {number}, batch {index % 8 + 1}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@needs_compiler
def test_a_thread_count_of_its_own(conv_net, conv_artifact):
    before = torch.get_num_threads()
    run = BACKEND.load(conv_artifact, CPU, 1 if before > 1 else 2)
    image = torch.randn(2, 3, 19, 23)
    assert relative_error(run([image])[0], conv_net(image)) < 1e-5
    assert torch.get_num_threads() == before


@needs_compiler
def test_a_process_that_only_loads_imports_no_compiler(conv_net, conv_artifact, tmp_path):
    (tmp_path / "payload").write_bytes(conv_artifact.payload)
    image = torch.randn(2, 3, 19, 23)
    torch.save({"image": image, "output": conv_net(image).detach(), "metadata": conv_artifact.metadata}, tmp_path / "case.pt")
    program = f"""
import sys, torch
from torchkiln.backends.inductor import BACKEND
from torchkiln.engine.artifact import Artifact
case = torch.load({str(tmp_path / "case.pt")!r})
artifact = Artifact(open({str(tmp_path / "payload")!r}, "rb").read(), metadata=case["metadata"])
output, = BACKEND.load(artifact, torch.device("cpu"), None)([case["image"]])
torch.testing.assert_close(output, case["output"], rtol=1e-4, atol=1e-5)
banned = ("torch._inductor", "torch._dynamo", "triton", "torchkiln.lower", "torchkiln.capture", "torchkiln.partition",
          "torchkiln.backends.inductor.build")
print([name for name in sys.modules if name.startswith(banned)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@needs_compiler
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory use from /proc")
def test_twenty_lives_leave_no_memory_and_no_files(tmp_path, monkeypatch):
    """The weights, 16 MB, must go each time. Less than 1 MB of code may stay: the generated library is never unmapped."""
    model = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()).eval()
    artifact = build(make_segment(model, (torch.randn(3, 2048),)))
    assert len(artifact.payload) > 16e6
    assert b"_weights.blob" in artifact.payload, "weights in the library would stay mapped"
    image = torch.randn(3, 2048)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def live() -> None:
        run = BACKEND.load(artifact, CPU, None)
        run([image])

    def resident_mb() -> float:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def unpacked() -> set[str]:
        return {name for name in os.listdir("/tmp") if name.startswith("aotinductor_")} | set(os.listdir(tmp_path))

    for _ in range(3):
        live()
    files, before = unpacked(), resident_mb()
    for _ in range(20):
        live()
    assert unpacked() <= files
    assert resident_mb() - before < 20


@needs_compiler
def test_another_target_is_refused(conv_artifact):
    target = conv_artifact.metadata["target"]
    for key, value, expected in (
        ("torch", "2.3", "built for torch 2.3, this is"),
        ("machine", "riscv64", "built for processor type riscv64"),
        ("platform", "plan9", "built for platform plan9"),
        ("device", "cuda", "built for device cuda, this is cpu"),
        ("cpu_features", [*target["cpu_features"], "avx4096"], "a CPU with avx4096, which this CPU lacks"),
    ):
        artifact = replace(conv_artifact, metadata={**conv_artifact.metadata, "target": {**target, key: value}})
        with pytest.raises(TargetMismatch, match=expected):
            BACKEND.load(artifact, CPU, None)


def test_a_richer_cpu_is_fine():
    target = describe_target(CPU)
    check_target({**target, "cpu_features": target["cpu_features"][1:]}, CPU)


def test_what_is_no_package_is_refused():
    target = describe_target(CPU)
    with pytest.raises(TargetMismatch, match="cannot be loaded"):
        BACKEND.load(Artifact(b"not a package", metadata={"target": target, "input_count": 1}), CPU, None)
    with pytest.raises(CorruptEngineFile, match="expected metadata with target and input_count"):
        BACKEND.load(Artifact(b"", metadata={"target": target}), CPU, None)


@needs_compiler
def test_a_wrong_number_of_inputs_is_refused(conv_artifact):
    run = BACKEND.load(conv_artifact, CPU, None)
    with pytest.raises(CorruptEngineFile, match="takes 1 inputs, the engine passes 2"):
        run([torch.randn(1, 3, 19, 23)] * 2)


@needs_compiler
def test_what_inductor_says_is_passed_on(conv_net, monkeypatch):
    import torch._inductor

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("no kernel for the moon")

    monkeypatch.setattr(torch._inductor, "aot_compile", refuse)
    with pytest.raises(BuildFailed, match="inductor cannot build segment_0: NotImplementedError: no kernel for the moon"):
        build(make_segment(conv_net, (torch.randn(2, 3, 19, 23),)))


def test_a_copied_graph_is_independent_and_shares_tensors(conv_net):
    segment = make_segment(conv_net, (torch.randn(2, 3, 19, 23),))
    copy = copy_graph_module(segment.graph_module)
    image = torch.randn(2, 3, 19, 23)
    assert torch.equal(copy(image)[0], segment.graph_module(image)[0])
    assert {t.data_ptr() for t in copy.buffers()} <= {t.data_ptr() for t in segment.graph_module.buffers()}
    before = len(segment.graph_module.graph.nodes)
    copy.graph.call_function(torch.relu, (next(iter(copy.graph.nodes)),))
    assert len(segment.graph_module.graph.nodes) == before


@torch.library.custom_op("torchkiln_test_inductor::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = x.nonzero()
        attended = nn.functional.scaled_dot_product_attention(x, x, x)
        return twice(x), found * 2, torch.rand_like(x), attended, nn.functional.dropout(x, 0.5, training=True), x.relu()


def test_supports():
    program = export(Unsupported(), (torch.randn(2, 5, 7),)).run_decompositions(decomposition_table())
    rejects = {str(n.target): BACKEND.supports(n) for n in program.graph.nodes if n.op == "call_function"}
    reasons = {name: reject.reason for name, reject in rejects.items() if reject is not None}
    assert "custom operator" in reasons.pop("torchkiln_test_inductor.twice.default")
    assert "depends on the data" in reasons.pop("aten.nonzero.default")
    assert "depends on the data" in reasons.pop("aten.mul.Tensor")
    random = [reasons.pop(name) for name in list(reasons) if "rand" in name or "dropout" in name or "bernoulli" in name]
    assert random
    assert all("random" in reason for reason in random)
    assert rejects["aten.relu.default"] is None
    assert rejects["aten.scaled_dot_product_attention.default"] is None
    sizes = {name for name in reasons if name.startswith(("aten.sym_", "<built-in", "aten._assert", "_operator"))}
    assert set(reasons) <= sizes, reasons


def test_availability_names_what_is_missing(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("torchkiln.backends.inductor.availability.shutil.which", lambda name: None)
    assert "needs a C++ compiler" in BACKEND.availability(CPU_TARGET).reason
    monkeypatch.setattr("torchkiln.backends.inductor.availability.shutil.which", lambda name: "/usr/bin/x" if name == "clang++" else None)
    assert BACKEND.availability(CPU_TARGET) is None
    assert "not for mps" in BACKEND.availability(Target("mps")).reason
    assert "sm_89 is not in this one" in BACKEND.availability(Target("sm_89")).reason


def test_candidates_are_the_precisions_the_cpu_has():
    settings = CompileSettings(enabled_precisions=frozenset({torch.float32, torch.bfloat16, torch.float16}))
    candidates, rejects = BACKEND.candidates(CPU_TARGET, settings)
    has = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported()}
    assert {c.precision for c in candidates} == {torch.float32, *(dtype for dtype, supported in has.items() if supported)}
    assert len(candidates) + len(rejects) == 3
    assert all("this CPU has no" in reject.reason for reject in rejects)


def contents_of(segments: tuple[EngineSegment, ...], outputs: tuple[int, ...]) -> EngineContents:
    args, _ = Structure.of((((torch.zeros(1),)), {}))
    result, _ = Structure.of(tuple(torch.zeros(1) for _ in outputs))
    report = Report(model="Net", device="cpu", backend="inductor", precision="fp32", enabled_precisions=["fp32"])
    names = tuple(f"output_{i}" for i in range(len(outputs)))
    return EngineContents("cpu", (Input((1,)),), args, result, names, outputs, 3, segments, report)


def test_export_package_takes_one_inductor_segment_only(tmp_path):
    def segment(backend: str, inputs: tuple[int, ...] = (0,), outputs: tuple[int, ...] = (1,)) -> EngineSegment:
        return EngineSegment("segment_0", backend, "fp32", inputs, outputs, Artifact(b"the package"))

    whole = contents_of((segment("inductor"),), (1,))
    export_package(whole, tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == b"the package"
    assert os.listdir(tmp_path) == ["m.pt2"]
    for contents, path, expected in (
        (contents_of((segment("openvino"),), (1,)), "m.pt2", r"segment_0 \(openvino\)\. Build the engine with backend='inductor'"),
        (contents_of((segment("inductor"), segment("torch", (1,), (2,))), (2,)), "m.pt2", "holds one inductor segment"),
        (contents_of((segment("inductor"),), (1, 1)), "m.pt2", "a package alone would not be the model"),
        (whole, "m.kiln", "ends in .pt2"),
        (whole, "nowhere/m.pt2", "cannot be written"),
    ):
        with pytest.raises(UserError, match=expected):
            export_package(contents, tmp_path / path)
