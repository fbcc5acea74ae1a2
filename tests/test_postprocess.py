"""with_postprocess: what is computed behind a model, in PyTorch, in an exported program and in an engine."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln import postprocess, with_postprocess
from torchkiln.errors import UserError

Pair = namedtuple("Pair", ["first", "second"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 3, 7, 6)


CASES = {
    "softmax": ([postprocess.softmax()], lambda y: y.softmax(1)),
    "softmax along another": ([postprocess.softmax(dim=-1)], lambda y: y.softmax(-1)),
    "select": ([postprocess.select(1)], lambda y: y[:, 1:2]),
    "select some": ([postprocess.select(-1, 0)], lambda y: y[:, [4, 0]]),
    "select neighbours": ([postprocess.select(2, 3)], lambda y: y[:, 2:4]),
    "select without": ([postprocess.select(3, keepdim=False)], lambda y: y[:, 3]),
    "select elsewhere": ([postprocess.select(3, dim=2)], lambda y: y[:, :, 3:4]),
    "argmax": ([postprocess.argmax()], lambda y: y.argmax(1)),
    "argmax kept": ([postprocess.argmax(keepdim=True, dtype=torch.uint8)], lambda y: y.argmax(1, keepdim=True).to(torch.uint8)),
    "threshold": ([postprocess.sigmoid(), postprocess.threshold(0.5)], lambda y: y > 0),
    "threshold as number": ([postprocess.threshold(0.1, dtype=torch.uint8)], lambda y: (y > 0.1).to(torch.uint8)),
    "function": ([torch.tanh, lambda y: y * 2], lambda y: y.tanh() * 2),
    "module": ([nn.Softmax(1), postprocess.select(0)], lambda y: y.softmax(1)[:, :1]),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_and_their_dtypes(model, x, case):
    steps, reference = CASES[case]
    expected, wrapped = reference(model(x)), with_postprocess(model, *steps)
    found = wrapped(x)
    assert found.dtype is expected.dtype
    torch.testing.assert_close(found, expected)
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(wrapped, (x,), dynamic_shapes={"input": {0: batch}}).module()
    torch.testing.assert_close(exported(x[:2]), reference(model(x[:2])))


def test_channels_counted_from_the_end_of_a_dynamic_dimension(model, x):
    for channels in ((-1,), (-2, -1), (-1, 0), (0, -1)):
        wrapped = with_postprocess(model, postprocess.select(*channels, dim=2))
        exported = torch.export.export(wrapped, (x,), dynamic_shapes={"input": {2: torch.export.Dim("height", min=3, max=64)}}).module()
        wide = torch.randn(3, 3, 9, 6)
        torch.testing.assert_close(exported(wide), model(wide)[:, :, list(channels)])


def test_an_engine_computes_them_and_gives_what_is_left(model, x):
    image = torchkiln.Input(min_shape=(1, 3, 7, 6), opt_shape=(2, 3, 7, 6), max_shape=(4, 3, 7, 6))
    for steps, reference, dtype in (
        ([postprocess.softmax(), postprocess.select(1)], lambda y: y.softmax(1)[:, 1:2], torch.float32),
        ([postprocess.argmax(dtype=torch.uint8)], lambda y: y.argmax(1), torch.uint8),
    ):
        engine = torchkiln.compile(with_postprocess(model, *steps), [image], backend="openvino")
        found = engine(x)
        assert found.dtype is dtype
        torch.testing.assert_close(found, reference(model(x)).to(dtype), rtol=1e-4, atol=1e-5)
        assert [segment.backend for segment in engine.report().segments] == ["openvino"]
    assert engine.report().model == "Sequential + argmax(dim=1)"


def test_the_model_stays_as_it_is(model):
    keys = list(model.state_dict())
    for training in (False, True):
        model.train(training)
        wrapped = with_postprocess(model, postprocess.softmax())
        assert wrapped.training is model.training is model[1].training is training
    assert wrapped.model is model
    assert list(model.state_dict()) == keys
    assert list(wrapped.state_dict()) == [f"model.{key}" for key in keys]
    wrapped.eval()
    assert not model[1].training
    mixed = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.BatchNorm2d(1))
    with_postprocess(mixed, postprocess.softmax())
    assert [part.training for part in mixed] == [False, True]


def test_arguments_have_the_models_names():
    class Scaled(nn.Module):
        def forward(self, image, *, scale):
            return image * scale

    wrapped = with_postprocess(Scaled().eval(), postprocess.sigmoid())
    engine = torchkiln.compile(wrapped, [torch.randn(2, 3)], kwarg_inputs={"scale": torch.randn(2, 1)}, backend="torch", verify=False)
    assert [spec.name for spec in engine.inputs] == ["image", "scale"]
    image, scale = torch.randn(2, 3), torch.randn(2, 1)
    torch.testing.assert_close(engine(image, scale=scale), (image * scale).sigmoid())


def test_copies_and_pickles(model, x):
    wrapped = with_postprocess(model.eval(), nn.Conv2d(5, 2, 1), postprocess.softmax()).eval()
    wrapped.note = "kept"
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert other.model is not model
        assert (other.note, other.training, other.original_name) == ("kept", False, wrapped.original_name)
        assert other.state_dict().keys() == wrapped.state_dict().keys()
        torch.testing.assert_close(other(x), wrapped(x))


def test_nested_outputs(x):
    class Nested(nn.Module):
        def forward(self, x, key="out"):
            return {key: x, "aux": (x * 2, [x + 1]), "pair": Pair(x, -x)}

    found = with_postprocess(Nested(), postprocess.select(0))(x, key="main")
    assert found["main"].equal(x[:, :1])
    assert found["aux"][1][0].equal(x[:, :1] + 1)
    assert isinstance(found["pair"], Pair)
    assert found["pair"].second.equal(-x[:, :1])
    assert with_postprocess(Nested(), postprocess.pick("aux"), postprocess.pick(0))(x).equal(x * 2)
    with pytest.raises(UserError, match=r"pick\('mask'\): .*'out', 'aux', 'pair'"):
        with_postprocess(Nested(), postprocess.pick("mask"))(x)


def test_steps_have_names(model):
    wrapped = with_postprocess(model, postprocess.softmax(), postprocess.select(1, 2), postprocess.threshold(0.5), torch.tanh, postprocess.sigmoid())
    assert wrapped.original_name == "Sequential + softmax(dim=1) + select(1, 2, dim=1) + threshold(0.5) + tanh + sigmoid()"


def test_an_exported_program_is_taken(model, x):
    program = torch.export.export(model.eval(), (x,))
    wrapped = with_postprocess(program, postprocess.softmax())
    torch.testing.assert_close(wrapped(x), model(x).softmax(1))
    engine = torchkiln.compile(wrapped, [x], backend="torch", verify=False)
    torch.testing.assert_close(engine(x), model(x).softmax(1))


def test_wrong_requests(model, x):
    for call, message in (
        (lambda: with_postprocess(model), "at least one step"),
        (lambda: with_postprocess(model, 3), "step 0: .*3"),
        (lambda: with_postprocess(model, nn.Softmax), "the class Softmax; give an instance"),
        (lambda: with_postprocess(torch.tanh, nn.Softmax(1)), "expected an nn.Module"),
        (lambda: with_postprocess(torch.jit.trace(model.eval(), x), nn.Softmax(1)), "ScriptModule"),
        (lambda: postprocess.select(), "at least one channel"),
        (lambda: postprocess.select(1, 2, keepdim=False), "keepdim"),
        (lambda: postprocess.select(1.5), "whole number"),
        (lambda: postprocess.softmax(dim="channels"), "whole number"),
        (lambda: postprocess.argmax(dtype=torch.float32), "argmax: dtype: .*uint8"),
        (lambda: postprocess.threshold(0.5, dtype=torch.complex64), "threshold: dtype"),
        (lambda: with_postprocess(model, postprocess.select(5))(x), r"select\(5, dim=1\): dimension 1 of the output has 5 channels"),
        (lambda: with_postprocess(model, lambda y: "text", postprocess.softmax())(x), "expected an output of tensors"),
        (lambda: with_postprocess(nn.Conv2d(3, 300, 1), postprocess.argmax(dtype=torch.uint8))(x), "300 channels"),
    ):
        with pytest.raises(UserError, match=message):
            call()
