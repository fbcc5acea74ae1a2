"""Plans on several streams on a real GPU: the same numbers as on one, replayed and not, many times and from several threads."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import lowered
from torch import nn

from torchkiln.backends.cuda.assemble_plan import Codes, Constants, assemble_plans
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.runtime import LoadedPlan, load_codes
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.timing_cache import TimingCache
from torchkiln.backends.cuda.trace import trace
from torchkiln.backends.cuda.tuner import tune
from torchkiln.backends.cuda.worker_pool import WorkerPool

pytestmark = pytest.mark.cuda
SHAPE = (2, 16, 24, 40)
REPLAYS = 200


class Branches(nn.Module):
    """Long branches of unequal length, which overwrite each other's memory where the plan is wrong; torch runs a step of one."""

    def __init__(self):
        super().__init__()
        self.long = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.short = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        self.head = nn.Conv2d(48, 16, 1)

    def forward(self, x):
        x = F.relu(x * 2)
        a, b = x, x
        for layer in self.long:
            a = F.silu(layer(a))
        for layer in self.short:
            b = F.relu(layer(b)).roll(1, 2) + 1
        return self.head(torch.cat([a, b, torch.cumsum(x, 3) * 0.01], 1)) + x


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The plan on one stream and on three, loaded, and the graph they come from."""
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    before = lowered(Branches(), [SHAPE], None).to(device)
    graph_module = specialize(copy.deepcopy(before), [SHAPE])
    fuse(graph_module)
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major * 10 + properties.minor
    traced = trace(graph_module, capability, properties.multi_processor_count, lambda op: "ieee")
    with WorkerPool(capability, device.index) as pool:
        choices = tune(traced.operations, device, 0, TimingCache(tmp_path_factory.mktemp("cache") / "timings.sqlite"), pool)
    for choice in choices:
        choice.median_us = 50.0  # so that every branch is worth a stream
    codes, constants = Codes(), Constants()
    plans = assemble_plans(traced, choices, codes, constants, (1, 3))
    assert [plan.streams for plan in plans] == [1, 3]
    functions = load_codes(codes.held, device)
    held = {name: tensor.to(device) for name, tensor in constants.held.items()}
    return before, [LoadedPlan(plan, functions, held, device) for plan in plans]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))


def test_launched_one_by_one(loaded):
    before, (one, three) = loaded
    with torch.no_grad():
        for _ in range(REPLAYS):
            x = torch.randn(SHAPE, device="cuda")
            (expected,), (got,) = one.run([x]), three.run([x])
            assert torch.equal(got, expected)
        torch.testing.assert_close(got, before(x)[0], atol=1e-3, rtol=1e-3)


def captured(plan):
    """A graph of the plan, what it reads and what it writes."""
    x = torch.randn(SHAPE, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        plan.run([x])
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"), torch.no_grad():
        (y,) = plan.run([x])
    return graph, x, y


def test_replayed(loaded):
    graphs = [captured(plan) for plan in loaded[1]]
    for _ in range(REPLAYS):
        value = torch.randn(SHAPE, device="cuda")
        found = []
        for graph, x, y in graphs:
            x.copy_(value)
            graph.replay()
            found.append(y.clone())
        assert torch.equal(*found)


def test_a_capture_beside_a_thread_that_launches(loaded):
    """What another thread launches on streams of its own does not become a part of the graph."""
    _, (one, three) = loaded
    stop, wrong = threading.Event(), []

    def launch():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            while not stop.is_set():
                x = torch.randn(SHAPE).cuda()  # the generator of the GPU belongs to the capture
                if not torch.equal(three.run([x])[0], one.run([x])[0]):
                    wrong.append(x)

    thread = threading.Thread(target=launch)
    thread.start()
    try:
        graphs = [captured(three) for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert not wrong
    for graph, x, y in graphs:
        graph.replay()
        with torch.no_grad():
            assert torch.equal(y, one.run([x])[0])


def test_two_threads(loaded):
    _, (one, three) = loaded
    wrong = []

    def run(seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(REPLAYS):
                x = torch.randn(SHAPE, device="cuda", generator=generator)
                if not torch.equal(three.run([x])[0], one.run([x])[0]):
                    wrong.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_same_cache_gives_the_same_streams():
    import torchkiln

    engines = [
        torchkiln.compile(Branches().eval().cuda(), [torch.randn(SHAPE, device="cuda")], backend="cuda", optimization_level=3) for _ in range(2)
    ]
    first, second = (engine.runners[0].bundle.plans[0] for engine in engines)
    assert (first.streams, first.measured) == (second.streams, second.measured)
    assert len(first.measured) > 1
