"""CudaGraphRunner's own logic, with a stand-in for CUDA: what is copied, waited for, kept and given up."""

from __future__ import annotations

import pytest
import torch

from torchkiln.errors import UserError

from .fake_cuda import FakeCuda


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().install(monkeypatch)


def double(x):
    return [x * 2]


def test_a_call_is_one_replay_one_record_and_no_wait(cuda):
    runner = cuda.runner(double)
    runner([torch.zeros(3)])
    cuda.counts.clear()
    x = torch.randn(3)
    (y,) = runner([x])
    torch.testing.assert_close(y, x * 2)
    assert cuda.counts == {"replay": 1, "record 0": 1}


def test_another_stream_waits_once(cuda):
    runner = cuda.runner(double)
    for cuda.stream in (0, 0, 7, 7, 0):
        runner([torch.ones(3)])
    assert (cuda.counts["wait 0"], cuda.counts["wait 7"]) == (2, 1)
    assert (cuda.counts["record 0"], cuda.counts["record 7"]) == (3, 2)


def test_a_per_thread_stream_waits_each_time(cuda):
    runner = cuda.runner(double)
    cuda.stream = 2
    for _ in range(3):
        runner([torch.ones(3)])
    assert cuda.counts["wait 2"] == 3


def test_another_current_device_and_the_callers_own_capture(cuda):
    runner = cuda.runner(double)
    cuda.device = 1
    assert runner([torch.ones(3)])[0].tolist() == [2, 2, 2]
    assert cuda.counts["replay"] == 1
    assert cuda.device == 1
    cuda.device, cuda.caller_captures = 0, True
    runner([torch.ones(3)])
    assert cuda.counts["replay"] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_number_of_inputs_and_outputs(cuda, count):
    runner = cuda.runner(lambda *xs: [xs[0] + 1, 7, *[x * 3 for x in xs[1:]]])
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = [torch.randn(2 + i, 3) for i in range(count)]
        outputs = runner(inputs)
        assert outputs[1] == 7
        torch.testing.assert_close([outputs[0], *outputs[2:]], [inputs[0] + 1, *[x * 3 for x in inputs[1:]]])
    kept = [value.clone() for value in outputs if isinstance(value, torch.Tensor)]
    runner([torch.zeros_like(x) for x in inputs])
    torch.testing.assert_close([value for value in outputs if isinstance(value, torch.Tensor)], kept)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_buffers_are_not_copied_into_themselves(cuda, count, monkeypatch):
    runner = cuda.runner(lambda *xs: [sum(xs)])
    runner([torch.zeros(4)] * count)
    buffers = runner.input_buffers(*[(4,)] * count)
    assert runner.input_buffers(*[(4,)] * count) is buffers
    for index, buffer in enumerate(buffers):
        buffer.fill_(index + 1)
    copied = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, value, f=torch.Tensor.copy_: copied.append(self) or f(self, value))
    monkeypatch.setattr(torch, "_foreach_copy_", None)
    (total,) = runner(buffers)
    assert total.tolist() == [sum(range(count + 1))] * 4
    assert not [value for value in copied if any(value is buffer for buffer in buffers)]


def test_static_outputs_can_be_switched(cuda):
    runner = cuda.runner(double)
    first, second = runner([torch.ones(3)])[0], runner([torch.ones(3)])[0]
    assert first.data_ptr() != second.data_ptr()
    runner.static_outputs = True
    third = runner([torch.ones(3)])[0]
    (fourth,) = runner([torch.full((3,), 5.0)])
    assert third is fourth
    assert third.tolist() == [10, 10, 10]


def test_prepare_captures_and_keeps(cuda):
    runner = cuda.runner(double, max_shapes=2)
    runner.prepare([torch.empty(5)])
    calls = cuda.counts["call"]
    runner([torch.ones(5)])
    assert cuda.counts["call"] == calls
    for size in (1, 2, 3):
        runner([torch.ones(size)])
    assert sorted(key[0][0] for key in runner.captured_shapes) == [2, 3, 5]
    with pytest.raises(UserError, match=r"call once with them. Captured: "):
        runner.input_buffers((1,))
    assert runner.input_buffers((5,))[0].shape == (5,)


def test_inference_mode_at_the_first_call_does_not_stay(cuda):
    runner = cuda.runner(double)
    with torch.inference_mode():
        runner([torch.ones(3)])
    assert runner([torch.full((3,), 4.0)])[0].tolist() == [8, 8, 8]
    assert not any(buffer.is_inference() for buffer in runner.input_buffers((3,)))


def test_gradients_stay_out_and_the_callers_mode_stays(cuda):
    runner = cuda.runner(double)
    for _ in range(2):
        (y,) = runner([torch.ones(3, requires_grad=True)])
        assert not y.requires_grad
        assert torch.is_grad_enabled()
    with torch.no_grad():
        runner([torch.ones(3)])
        assert not torch.is_grad_enabled()


def test_a_failed_capture_is_cleaned_up(cuda):
    def call(x):
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return [x * 2]

    runner = cuda.runner(call)
    for _ in range(2):
        assert runner([torch.ones(2)])[0].tolist() == [2, 2]
    assert runner.note == "no CUDA graph: capture failed: operation not permitted when stream is capturing"
    assert (cuda.counts["end pool"], cuda.counts["release pool"], cuda.counts["reset"]) == (1, 1, 1)
    assert cuda.stream == 0
    with pytest.raises(UserError, match="capture failed"):
        runner.input_buffers((2,))


def test_a_graph_is_given_up_after_its_last_call_is_done(cuda):
    runner = cuda.runner(double, max_shapes=1)
    runner([torch.ones(1)])
    assert cuda.counts["synchronize"] == 0
    runner([torch.ones(2)])
    assert cuda.counts["synchronize"] == 1
    assert [key[0][0] for key in runner.captured_shapes] == [2]
    del runner
    assert cuda.counts["synchronize"] == 2
