"""Case: inputs, copies and references."""

import pytest
import torch
from torch import nn

from torchkiln import Input
from torchkiln.bench import BenchmarkModel, BenchmarkRequest
from torchkiln.bench.case import make_cases
from torchkiln.errors import UserError

from .fakes import small_model


def cases(model, inputs, **values):
    entry = BenchmarkModel("net", model, inputs)
    return list(make_cases(BenchmarkRequest(models=[entry], **values), entry))


class TwoInputs(nn.Module):
    def forward(self, image, index):
        return {"a": image.sum((1, 2, 3)), "b": [index + 1]}


def test_shapes_batch_and_references_of_several_inputs():
    (case,) = cases(TwoInputs(), [Input((5, 3, 7, 9)), Input((4,), dtype=torch.int64)])
    assert (case.shape, case.batch_size, case.dtypes) == ("5x3x7x9,4", 5, "float32,int64")
    case.compute_references()
    image, index = case.input_sets[0]
    assert torch.equal(case.references[0][0], image.sum((1, 2, 3)))
    assert torch.equal(case.references[0][1], index + 1)
    assert case.notes == []


def test_given_tensors_are_used_as_they_are_and_varied_for_further_sets():
    given = torch.arange(33.0).reshape(1, 33)
    (case,) = cases(nn.Identity(), [given], input_count=3)
    assert torch.equal(case.input_sets[0][0], given)
    assert not torch.equal(case.input_sets[1][0], case.input_sets[2][0])
    assert all(s[0].shape == given.shape for s in case.input_sets)


def test_inputs_are_seeded():
    first, again, other = (cases(nn.Identity(), [Input((3, 5))], seed=seed)[0].input_sets[0][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sweep_replaces_height_and_width_of_images_alone():
    swept = cases(TwoInputs(), [Input((2, 3, 7, 9), name="image"), Input((4,), dtype=torch.int64)], sweep_resolution=[6, 10])
    assert [c.shape for c in swept] == ["2x3x6x6,4", "2x3x10x10,4"]
    assert swept[0].input_specs[0] == Input((2, 3, 6, 6), name="image")
    (named,) = cases(nn.Identity(), [Input((2, 3, 7, 9), dtype=torch.float32)], sweep_resolution=[6])
    assert (swept[0].input_specs[0].any_float, named.input_specs[0].any_float) == (True, False)
    with pytest.raises(UserError, match=r"sweep_resolution: net: expected an input with 4 dimensions or more \(N, C, H, W\), got \(2, 5\)"):
        cases(nn.Identity(), [Input((2, 5))], sweep_resolution=[6])


def test_copies_leave_the_source_alone():
    model = small_model().train()
    (case,) = cases(model, [Input((2, 3, 9, 11), dtype=torch.float32)])
    copied = case.copy_model(torch.bfloat16)
    assert not copied.training
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_casting_leaves_integers_alone():
    (case,) = cases(TwoInputs(), [Input((2, 3, 7, 9)), Input((4,), dtype=torch.int64)])
    assert [t.dtype for t in case.cast_inputs(torch.bfloat16)[0]] == [torch.bfloat16, torch.int64]


def test_references_of_a_half_precision_model_are_float32():
    (case,) = cases(small_model().half(), [Input((2, 3, 9, 11), dtype=torch.half)])
    case.compute_references()
    assert case.references[0][0].dtype == torch.float32


def test_a_constant_reference_is_noted():
    model = small_model()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    (case,) = cases(model, [Input((2, 3, 9, 11))])
    case.compute_references()
    assert "constant" in case.notes[0]


def test_an_exported_module_can_be_copied():
    example = torch.randn(2, 3, 9, 11)
    (case,) = cases(torch.export.export(small_model(), (example,)).module(), [example])
    case.compute_references()
    assert case.copy_model(torch.float32)(example).shape == (2, 5)
