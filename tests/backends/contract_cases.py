"""What every backend that builds must do; each backend's tests inherit these."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psutil
import pytest
import torch

from torchkiln.backends.contract import Candidate
from torchkiln.backends.registry import get_backend
from torchkiln.engine.artifact import Artifact
from torchkiln.partition.segment import Segment
from torchkiln.settings import CompileSettings
from torchkiln.target import Target

from .make_segment import make_segment
from .models import DYNAMIC, STATIC, Segmentation

CPU = torch.device("cpu")
CPU_TARGET = Target.of(CPU)


def relative_error(outputs: Any, references: Any) -> float:
    """The worst relative L2 error over the floating outputs; the others must be equal. Checks dtypes, shapes and count."""
    worst = 0.0
    assert len(outputs) == len(references)
    for output, reference in zip(outputs, references, strict=True):
        assert (output.dtype, output.shape) == (reference.dtype, reference.shape)
        assert output.is_contiguous()
        if reference.dtype.is_floating_point:
            worst = max(worst, float((output.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-9)))
        else:
            assert torch.equal(output, reference)
    return worst


class BackendContract:
    name: ClassVar[str]
    #: Built once for the tests that only call.
    _built: ClassVar[dict[str, Any]] = {}

    def build(self, segment: Segment, precision: torch.dtype = torch.float32) -> Artifact:
        return get_backend(self.name).build(segment, Candidate(self.name, precision), CompileSettings())

    def load(self, artifact: Artifact, num_threads: int | None = None) -> Any:
        return get_backend(self.name).load(artifact, CPU, num_threads)

    def built(self) -> tuple[Segment, Artifact]:
        if self.name not in self._built:
            torch.manual_seed(4)
            segment = make_segment(Segmentation(), (torch.randn(1, 3, 35, 21),))
            self._built[self.name] = (segment, self.build(segment))
        return self._built[self.name]

    @pytest.mark.parametrize("model", STATIC)
    def test_equals_pytorch(self, model: str) -> None:
        torch.manual_seed(1)
        module, inputs = STATIC[model]()
        segment = make_segment(module, inputs)
        runner = self.load(self.build(segment))
        with torch.no_grad():
            for scale in (1.0, -0.5):
                drawn = [x * scale if x.is_floating_point() else x for x in inputs]
                assert relative_error(runner(drawn), segment.graph_module(*drawn)) < 1e-5

    @pytest.mark.parametrize("model", DYNAMIC)
    def test_dynamic_batch(self, model: str) -> None:
        torch.manual_seed(2)
        module, inputs, ranges = DYNAMIC[model](4)
        segment = make_segment(module, inputs, ranges)
        runner = self.load(self.build(segment))
        with torch.no_grad():
            for size in (1, 3, 16, 3, 1):
                _, drawn, _ = DYNAMIC[model](size)
                assert relative_error(runner(drawn), segment.graph_module(*drawn)) < 1e-5

    def test_opt_batch_of_one(self) -> None:
        """The example inputs of a range whose opt shape has batch 1."""
        torch.manual_seed(3)
        module, inputs, ranges = DYNAMIC["conv"](4)
        segment = make_segment(module, inputs, ranges)
        one = Segment("segment_0", segment.graph_module, segment.dim_ranges, (torch.randn(1, 3, 33, 47),), segment.op_count)
        runner = self.load(self.build(one))
        with torch.no_grad():
            for size in (1, 5):
                drawn = torch.randn(size, 3, 33, 47)
                assert relative_error(runner([drawn]), segment.graph_module(drawn)) < 1e-5

    def test_every_node_is_supported(self) -> None:
        for model in ("conv", "attention", "embedding", "segmentation"):
            module, inputs = STATIC[model]()
            segment = make_segment(module, inputs)
            rejects = [get_backend(self.name).supports(n) for n in segment.graph_module.graph.nodes if n.op == "call_function"]
            assert rejects == [None] * len(rejects)

    def test_outputs_are_fresh(self) -> None:
        """Two calls share no memory, and changing an input afterwards changes no output."""
        torch.manual_seed(5)
        module, inputs = STATIC["passing"]()
        runner = self.load(self.build(make_segment(module, inputs)))
        first = runner(inputs)
        kept = [o.clone() for o in first]
        second = runner([x + 1 for x in inputs])
        pointers = [o.data_ptr() for o in (*first, *second, *inputs)]
        assert len(set(pointers)) == len(pointers)
        for value in inputs:
            value.fill_(7)
        for output in second:
            output.zero_()
        assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))

    def test_changing_the_model_does_not_change_the_engine(self) -> None:
        torch.manual_seed(7)
        linear = torch.nn.Linear(40, 30)
        linear.table = torch.nn.Buffer(torch.randn(3))
        linear.forward = lambda x: (torch.nn.functional.linear(x, linear.weight, linear.bias), linear.table)  # type: ignore[method-assign]
        x = torch.randn(5, 40)
        artifact = self.build(make_segment(linear, (x,)))
        runner = self.load(artifact)
        before = runner([x])
        with torch.no_grad():
            for tensor in (linear.weight, linear.bias, linear.table):
                tensor.zero_()
        assert all(torch.equal(a, b) for a, b in zip(runner([x]), before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(self.load(artifact)([x]), before, strict=True))

    def test_strided_inputs(self) -> None:
        segment, artifact = self.built()
        runner = self.load(artifact)
        x = torch.randn(1, 21, 35, 3).transpose(1, 3).requires_grad_()
        assert not x.is_contiguous()
        with torch.no_grad():
            assert relative_error(runner([x]), segment.graph_module(x)) < 1e-5

    def test_threads(self) -> None:
        """8 threads, 50 calls each, each with inputs of its own: equal to calls in turn."""
        _, artifact = self.built()
        runner = self.load(artifact)
        inputs = [torch.randn(1, 3, 35, 21) for _ in range(8)]
        expected = [runner([x])[0] for x in inputs]

        def work(index: int) -> bool:
            return all(torch.equal(runner([inputs[index]])[0], expected[index]) for _ in range(50))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))

    def test_memory_is_freed(self) -> None:
        """20 cycles of load, call, delete: each holds 16 MB of weights, so even one in four kept would be seen."""
        torch.manual_seed(6)
        module = torch.nn.Sequential(torch.nn.Linear(2000, 2000), torch.nn.ReLU(), torch.nn.Linear(2000, 9))
        artifact = self.build(make_segment(module, (torch.randn(3, 2000),)))
        x = torch.randn(3, 2000)
        process = psutil.Process()
        sizes = []
        gc.collect()
        gc.freeze()  # a collection then looks at what a cycle leaves alone
        for _ in range(24):
            runner = self.load(artifact)
            runner([x])
            del runner
            gc.collect()
            sizes.append(process.memory_info().rss / 2**20)
        gc.unfreeze()
        assert sizes[-1] - sizes[3] < 60, sizes

    def test_random_and_custom_and_data_dependent_are_rejected(self) -> None:
        backend = get_backend(self.name)

        def verdict(function: Any, *inputs: torch.Tensor) -> dict[str, str]:
            class Module(torch.nn.Module):
                def forward(self, *args: torch.Tensor) -> Any:
                    return function(*args)

            nodes = make_segment(Module(), inputs).graph_module.graph.nodes
            found = [backend.supports(n) for n in nodes if n.op == "call_function"]
            return {r.subject: r.reason for r in found if r is not None}

        x = torch.randn(3, 5)
        assert "depends on the data" in verdict(lambda x: x.nonzero() + 1, x)["aten.nonzero.default"]
        assert any("random" in reason for reason in verdict(lambda x: torch.bernoulli(x.sigmoid()), x).values())
        assert "custom operator" in verdict(lambda x: twice(x).relu(), x)["torchkiln_test.twice.default"]
        assert any("complex" in reason for reason in verdict(lambda x: torch.fft.fft(x).abs(), x).values())
        assert verdict(lambda x: x[torch.tensor([2, 0])].relu(), x) == {}


@torch.library.custom_op("torchkiln_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)
