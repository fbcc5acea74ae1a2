"""torchkiln.replicate, and the Pool it gives."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import torchkiln
from torchkiln import errors
from torchkiln.engine.engine import Engine
from torchkiln.errors import ReplicaFailed, TargetMismatch, UserError
from torchkiln.pool.devices import find_devices
from torchkiln.pool.map_in_order import map_in_order
from torchkiln.progress import report_progress

CPUS = ["cpu", "cpu"]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x, scale):
        y = self.layer(x)
        return {"sum": y.sum(1), "scaled": y * scale}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine(model):
    image = torchkiln.Input(min_shape=(1, 3, 9, 9), opt_shape=(2, 3, 9, 9), max_shape=(4, 3, 9, 9))
    return torchkiln.compile(model, [image], backend="openvino")


@pytest.fixture(scope="module")
def torch_engine():
    """Computed by PyTorch, whose threads are the process's."""
    return torchkiln.compile(TwoInputs().eval(), [torch.randn(2, 5), torch.randn(2, 1)], backend="torch", verify=False)


@pytest.fixture
def pool(engine):
    with torchkiln.replicate(engine, CPUS) as pool:
        yield pool


def batches(count, size=2):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 3, 9, 9, generator=generator) for _ in range(count)]


def test_calls_give_what_the_engine_gives(pool, engine, model):
    (x,) = batches(1)
    torch.testing.assert_close(pool(x), model(x), rtol=1e-4, atol=1e-4)
    assert pool(x).equal(engine(x))
    assert pool.inputs == engine.inputs
    assert pool.devices == (torch.device("cpu"),) * 2 == tuple(replica.device for replica in pool.replicas)
    assert len(pool) == 2
    assert engine not in [replica.engine for replica in pool.replicas]
    assert "Pool of 2: cpu, cpu" in repr(pool)
    assert pool.eval() is pool


def test_replicas_of_openvino_share_one_compiled_model(pool):
    first, second = (replica.engine.runners for replica in pool.replicas)
    assert first[0] is second[0]
    session = first[0]
    assert session._compiled.get_property("NUM_STREAMS") == 2


def test_map_keeps_the_order(pool, engine):
    given = batches(11)
    found = list(pool.map(given))
    assert len(found) == 11
    assert all(y.equal(engine(x)) for x, y in zip(given, found, strict=True))
    assert list(pool.map([])) == []


def test_concurrent_callers(pool, engine):
    given = batches(12)
    expected = [engine(x) for x in given]
    found: dict[int, torch.Tensor] = {}

    def call(offset):
        for index in range(offset, 12, 4):
            found[index] = pool(given[index])

    callers = [threading.Thread(target=call, args=(offset,)) for offset in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(found[index].equal(expected[index]) for index in range(12))


def test_map_over_data_loaders(pool, engine):
    images, labels = torch.cat(batches(5, 1)), torch.arange(5)
    loader = DataLoader(TensorDataset(images, labels), batch_size=2)
    found = list(pool.map(loader, lambda batch: batch[0], with_batch=True))
    assert torch.cat([batch[1] for batch, _ in found]).equal(labels)
    torch.testing.assert_close(torch.cat([y for _, y in found]), torch.cat([engine(images[i : i + 1]) for i in range(5)]), rtol=1e-5, atol=1e-6)
    only = DataLoader(TensorDataset(images), batch_size=2)  # gives lists of one tensor
    assert [len(y) for y in pool.map(only)] == [2, 2, 1]

    class Dicts(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": images[index], "name": f"case {index}"}

    assert [len(y) for y in pool.map(DataLoader(Dicts(), batch_size=2), lambda batch: batch["image"])] == [2, 1]

    class Stream(IterableDataset):  # its DataLoader has a __len__ that raises
        def __iter__(self):
            return iter(images)

    assert [len(y) for y in pool.map(DataLoader(Stream(), batch_size=2))] == [2, 2, 1]


def test_positional_and_keyword_arguments_and_nested_outputs(torch_engine):
    x, scale = torch.randn(2, 5), torch.randn(2, 1)
    expected = torch_engine(x, scale)
    before = torch.get_num_threads()
    with torchkiln.replicate(torch_engine, CPUS, num_threads=2) as pool:
        found = [pool(x, scale), *pool.map([(x, scale)]), *pool.map([[x, scale]])]
        assert all(y["scaled"].equal(expected["scaled"]) and y["sum"].equal(expected["sum"]) for y in found)
        counts = [pool.run_on_replica(lambda replica: torch.get_num_threads(), {}).result() for _ in range(2)]
    assert counts == [1, 1]
    assert torch.get_num_threads() == before
    others: list[int] = []
    fresh = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert others == [before]


def test_at_most_look_ahead_batches_are_read(pool):
    read = []

    def source():
        for index, batch in enumerate(batches(9)):
            read.append(index)
            yield batch

    results = pool.map(source(), look_ahead=3)
    assert read == []
    for done in range(1, 10):
        next(results)
        assert len(read) == min(done + 2, 9)


def test_an_error_has_its_turn_names_batch_and_device_and_the_pool_goes_on(pool, engine):
    given = batches(8)
    given[5] = given[5][:, :2]
    results = pool.map(given)
    for index in range(5):
        assert next(results).equal(engine(given[index]))
    with pytest.raises(errors.InputMismatch, match=r"replica [01] on cpu, batch 5: engine: input .*dimension 1: expected 3, got 2"):
        next(results)
    with pytest.raises(errors.InputMismatch, match=r"replica [01] on cpu: engine"):
        pool(given[5])
    assert [y.equal(engine(x)) for x, y in zip(given[:5], pool.map(given[:5]), strict=True)] == [True] * 5


def test_one_replica_that_fails_does_not_stop_the_other(pool, engine, monkeypatch):
    bad = pool.replicas[1]

    def fail(*args):
        raise RuntimeError("device lost")

    monkeypatch.setattr(bad, "run", fail)
    given = batches(6)
    # Replicas take turns: the one that was free longest is next.
    assert pool(given[0]).equal(engine(given[0]))
    with pytest.raises(ReplicaFailed, match=r"^replica 1 on cpu: RuntimeError: device lost$") as caught:
        pool(given[1])
    assert (caught.value.device, caught.value.replica, caught.value.batch) == (torch.device("cpu"), 1, None)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert pool(given[2]).equal(engine(given[2]))
    with pytest.raises(ReplicaFailed, match="batch") as caught:
        list(pool.map(given))
    assert caught.value.batch in range(6)


def test_errors_of_the_data_come_through_as_they_are(pool):
    def source():
        yield from batches(2)
        raise KeyError("no such file")

    with pytest.raises(KeyError, match="no such file"):
        list(pool.map(source()))


def test_calls_that_have_not_begun_are_dropped_when_the_caller_stops():
    from concurrent.futures import ThreadPoolExecutor

    began, gate = [], threading.Event()

    def work(number):
        began.append(number)
        if number:
            gate.wait(10)
        return number

    with ThreadPoolExecutor(1) as threads:
        results = map_in_order(range(9), lambda number, _: threads.submit(work, number), 4)
        assert next(results) == (0, 0)
        threading.Timer(0.05, gate.set).start()
        results.close()  # waits for number 1, where that has begun
        assert gate.is_set() or began == [0]
    assert began in ([0], [0, 1])


def test_progress(pool):
    seen = []
    with report_progress(lambda *what: seen.append(what)):
        list(pool.map(batches(4)))
    assert seen == [("batches", done, 4) for done in range(5)]


def test_closing(engine):
    pool = torchkiln.replicate(engine, CPUS)
    slow = pool.run_on_replica(lambda replica: time.sleep(0.05) or replica.index, {})
    pool.close()
    assert slow.done()
    pool.close()
    assert (len(pool), pool.replicas) == (0, ())
    assert "closed" in repr(pool)
    for call in (lambda: pool(batches(1)[0]), lambda: pool.map([]), lambda: pool.inputs):
        with pytest.raises(UserError, match="closed"):
            call()


def test_devices(engine, monkeypatch):
    cpu = torch.device("cpu")
    assert find_devices(engine, ["cpu", "cpu"], 4) == [cpu, cpu]
    assert find_devices(engine, "cpu", 4) == [cpu]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_devices(engine, "all", 3) == [cpu] * 3
    assert find_devices(engine, "all", 64) == [cpu] * 8
    for devices in ([], 3, ["nowhere"], [None]):
        with pytest.raises(UserError, match="devices"):
            find_devices(engine, devices, 4)


def test_wrong_requests(engine, model):
    with pytest.raises(UserError, match=r"expected a torchkiln.Engine, got Sequential"):
        torchkiln.replicate(model)
    with pytest.raises(UserError, match="num_threads"):
        torchkiln.replicate(engine, num_threads=0)
    with pytest.raises(UserError, match="output_device"):
        torchkiln.replicate(engine, CPUS, output_device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(TargetMismatch, match="cuda:0"):
            torchkiln.replicate(engine, ["cuda:0"])
    with torchkiln.replicate(engine, ["cpu"]) as pool, pytest.raises(UserError, match="look_ahead"):
        pool.map([], look_ahead=0)


def gpu_engine(model):
    shapes = {f"{name}_shape": (size, 3, 9, 9) for name, size in (("min", 1), ("opt", 2), ("max", 4))}
    engine = torchkiln.compile(model.cuda(), [torchkiln.Input(**shapes)], backend="torch", verify=False)
    model.cpu()
    return engine


def check_on_gpus(engine, model, devices):
    given = batches(7)
    expected = [model(x) for x in given]
    with torchkiln.replicate(engine, devices) as pool:
        assert [replica.stream is not None for replica in pool.replicas] == [True] * len(pool)
        for y, x in zip(pool.map(given), expected, strict=True):
            assert y.device.type == "cpu"
            torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)
        on_gpu = [x.cuda() for x in given]
        for y, x in zip(pool.map(on_gpu), expected, strict=True):
            assert y.device == on_gpu[0].device
            torch.testing.assert_close(y.cpu(), x, rtol=1e-3, atol=1e-3)
    with torchkiln.replicate(engine, devices, output_device="replica") as pool:
        assert {pool(x).device for x in given} <= set(pool.devices)


@pytest.mark.cuda
def test_on_a_gpu(model):
    engine = gpu_engine(model)
    check_on_gpus(engine, model, ["cuda:0"])
    check_on_gpus(engine, model, ["cuda:0", "cuda:0"])
    assert isinstance(torchkiln.replicate(engine).replicas[0].engine, Engine)


@pytest.mark.cuda
def test_on_two_gpus(model):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    check_on_gpus(gpu_engine(model), model, ["cuda:0", "cuda:1"])
