"""BenchmarkRequest: what is refused before anything is built."""

import pytest
import torch

import torchkiln
from torchkiln.bench import BenchmarkModel, BenchmarkRequest
from torchkiln.errors import UserError

from .fakes import FakeEngine, small_model

MODEL = BenchmarkModel("net", small_model(), [torchkiln.Input((2, 3, 9, 11))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": [MODEL, MODEL]}, "names must differ"),
        ({"precisions": ()}, "precisions"),
        ({"precisions": (torch.float64,)}, "precisions: expected different ones of"),
        ({"calibration_count": 0}, "calibration_count"),
        ({"engine_options": {"calibrator": None}}, "calibrator"),
        ({"precisions": (torch.float32, torch.float32)}, "precisions"),
        ({"min_time_s": 0}, "min_time_s: expected a number > 0, got 0"),
        ({"max_build_s": float("nan")}, "max_build_s"),
        ({"rounds": 0}, "rounds: expected an integer >= 1, got 0"),
        ({"num_threads": 0}, "num_threads"),
        ({"pause_s": -0.1}, "pause_s: expected seconds >= 0"),
        ({"sweep_resolution": [160, 0]}, "sweep_resolution"),
        ({"clock": "sundial"}, "clock: expected 'host' or 'events', got 'sundial'"),
        ({"engine_options": {"device": "cpu"}}, "engine_options: 'device' is set by the benchmark itself"),
    ],
)
def test_values_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        BenchmarkRequest(**{"models": [MODEL], **values})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net", None, [torch.ones(1)]), "expected a model, an engine or both"),
        (("net", small_model(), []), "at least one input"),
        (("net", small_model(), [torch.ones(1)], None, (), []), "calibration: expected at least one batch"),
        (("net", small_model(), [torch.ones(1), (1, 3)]), r"inputs\[1\]: expected a torchkiln.Input or a tensor, got tuple"),
    ],
)
def test_models_that_cannot_be_measured(arguments, message):
    with pytest.raises(UserError, match=message):
        BenchmarkModel(*arguments)


def test_the_device_is_where_the_model_is_unless_said():
    assert BenchmarkRequest(models=[MODEL]).resolved_device == torch.device("cpu")
    assert BenchmarkRequest(models=[BenchmarkModel("e", None, [torch.ones(2)], engine=FakeEngine(abs))]).resolved_device == torch.device("cpu")
    assert BenchmarkRequest(models=[MODEL], device="cuda:1").resolved_device == torch.device("cuda", 1)
