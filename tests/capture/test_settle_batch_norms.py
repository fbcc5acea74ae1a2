"""settle_batch_norms: outputs that fade get a sensible size; sensible models are left as they are."""

from __future__ import annotations

import torch
from torch import nn

from torchkiln.capture.settle_batch_norms import settle_batch_norms
from torchkiln.inputs import Input


def deep(gain):
    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        with torch.no_grad():
            conv.weight.mul_(gain)
        layers += [conv, nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(6, 6, 1, bias=False))


def rms(model):
    with torch.no_grad():
        return model.eval()(torch.randn(1, 6, 9, 9)).square().mean().sqrt().item()


def test_fading_outputs_are_lifted():
    model = deep(0.05)
    assert rms(model) < 1e-6
    (note,) = settle_batch_norms(model, [Input((1, 6, 9, 9))], seed=0)
    assert "8 batch norms" in note
    assert 1e-3 < rms(model) < 1e3


def test_a_sensible_model_is_left_alone():
    model = deep(1.5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert settle_batch_norms(model, [Input((1, 6, 9, 9))], seed=0) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_mode_is_kept():
    model = deep(0.05).train()
    settle_batch_norms(model, [Input((1, 6, 9, 9))], seed=0)
    assert model.training
