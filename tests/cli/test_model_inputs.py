"""Named shapes go to the parameters of forward with those names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.capture.sources import LoadedModel
from torchkiln.cli.model_inputs import choose_inputs, forward_parameters, on_device, own_inputs
from torchkiln.errors import UserError
from torchkiln.inputs import Input


class Net(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ids * mask * scale + bias


def inputs(*names: str) -> list[Input]:
    return [Input((n + 2,), name=name) for n, name in enumerate(names)]


@pytest.mark.parametrize("model", [Net().eval(), torch.jit.script(Net().eval())], ids=["module", "script"])
def test_names_are_put_in_the_order_of_forward(model: nn.Module) -> None:
    assert forward_parameters(model) == ["ids", "mask", "scale", "bias"]
    positional, keywords = choose_inputs(LoadedModel(model, "net"), inputs("mask", "ids", "bias"))
    assert positional is not None
    assert [i.name for i in positional] == ["ids", "mask"]
    assert list(keywords) == ["bias"]
    assert keywords["bias"].opt_shape == (4,)


def test_unnamed_shapes_are_positional_and_come_before_the_defaults() -> None:
    loaded = LoadedModel(Net(), "net", [Input((9,))])
    assert choose_inputs(loaded, []) == ([Input((9,))], {})
    assert choose_inputs(loaded, [Input((5,))]) == ([Input((5,))], {})


def test_a_wrong_name_and_missing_shapes_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no input 'maks'.*ids, mask, scale, bias.*'mask'"):
        choose_inputs(LoadedModel(Net(), "net"), inputs("maks"))
    with pytest.raises(UserError, match="give --shape"):
        choose_inputs(LoadedModel(Net(), "net"), [])


def test_an_exported_program_carries_its_own() -> None:
    x = torch.randn(3, 5)
    program = torch.export.export(nn.Linear(5, 2), (x,))
    assert choose_inputs(LoadedModel(program, "linear"), []) == (None, {})
    (own,) = own_inputs(program)
    assert isinstance(own, torch.Tensor)
    assert torch.equal(own, x)
    assert forward_parameters(program) == ["input"]


def test_a_device_that_is_not_here() -> None:
    model = Net()
    assert on_device(model, None) is model
    assert on_device(model, "cpu") is model
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torchkiln doctor"):
            on_device(model, "cuda")
