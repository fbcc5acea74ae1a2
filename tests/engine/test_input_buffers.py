"""Engine.input_buffers and Engine.static_outputs, and what a call is checked for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchkiln.engine.call_check import CallCheck
from torchkiln.engine.cuda_graph import CudaGraphRunner
from torchkiln.engine.engine import Engine
from torchkiln.engine.schedule import Schedule
from torchkiln.engine.structure import Structure
from torchkiln.errors import InputMismatch, TargetMismatch, UserError
from torchkiln.inputs import Input

from .fake_cuda import FakeCuda
from .tiny_engine import CPU, tiny_contents

DYNAMIC = Input(min_shape=(1, 19), opt_shape=(5, 19), max_shape=(7, 19))


def one_segment(*specs, equal_dims=()):
    """Contents of one segment that takes and returns as many tensors as there are specs."""
    contents, count = tiny_contents(), len(specs)
    values = tuple(spec.random() for spec in specs)
    segment = dataclasses.replace(contents.segments[0], inputs=tuple(range(count)), outputs=tuple(range(count, 2 * count)))
    return dataclasses.replace(
        contents,
        inputs=specs,
        args_structure=Structure.of((values, {}))[0],
        outputs_structure=Structure.of(values[0] if count == 1 else values)[0],
        output_names=tuple(f"y{i}" for i in range(count)),
        output_slots=segment.outputs,
        slot_count=2 * count,
        segments=(segment,),
        equal_dims=equal_dims,
    )


@pytest.fixture
def engine(monkeypatch):
    """An engine that doubles, on a stand-in for CUDA."""
    engine = Engine(one_segment(DYNAMIC), runners=[lambda inputs: [inputs[0] * 2]])
    engine._run = FakeCuda().install(monkeypatch).runner(lambda x: [x * 2])
    engine._run.prepare([spec.random() for spec in engine.inputs])
    monkeypatch.setattr(Engine, "_graphs", lambda self, what: self._run)
    return engine


def test_buffers_are_the_opt_shapes_and_are_read(engine):
    (x,) = engine.input_buffers
    assert x.shape == (5, 19)
    assert engine.input_buffers[0] is x
    x.fill_(3)
    assert engine(x).eq(6).all()
    assert engine(torch.ones(2, 19)).eq(2).all()
    assert engine(x).eq(6).all()


def test_static_outputs(engine):
    assert engine.static_outputs is False
    x = torch.ones(5, 19)
    assert engine(x) is not engine(x)
    engine.static_outputs = True
    assert engine.static_outputs is True
    first = engine(x)
    assert engine(x + 1) is first
    assert first.eq(4).all()
    engine.static_outputs = False
    assert engine(x) is not engine(x)


def test_the_cpu_has_neither():
    engine = Engine(tiny_contents())
    with pytest.raises(UserError, match=r"engine.input_buffers: only where calls are replayed from a CUDA graph; this engine runs on cpu"):
        _ = engine.input_buffers
    with pytest.raises(UserError, match=r"engine.static_outputs: only where .* this engine runs on cpu"):
        engine.static_outputs = True
    engine.static_outputs = False
    assert engine.static_outputs is False


def test_an_engine_for_another_machine_has_neither():
    engine = Engine(dataclasses.replace(tiny_contents(), device="cuda", targets=("sm_10",)), may_be_absent=True)
    assert engine.static_outputs is False
    for ask in (lambda: engine.input_buffers, lambda: setattr(engine, "static_outputs", True)):
        with pytest.raises(TargetMismatch):
            ask()


@pytest.mark.parametrize(
    ("specs", "equal_dims", "buckets"),
    [
        ((DYNAMIC,), (), (1, 8)),
        ((DYNAMIC, DYNAMIC), (((0, 0), (1, 0)),), (1, 8)),
        ((DYNAMIC, DYNAMIC), (), ()),
        ((DYNAMIC, Input((5, 19))), (), ()),
        ((Input((5, 19)),), (), ()),
        ((Input(min_shape=(1, 2), opt_shape=(5, 19), max_shape=(7, 19)),), (), ()),
        ((Input(min_shape=(5, 2), opt_shape=(5, 19), max_shape=(5, 19)),), (), ()),
    ],
)
def test_buckets_are_for_one_batch_that_is_dimension_0(specs, equal_dims, buckets):
    def runner(inputs):
        return inputs

    runner.batch_buckets = (1, 8)
    assert Schedule(one_segment(*specs, equal_dims=equal_dims), [runner]).batch_buckets == buckets


def test_a_backend_without_buckets_and_a_schedule_of_several():
    assert Schedule(one_segment(DYNAMIC), [lambda inputs: inputs]).batch_buckets == ()
    assert Schedule(tiny_contents(), [None, None]).batch_buckets == ()


def test_shapes_that_were_right_do_not_excuse_others():
    specs = (DYNAMIC, DYNAMIC)
    check = CallCheck(specs, ["a", "b"], CPU, (((0, 0), (1, 0)),))
    for _ in range(2):
        assert len(check([torch.ones(3, 19)] * 2)) == 2
        with pytest.raises(InputMismatch, match="same size"):
            check([torch.ones(3, 19), torch.ones(4, 19)])
        with pytest.raises(InputMismatch, match="expected 1 to 7, got 8"):
            check([torch.ones(8, 19)] * 2)
        with pytest.raises(InputMismatch, match="requires grad"):
            check([torch.ones(3, 19), torch.ones(3, 19, requires_grad=True)])
        assert check([torch.ones(3, 19), torch.ones(3, 19, dtype=torch.double)])[1].dtype is torch.float32
        with pytest.raises(InputMismatch, match="dtype"):
            check([torch.ones(3, 19), torch.ones(3, 19, dtype=torch.int64)])


@pytest.mark.cuda
@pytest.mark.parametrize("static", [False, True])
def test_on_the_gpu(static):
    import torchkiln

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(19, 17), torch.nn.ReLU()).eval().cuda()
    engine = torchkiln.compile(model, [Input((5, 19))], enabled_precisions={torch.float32}, backend="torch")
    assert isinstance(engine._run, CudaGraphRunner)
    assert len(engine._run.captured_shapes) == 1
    engine.static_outputs = static
    (buffer,) = engine.input_buffers
    for _ in range(3):
        x = torch.randn(5, 19, device="cuda")
        buffer.copy_(x)
        torch.testing.assert_close(engine(buffer), model(x).detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(engine(x), model(x).detach(), rtol=1e-3, atol=1e-4)
    assert (engine(x) is engine(x)) == static
