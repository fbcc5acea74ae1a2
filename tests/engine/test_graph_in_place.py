"""CudaGraphRunner where graphs read the caller's inputs and write fresh outputs, with stand-ins for CUDA and its driver."""

from __future__ import annotations

import pytest
import torch

from torchkiln.engine import graph_proof
from torchkiln.engine.graph_plan import ALIGNMENT_BYTES

from .fake_cuda import FakeCuda
from .fake_driver import FakeDriver


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(FakeDriver()).install(monkeypatch)


def aligned(value: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """A contiguous copy at ``shift`` bytes behind an aligned address."""
    size = value.numel() * value.itemsize
    memory = torch.empty(size + 2 * ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT_BYTES + shift
    place = memory[start : start + size].view(value.dtype).view(value.shape)
    return place.copy_(value)


def model(x, k):
    return [x[k] * 2, 7, x.sum(1)]


def case(seed: int, rows: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return [aligned(torch.randn(rows, 3, generator=generator)), aligned(torch.randperm(rows, generator=generator))]


def own_of(runner):
    return next(iter(runner._captured.values()))


def assert_right(outputs, inputs):
    expected = model(*inputs)
    assert outputs[1] == expected[1]
    torch.testing.assert_close([outputs[0], outputs[2]], [expected[0], expected[2]], rtol=0, atol=0)


def test_inputs_are_read_and_outputs_written_where_they_are(cuda):
    runner = cuda.runner(model)
    runner(case(0))
    captured = own_of(runner)
    assert (captured.movable_inputs, captured.movable_outputs, captured.note) == ((0, 1), (0, 1), "")
    for own in (*captured.inputs, *captured.tensors):
        own.fill_(3)  # must be neither read nor written
    results = []
    for seed in range(4):
        inputs = case(seed)
        results.append((runner(inputs), inputs))
    for outputs, inputs in results:
        assert_right(outputs, inputs)
    assert all(own.eq(3).all() for own in (*captured.inputs, *captured.tensors))


def test_the_same_addresses_are_not_set_again(cuda):
    runner = cuda.runner(lambda x: [x * 2], static_outputs=True)
    x = aligned(torch.ones(3))
    runner([x])
    cuda.driver.counts.clear()
    (y,) = runner([x])
    assert cuda.driver.counts["set"] == 0
    x.fill_(4)
    assert runner([x])[0] is y
    assert y.tolist() == [8, 8, 8]
    (buffer,) = runner.input_buffers((3,))
    buffer.fill_(5)
    assert runner([buffer])[0].tolist() == [10, 10, 10]
    runner([buffer])
    assert cuda.driver.counts["set"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: aligned(x, 16),
        lambda x: aligned(x.t().contiguous()).t(),
        lambda x: aligned(x.double()),
        lambda x: aligned(x[:1]).expand(x.shape),
        lambda x: torch._neg_view(aligned(x)),
    ],
)
def test_what_cannot_be_read_where_it_is_is_copied(cuda, change):
    runner = cuda.runner(model)
    runner(case(0))
    own = own_of(runner).inputs[0]
    for seed in range(3):
        x, k = case(seed)
        before = own.clone()
        assert_right(runner([x, k]), [x, k])
        assert torch.equal(own, before)
        x = change(x)
        assert_right(runner([x, k]), [x.float(), k])
        assert torch.equal(own, x.float())


def test_the_same_tensor_twice(cuda):
    runner = cuda.runner(lambda x, y: [x + 2 * y])
    for _ in range(3):
        x, y = aligned(torch.randn(5)), aligned(torch.randn(5))
        torch.testing.assert_close(runner([x, y])[0], x + 2 * y)
        torch.testing.assert_close(runner([x, x])[0], x + 2 * x)


def test_an_input_that_the_call_writes_is_copied(cuda):
    runner = cuda.runner(lambda x, y: [x.relu_() + y])
    x, y = aligned(torch.tensor([1.0, -2.0])), aligned(torch.ones(2))
    runner([x.abs(), y])
    assert own_of(runner).movable_inputs == (1,)
    assert "input 0: it is written" in own_of(runner).note
    assert runner([x, y])[0].tolist() == [2, 1]
    assert x.tolist() == [1, -2]


def test_an_output_that_is_an_input_is_copied(cuda):
    runner = cuda.runner(lambda x, y: [x, x + y])
    for value in (1.0, 2.0, 3.0):
        x, y = aligned(torch.full((3,), value)), aligned(torch.ones(3))
        outputs = runner([x, y])
        assert [output.tolist() for output in outputs] == [[value] * 3, [value + 1] * 3]
        assert outputs[0].data_ptr() not in (x.data_ptr(), own_of(runner).inputs[0].data_ptr())
    assert (own_of(runner).movable_inputs, own_of(runner).movable_outputs) == ((1,), (1,))


def test_a_static_output_as_an_input_is_copied(cuda):
    """The graph would write it while it reads it."""
    runner = cuda.runner(lambda x: [x.flip(0) + 1], static_outputs=True)
    (y,) = runner([aligned(torch.arange(4.0))])
    captured = own_of(runner)
    assert captured.movable_outputs == (0,)
    captured.inputs[0].fill_(-1)
    held = aligned(y)
    captured.tensors[0] = captured.outputs[0] = held  # aligned, so that nothing else speaks against it
    runner._own_outputs.add(held.untyped_storage().data_ptr())
    runner([held])
    assert captured.inputs[0].tolist() == [4, 3, 2, 1]


def test_the_outputs_of_a_dropped_graph_are_forgotten(cuda):
    runner = cuda.runner(lambda x: [x + 1], max_shapes=1)
    for size in (3, 4, 5):
        runner([aligned(torch.ones(size))])
    assert runner._own_outputs == {value.untyped_storage().data_ptr() for value in own_of(runner).tensors}


def test_static_outputs_and_fresh_ones_in_turns(cuda):
    runner = cuda.runner(model)
    kept = []
    for seed, static in enumerate((False, True, True, False, True, False)):
        runner.static_outputs = static
        inputs = case(seed)
        outputs = runner(inputs)
        assert_right(outputs, inputs)
        assert (outputs[0] is own_of(runner).tensors[0]) == static
        if not static:
            kept.append((outputs, inputs))
    for outputs, inputs in kept:
        assert_right(outputs, inputs)


def test_smaller_batches_use_the_graphs_own_memory(cuda):
    runner = cuda.runner(lambda x: [x * 2], batch_buckets=(2, 5))
    kept = []
    for rows in (3, 5, 2, 4, 5, 1, 5, 3):
        x = aligned(torch.randn(rows, 3))
        kept.append((runner([x])[0], x))
        large = next(captured for key, captured in runner._captured.items() if key[0][0] == 5)
        assert large.inputs[0][large.rows :].eq(0).all()
    for y, x in kept:
        assert torch.equal(y, x * 2)


def test_a_driver_that_refuses_later_means_copies(cuda):
    runner = cuda.runner(model)
    runner(case(0))
    cuda.driver.fail = 1
    for seed in range(3):
        inputs = case(seed)
        assert_right(runner(inputs), inputs)
    assert own_of(runner).pointers is None
    assert cuda.driver.counts["instantiate"] == 2


def test_a_driver_that_refuses_during_the_trial_means_copies(cuda):
    runner = cuda.runner(model)
    cuda.driver.fail = 1
    for seed in range(2):
        inputs = case(seed)
        assert_right(runner(inputs), inputs)
    assert own_of(runner).note == "cuGraphExecKernelNodeSetParams: error 1"
    assert cuda.driver.counts["instantiate"] == 2  # what was set before the error is undone


def test_a_graph_that_is_not_deterministic_is_copied(cuda):
    runner = cuda.runner(lambda x: [x + 0 * torch.rand(3) + (torch.rand(3) > 2), torch.rand(3)])
    x = aligned(torch.ones(3))
    assert runner([x])[0].tolist() == [1, 1, 1]
    assert own_of(runner).note == "two replays differ"
    assert runner([x + 1])[0].tolist() == [2, 2, 2]


def test_it_can_be_switched_off(cuda):
    runner = cuda.runner(model, rebind=False)
    inputs = case(1)
    assert_right(runner(inputs), inputs)
    assert torch.equal(own_of(runner).inputs[0], inputs[0])
    assert not cuda.driver.graphs


@pytest.mark.parametrize("rebind", [True, False])
def test_the_graphs_own_inputs_in_each_others_places(cuda, rebind):
    runner = cuda.runner(lambda x, y: [x - 2 * y], rebind=rebind)
    runner([aligned(torch.full((4,), 7.0)), aligned(torch.full((4,), 1.0))])
    x, y = own_of(runner).inputs
    x.fill_(3), y.fill_(10)
    assert runner([y, x])[0].tolist() == [4.0] * 4
    x.fill_(3), y.fill_(10)
    assert runner([y[:4], aligned(torch.ones(4))])[0].tolist() == [8.0] * 4


def test_memory_cut_from_a_large_piece_is_left_alone(cuda, monkeypatch):
    monkeypatch.setattr(graph_proof, "_MOST_AROUND", 1)
    monkeypatch.setattr(graph_proof, "segment_of", lambda address: (address - 64, 1 << 20))
    runner = cuda.runner(lambda x: [x + 1])
    assert runner([aligned(torch.ones(3))])[0].tolist() == [2.0] * 3
    assert own_of(runner).movable_outputs == ()
    assert "too large to try" in own_of(runner).note
