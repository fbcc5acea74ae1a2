"""What int8 costs on real data: percent of the test images that are recognised, against the float model."""

from __future__ import annotations

import pytest
import torch

import torchkiln
from torchkiln.ptq import DataLoaderCalibrator

from .digits import accuracy

#: The size of a batch varies: the test images are called in hundreds and a rest.
ANY_BATCH = torchkiln.Input(min_shape=(1, 1, 8, 8), opt_shape=(100, 1, 8, 8), max_shape=(128, 1, 8, 8))


@pytest.mark.parametrize("algorithm", ["entropy", "max", "percentile", "mse"])
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_calibration_keeps_accuracy(models, digits, name, algorithm):
    model = models[name]
    calibrator = DataLoaderCalibrator(digits.batches(), algorithm=algorithm)
    engine = torchkiln.compile(model, [ANY_BATCH], enabled_precisions={torch.int8}, backend="openvino", calibrator=calibrator)
    expected = accuracy(model, digits)
    assert expected > 94, "the network itself must have learned something"
    assert accuracy(engine, digits) >= expected - (1.0 if algorithm == "max" else 0.5)
    report = engine.report()
    assert report.precision == "int8+fp32"
    assert 0 < report.parity.relative_error < 0.1, "0 would mean that nothing was rounded"


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_quantization_aware_training_keeps_accuracy(models, digits, name, one_thread):
    pt2e = pytest.importorskip("torchao.quantization.pt2e")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    from .digits import Cnn, Vit, train

    source = {"cnn": Cnn, "vit": Vit}[name]()
    source.load_state_dict(models[name].state_dict())
    batch = torch.export.Dim.DYNAMIC(min=1, max=200)
    exported = torch.export.export(source.train(), (digits.train[:100],), dynamic_shapes=({0: batch},)).module()
    prepared = prepare_qat_pt2e(exported, torchkiln.ptq.quantizer())
    train(prepared, digits, epochs=3, rate=5e-4)
    pt2e.move_exported_model_to_eval(prepared)
    engine = torchkiln.compile(convert_pt2e(prepared), [ANY_BATCH], enabled_precisions={torch.int8}, backend="openvino")
    assert accuracy(engine, digits) >= accuracy(models[name], digits) - 0.2
    report = engine.report()
    assert report.precision == "int8+fp32"
    assert report.parity.relative_error < 5e-2
    quantized = {"cnn": "int8: 5 of 8 layers", "vit": "int8: 8 of 12 layers"}[name]
    assert any(note.startswith(quantized) for note in report.notes), report.notes
