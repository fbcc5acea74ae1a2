"""What 2:4 costs on real data after fine-tuning, in the engine: percent of the test images that are recognised, against the dense float model."""

from __future__ import annotations

import copy

import pytest

import torchkiln

from .digits import accuracy, train
from .test_accuracy import ANY_BATCH


@pytest.mark.parametrize(("name", "least", "layers"), [("cnn", 97.5, 5), ("vit", 95, 8)])
def test_fine_tuning_wins_back_what_pruning_costs(models, digits, name, least, layers, one_thread):
    expected = accuracy(models[name], digits)
    assert expected >= least, "the network itself must have learned something"
    model = torchkiln.sparsify(copy.deepcopy(models[name]))
    assert accuracy(model, digits) < expected - 5, "half of the weights are gone"
    train(model.train(), digits, epochs=4, rate=4e-3)
    report = torchkiln.sparsity_report(model.eval())
    assert report.sparse_count == layers
    assert all(layer.zeros == 0.5 for layer in report.layers if not layer.reason)
    engine = torchkiln.compile(model, [ANY_BATCH], backend="openvino")
    assert accuracy(engine, digits) >= expected - 0.5
