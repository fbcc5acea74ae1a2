"""Where a graph's kernels hold a buffer's address, other addresses there, and which buffers may be moved, with a stand-in for the driver."""

from __future__ import annotations

import ctypes

import pytest
import torch

from torchkiln.engine import graph_pointers, graph_proof
from torchkiln.engine.graph_pointers import MOST_NODES, GraphPointers, KernelParams, NoPointers, words_within
from torchkiln.engine.graph_proof import prove, snapshot, spoil, written

from .fake_driver import CHILD_GRAPH, MEMCPY, FakeDriver, FakeExec, at, word


class Stream:
    def synchronize(self) -> None: ...


@pytest.fixture
def graph(monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr(graph_pointers, "library", lambda: driver)
    monkeypatch.setattr(graph_proof, "segment_of", lambda address: (address, 28))  # what each output below has
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    return FakeExec(driver)


def seven(start=0.5):
    return torch.arange(7.0) + start


def kernel(function, like):
    """Reads the memory of its first parameters and writes that of its last."""

    def run(*parameters):
        *read, write = [at(parameter, like) for parameter in parameters]
        write.copy_(function(*read))

    return run


def buffers(*tensors):
    return [(value.data_ptr(), value.numel() * value.itemsize) for value in tensors]


def test_the_layout_is_the_drivers():
    assert ctypes.sizeof(KernelParams) == 72
    assert (KernelParams.parameters.offset, KernelParams.extra.offset, KernelParams.kernel.offset) == (40, 48, 56)


def test_words_are_found_at_aligned_places_alone():
    start, data = 0x7F0000001000, bytearray(45)
    data[8:16] = word(start)
    data[19:27] = word(start)
    data[32:40] = word(start + 99)
    assert words_within(bytes(data), [(start - 50, 50), (start, 100)]) == [(8, 1, 0), (32, 1, 99)]
    assert words_within(bytes(data), [(start + 100, 100), (start, 0)]) == []


def test_addresses_are_written_in_every_place_with_one_call_a_node(graph):
    seen = []
    x, y, other = seven(), seven(1), seven(2)
    graph.add(lambda *p: seen.append(p), word(3), word(7) + word(x, 8) + word(y), word(x, 24))
    graph.add(lambda *p: seen.append(p), word(x))
    graph.add(lambda *p: seen.append(p), word(y))
    pointers = GraphPointers(graph, buffers(x, y))
    assert pointers.problems == ["", ""]
    pointers.bind([other.data_ptr(), y.data_ptr()])
    pointers.bind([other.data_ptr(), y.data_ptr()])
    assert graph.driver.counts["set"] == 2
    graph.replay()
    assert seen == [(word(3), word(7) + word(other, 8) + word(y), word(other, 24)), (word(other),), (word(y),)]
    pointers.bind([x.data_ptr(), other.data_ptr()])
    assert graph.driver.counts["set"] == 5
    graph.replay()
    assert seen[3:] == [(word(3), word(7) + word(x, 8) + word(other), word(x, 24)), (word(x),), (word(other),)]


def test_what_the_nodes_show_against_it(graph):
    x, y, z = seven(), seven(), seven()
    graph.add(print, word(x), kind=MEMCPY)
    for _ in range(MOST_NODES + 1):
        graph.add(print, word(x), word(y))
    problems = GraphPointers(graph, buffers(x, y, z)).problems
    assert problems == ["copied or filled by no kernel", f"{MOST_NODES + 1} kernels have its address", "no kernel has its address"]


def test_a_graph_in_a_graph_and_an_error_of_the_driver(graph):
    x = seven()
    graph.add(print, word(x))
    pointers = GraphPointers(graph, buffers(x))
    graph.driver.fail = 700
    with pytest.raises(NoPointers, match="error 700"):
        pointers.bind([x.data_ptr() + 256])
    graph.add(print, kind=CHILD_GRAPH)
    with pytest.raises(NoPointers, match="graphs of its own"):
        GraphPointers(graph, buffers(x))


def test_all_may_be_moved(graph):
    x, k, y = seven(), torch.tensor([3, 1, 1, 0, 2, 2, 6]), torch.empty(7)
    graph.add(lambda a, b, c: at(c, y).copy_(at(a, x)[at(b, k)]), word(x), word(k), word(y))
    before = x.clone(), k.clone()
    pointers, reasons = prove(graph, [x, k], [y], [False, False])
    assert reasons == ["", "", ""]
    assert torch.equal(x, before[0])
    assert torch.equal(k, before[1])
    graph.replay()  # in its own memory again
    assert torch.equal(y, x[k])
    a, b, c = seven(9), k.flip(0), torch.empty(7)
    pointers.bind([a.data_ptr(), b.data_ptr(), c.data_ptr()])
    graph.replay()
    assert torch.equal(c, a[b])


def test_an_input_that_is_read_without_its_address(graph):
    x, y, out = seven(), seven(), torch.empty(7)
    graph.add(kernel(lambda a, b: a + b + x.relu().nan_to_num(), out), word(x), word(y), word(out))
    assert prove(graph, [x, y], [out], [False, False])[1] == ["it is also read in a way that the parameters of kernels do not show", "", ""]


def test_an_input_that_is_written(graph):
    x, y, out = seven(), seven(), torch.empty(7)

    def run(a, b, c):
        at(a, x).add_(1)
        at(c, out).copy_(at(b, y) + 1)

    graph.add(run, word(x), word(y), word(out))
    assert prove(graph, [x, y], [out], [False, False])[1] == ["it is written", "", ""]
    assert prove(graph, [y, x], [out], [True, False])[1] == ["it is written", "it is written", ""]


def test_what_was_written_between():
    values = [seven(), seven(), torch.tensor([float("nan"), -0.0]), seven(), torch.tensor(2)]
    before = snapshot(values)
    values[0].relu_()  # the same numbers
    at(word(values[1]), values[1])[3] = 99  # not by torch
    assert written(values, before) == [True, True, False, False, False]
    values[2].view(-1)[1] = 0.0
    assert written(values, before)[2]


def test_integers_that_are_all_alike_show_nothing(graph):
    k, out = torch.full((7,), 4), torch.empty(7)
    graph.add(lambda a, b: at(b, out).copy_(at(a, k)), word(k), word(out))
    assert prove(graph, [k], [out], [False])[1] == ["its values are all alike: nothing shows where it is read", ""]


def test_an_output_that_is_also_written_without_its_address(graph):
    x, out = seven(), torch.empty(7)
    graph.add(lambda a, b: (at(b, out)[:5].copy_(at(a, x)[:5]), out[5:].copy_(at(a, x)[5:])), word(x), word(out))
    assert prove(graph, [x], [out], [False])[1] == ["", "it is also written in a way that the parameters of kernels do not show"]


def test_an_output_where_something_larger_was(graph, monkeypatch):
    memory = torch.zeros(28)
    out = torch.frombuffer((ctypes.c_char * 28).from_address(memory.data_ptr() + 28), dtype=torch.float32)
    x = seven()
    monkeypatch.setattr(graph_proof, "segment_of", lambda address: (memory.data_ptr(), 28 * 4))
    larger = torch.empty(9)
    graph.add(lambda a: at(a, larger).fill_(3), word(out))
    graph.add(kernel(lambda a: a + 1, out), word(x), word(out))
    assert prove(graph, [x], [out], [False])[1] == ["", "something larger was in its place before"]
    larger = torch.empty(7)
    assert prove(graph, [x], [out], [False])[1] == ["", ""]


def test_an_output_of_unknown_memory_or_a_part_of_something(graph, monkeypatch):
    x, whole = seven(), torch.empty(9)
    graph.add(kernel(lambda a: a + 1, x), word(x), word(whole))
    assert prove(graph, [x], [whole[:7]], [False])[1] == ["", "it is a part of something else"]
    monkeypatch.setattr(graph_proof, "segment_of", lambda address: (0, 0))
    assert prove(graph, [x], [whole], [False])[1] == ["", "its memory is not of torch's allocator"]


@pytest.mark.parametrize("lazy", [torch._neg_view, torch.conj])
def test_an_output_whose_sign_is_not_in_its_memory_stays(graph, lazy):
    x = seven().to(torch.complex64 if lazy is torch.conj else torch.float32)
    memory = torch.empty_like(x)
    graph.add(kernel(lambda a: a * 2, x), word(x), word(memory))
    assert prove(graph, [x], [lazy(memory)], [False])[1] == ["", "its memory holds conjugates or negatives of its values"]


def test_outputs_that_share_memory_stay(graph):
    x, both = seven(), torch.empty(7)
    graph.add(kernel(lambda a: a + 1, x), word(x), word(both))
    shares = "shares memory with another"
    assert prove(graph, [x], [both, both[2:]], [False])[1] == ["", shares, shares]
    assert prove(graph, [x], [x.view(7, 1), both], [False])[1] == [shares, shares, ""]


def test_a_graph_that_is_not_deterministic(graph):
    x, out = seven(), torch.empty(7)
    graph.add(kernel(lambda a: a + torch.rand(7), x), word(x), word(out))
    with pytest.raises(NoPointers, match="two replays differ"):
        prove(graph, [x], [out], [False])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3, 5), (0, 2)])
def test_spoiled_values_differ_and_integers_stay_in_range(dtype, shape):
    value = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for other in spoil(value):
        assert (other.dtype, other.shape) == (dtype, value.shape)
        assert value.numel() == 0 or not torch.equal(other.view(torch.uint8) if shape else other, value.view(torch.uint8) if shape else value)
        if not dtype.is_floating_point and dtype is not torch.bool:
            assert sorted(map(str, other.flatten().tolist())) == sorted(map(str, value.flatten().tolist()))
    assert not spoil(torch.full((4,), 3, dtype=torch.int32))
