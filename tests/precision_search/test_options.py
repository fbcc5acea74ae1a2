"""The options of precision="auto", and those that do not go together."""

from __future__ import annotations

import math

import pytest
import torch

from torchkiln.errors import UserError
from torchkiln.ptq import DataLoaderCalibrator
from torchkiln.settings import CompileSettings

AUTO = {"precision": "auto", "max_error": 0.01}


def read(**options) -> CompileSettings:
    return CompileSettings.from_options(options)


def test_everything_is_enabled_unless_something_is_named() -> None:
    assert read(**AUTO).enabled_precisions == {torch.float32, torch.float16, torch.bfloat16}
    assert read(**AUTO, calibrator=DataLoaderCalibrator([])).enabled_precisions >= {torch.int8, torch.bfloat16}
    assert read(**AUTO, enabled_precisions={torch.bfloat16}).enabled_precisions == {torch.bfloat16}
    assert read(precision="auto", accuracy=len, max_drop=0).max_drop == 0.0


def test_settings_without_the_search_are_settings() -> None:
    plain = read(precision="auto", accuracy=len, max_drop=0.1, max_builds=3).without_search(verify=0.5)
    assert (plain.precision, plain.accuracy, plain.max_drop, plain.max_builds, plain.verify) == (None, None, None, 8, 0.5)
    assert CompileSettings.from_json(plain.as_json()) == plain


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "auto"}, "expected a budget, max_error alone or accuracy with max_drop, got none"),
        ({"precision": "auto", "max_drop": 0.1}, "got max_drop"),
        ({"precision": "auto", "accuracy": len}, "got accuracy"),
        ({**AUTO, "accuracy": len, "max_drop": 0.1}, "got max_error and accuracy and max_drop"),
        ({"precision": "auto", "accuracy": 3, "max_drop": 0.1}, "accuracy: expected a function of an engine, got 3"),
        ({"max_error": 0.1}, "max_error: it belongs to precision='auto'"),
        ({"max_builds": 3}, "max_builds: it belongs to precision='auto'"),
        ({"precision": "fp16"}, "precision: expected 'auto', got 'fp16'"),
        ({"precision": "auto", "max_error": 0}, "max_error: expected a finite number > 0"),
        ({"precision": "auto", "max_error": math.inf}, "max_error: expected a finite number"),
        ({"precision": "auto", "max_error": True}, "max_error: expected a finite number"),
        ({**AUTO, "max_builds": -1}, "max_builds: expected an integer >= 0"),
        ({**AUTO, "verify": False}, "verify: max_error says how exact"),
        ({**AUTO, "enabled_precisions": {torch.float32}}, "nothing to choose among in float32 alone"),
        ({**AUTO, "output_dtype": torch.float16}, "output_dtype: precision='auto' does not go with it"),
        ({**AUTO, "weight_precision": "int8"}, "weight_precision: precision='auto' does not go with it"),
        ({**AUTO, "immutable_weights": False}, "it chooses by the weights"),
        ({**AUTO, "enabled_precisions": {torch.bfloat16}, "calibrator": DataLoaderCalibrator([])}, "add torch.int8 to enabled_precisions"),
        ({"keep_float32": "head"}, "keep_float32: nothing narrower than float32 is enabled"),
        ({"keep_float32": [3], "enabled_precisions": {torch.half}}, "keep_float32: expected names"),
    ],
)
def test_what_does_not_go_together(options, expected) -> None:
    with pytest.raises(UserError, match=expected):
        read(**options)
