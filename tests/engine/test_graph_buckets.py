"""Batches served with the graph of a larger batch: right rows, zeros in the others, and not at all where the outputs are not batched."""

from __future__ import annotations

import pytest
import torch

from .fake_cuda import FakeCuda

BUCKETS = (1, 4, 8)


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().install(monkeypatch)


def rows(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*sizes, generator=generator), torch.randint(0, 9, sizes[:1], generator=generator)]


def model(x, k):
    """A batched output, one whose dimension 0 is 4 whatever the batch, a size, and a constant of 4."""
    return [x * k[:, None, None], torch.arange(4.0).repeat(3, 1).t(), x.shape[0], 4]


def test_every_batch_has_its_rows(cuda):
    runner = cuda.runner(model, batch_buckets=BUCKETS)
    for batch in (3, 8, 1, 2, 7, 4, 3, 5, 8):
        x, k = rows(batch, 5, 3, seed=batch)
        outputs = runner([x, k])
        expected = model(x, k)
        torch.testing.assert_close(outputs[:2], expected[:2])
        assert outputs[2:] == expected[2:]
    assert sorted(key[0][0] for key in runner.captured_shapes) == [1, 4, 8]
    assert runner.note == ""


def test_rows_that_are_not_of_the_batch_are_zeros(cuda):
    seen = []

    def call(x):
        seen.append(x.clone())
        return [x + 1]

    runner = cuda.runner(call, batch_buckets=(8,))
    for batch in (3, 8, 5, 2, 2, 6):
        runner([torch.full((batch, 2), float(batch))])
        assert seen[-1].shape == (8, 2)
        assert seen[-1][:batch].eq(batch).all()
        assert seen[-1][batch:].eq(0).all()


def test_a_larger_batch_and_batches_that_disagree_run_as_they_are(cuda):
    runner = cuda.runner(lambda x, y: [x + 1, y + 2], batch_buckets=BUCKETS)
    runner([torch.ones(3, 2), torch.ones(3)])
    for first, second in ((9, 9), (2, 3)):
        outputs = runner([torch.ones(first, 2), torch.ones(second)])
        assert [len(output) for output in outputs] == [first, second]
    assert [tuple(map(tuple, key)) for key in runner.captured_shapes] == [((4, 2), (4,)), ((9, 2), (9,)), ((2, 2), (3,))]


@pytest.mark.parametrize("call", [lambda x: [x.t() + 1], lambda x: [x.reshape(-1) + 1], lambda x: [x.sum(1)[:, None] * x.shape[0], 2 * x.shape[0]]])
def test_outputs_that_are_not_batched_get_a_graph_for_each_batch(cuda, call):
    runner = cuda.runner(call, batch_buckets=BUCKETS)
    for batch in (3, 4, 2, 3):
        x = torch.randn(batch, 5)
        torch.testing.assert_close(list(runner([x])), call(x))
    assert sorted(key[0][0] for key in runner.captured_shapes) == [2, 3, 4]


def test_buffers_and_static_outputs_of_a_smaller_batch(cuda):
    runner = cuda.runner(lambda x: [x * 2], batch_buckets=BUCKETS, static_outputs=True)
    runner.prepare([torch.empty(3, 2)])
    (buffer,) = runner.input_buffers((3, 2))
    assert buffer.shape == (3, 2)
    buffer.fill_(5)
    (first,) = runner([buffer])
    assert first.tolist() == [[10, 10]] * 3
    assert runner([buffer])[0] is first
    assert len(runner.captured_shapes) == 1


def test_an_empty_batch(cuda):
    runner = cuda.runner(lambda x: [x * 2], batch_buckets=BUCKETS)
    runner([torch.ones(1, 2)])
    assert runner([torch.ones(0, 2)])[0].shape == (0, 2)


def test_more_buckets_than_shapes_to_keep(cuda):
    runner = cuda.runner(lambda x: [x * 2], batch_buckets=(1, 2, 3), max_shapes=1)
    for batch in (1, 2, 3):
        runner([torch.ones(batch)])
    assert len(runner.captured_shapes) == 3


@pytest.mark.cuda
def test_buckets_on_the_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    from torchkiln.engine.cuda_graph import CudaGraphRunner

    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 7, 3).to(device).eval()

    def call(inputs):
        features = layer(inputs[0]).relu()
        return [features.mean((2, 3)), features]

    runner = CudaGraphRunner(call, device, batch_buckets=BUCKETS)
    runner.prepare([torch.empty(8, 3, 9, 11, device=device)])
    for batch in (8, 3, 1, 5, 7, 2, 9, 4):
        x = torch.randn(batch, 3, 9, 11, device=device)
        for output, expected in zip(runner([x]), call([x]), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert sorted(key[0][0] for key in runner.captured_shapes) == [1, 4, 8, 9]
