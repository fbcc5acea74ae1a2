"""Capture: every kind of model, nested arguments, keyword arguments, dynamic shapes, dtypes, and clear refusals."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.export import Dim

from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.capture.exported_program import default_arguments
from torchkiln.errors import ExportFailed, UserError
from torchkiln.inputs import Input

CPU = torch.device("cpu")


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, batch, pair, *, scale=1.0, bias=None):
        y = self.linear(batch["x"]) * scale + pair[0] - pair[1][0]
        if bias is not None:
            y = y + bias
        return OrderedDict(out=y, extra=[y.sum(), None, 3])


def captured(model, inputs, kwargs=None):
    return capture(model, read_arguments(inputs, kwargs, CPU, 0))


def test_nested_arguments_and_outputs():
    x, a, b, bias = torch.randn(3, 6), torch.randn(3, 4), torch.randn(4), torch.randn(4)
    model = Nested().eval()
    program = captured(model, [{"x": x}, (a, [b])], {"bias": bias, "scale": 2.0})
    expected = model({"x": x}, (a, [b]), bias=bias, scale=2.0)
    flat = program.args_structure.flatten((({"x": x}, (a, [b])), {"bias": bias, "scale": 2.0}))
    result = program.outputs_structure.unflatten(program.graph_module(*flat))
    assert isinstance(result, OrderedDict)
    assert result["extra"][1:] == [None, 3]
    torch.testing.assert_close(result["out"], expected["out"])
    torch.testing.assert_close(result["extra"][0], expected["extra"][0])


class TwoKeywords(nn.Module):
    def forward(self, x, *, first, second):
        return x * first - second


def test_keyword_order_does_not_matter():
    x, first, second = torch.randn(3), torch.randn(3), torch.randn(3)
    program = captured(TwoKeywords().eval(), [x], {"second": second, "first": first})
    flat = program.args_structure.flatten(((x,), {"first": first, "second": second}))
    torch.testing.assert_close(program.graph_module(*flat)[0], x * first - second)


@pytest.mark.parametrize("kind", ["module", "traced", "scripted", "exported"])
def test_every_kind_of_model_with_a_dynamic_batch(kind):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 25, 2)).eval()
    x = torch.randn(2, 3, 7, 7)
    source = {
        "module": lambda: model,
        "traced": lambda: torch.jit.trace(model, x),
        "scripted": lambda: torch.jit.script(model),
        "exported": lambda: torch.export.export(model, (x,), dynamic_shapes=({0: Dim.DYNAMIC(min=1, max=16)},)),
    }[kind]()
    spec = Input(min_shape=(1, 3, 7, 7), opt_shape=(2, 3, 7, 7), max_shape=(16, 3, 7, 7))
    program = captured(source, [spec])
    for batch in (1, 5, 16):
        y = torch.randn(batch, 3, 7, 7)
        torch.testing.assert_close(program.graph_module(y)[0], model(y), rtol=1e-4, atol=1e-5)


def test_static_input_narrows_a_dynamic_exported_program():
    exported = torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=({0: Dim.DYNAMIC(min=1, max=8)},))
    assert not captured(exported, [Input((5, 4))]).inputs[0].is_dynamic


def test_exported_program_brings_its_own_inputs():
    exported = torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    (spec,), kwargs = default_arguments(exported)
    assert (spec.min_shape, spec.opt_shape, spec.max_shape) == ((2, 4), (3, 4), (8, 4))
    assert kwargs == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Input((9, 4)), "sizes 2 to 8"),
        (Input((3, 5)), "sizes 4 to 4"),
        (Input((3, 4), dtype=torch.half), "exported with torch.float32"),
        (Input((3, 4, 1)), "rank 2"),
    ],
)
def test_exported_program_refuses_what_it_was_not_exported_for(spec, message):
    exported = torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    with pytest.raises(UserError, match=message):
        captured(exported, [spec])


def test_half_input_of_a_float_model_is_cast_inside():
    model = nn.Linear(4, 2).eval()
    program = captured(model, [Input((3, 4), dtype=torch.half)])
    x = torch.randn(3, 4).half()
    torch.testing.assert_close(program.graph_module(x)[0], model(x.float()))
    assert "cast to the model's float32" in program.notes[0]


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x + self.calls


def test_branching_on_data_says_why_and_offers_torch_compile():
    with pytest.raises(ExportFailed, match=r'torch\.compile\(model, backend="torchkiln"'):
        captured(Branches().eval(), [torch.randn(3)])


def test_refusals():
    with pytest.raises(UserError, match=r"call model\.eval\(\)"):
        captured(nn.Dropout(), [torch.randn(3)])
    with pytest.raises(UserError, match="'calls'"):
        captured(CountsCalls().eval(), [torch.randn(3)])
    with pytest.raises(UserError, match=r"expected an nn\.Module"):
        captured(lambda x: x, [torch.randn(3)])
    with pytest.raises(UserError, match="at least one tensor"):
        captured(nn.Identity().eval(), [])
    with pytest.raises(UserError, match="expected a list of tensors"):
        captured(nn.Identity().eval(), "x")


def test_fixed_dimension_that_the_model_fixes_is_an_export_error():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(2, 6)

    with pytest.raises(ExportFailed):
        captured(Fixed().eval(), [Input(min_shape=(1, 6), opt_shape=(2, 6), max_shape=(4, 6))])


def test_opt_shape_of_one_is_traced_at_a_larger_size():
    program = captured(nn.Linear(4, 2).eval(), [Input(min_shape=(1, 4), opt_shape=(1, 4), max_shape=(8, 4))])
    assert program.example_inputs[0].shape[0] == 2
    assert program.graph_module(torch.randn(7, 4))[0].shape == (7, 2)


def test_names_come_from_the_model_unless_given():
    program = captured(TwoKeywords().eval(), [Input((3,), name="tokens")], {"first": Input((3,)), "second": Input((3,))})
    assert [i.name for i in program.inputs] == ["tokens", "first", "second"]
