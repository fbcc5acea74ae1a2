"""The options of CompileSettings on the command line: all of them, with their own help, and read back as settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import typer

from torchkiln.cli.settings_options import RENAMED, _setting_parameters, read_settings
from torchkiln.settings import CompileSettings, declared_options


def defaults(**changed: Any) -> dict[str, Any]:
    values = {p.name: p.default for p in _setting_parameters()}
    assert not changed.keys() - values.keys()
    return values | changed


def test_every_declared_option_is_there_with_its_own_help() -> None:
    parameters = {p.name: p for p in _setting_parameters()}
    for declared in declared_options():
        if not declared.metadata["has_flag"]:
            assert declared.name not in parameters
            continue
        parameter = parameters.pop(declared.name)
        assert parameter.help == declared.metadata["doc"]
        flag = RENAMED.get(declared.name, "--" + declared.name.replace("_", "-"))
        assert parameter.opts + parameter.secondary_opts == flag.split("/")
    assert list(parameters) == ["tolerance"]


def test_the_defaults_are_the_settings_own() -> None:
    assert read_settings(defaults()) == CompileSettings()


def test_values_become_settings() -> None:
    values = defaults(
        enabled_precisions="fp32,bf16", num_threads=3, torch_executed_ops=["aten.relu,aten.add", "aten::mul"], output_dtype="float16", tolerance=0.25
    )
    settings = read_settings(values)
    assert settings.enabled_precisions == {torch.float32, torch.bfloat16}
    assert settings.num_threads == 3
    assert settings.torch_executed_ops == {"aten.relu", "aten.add", "aten.mul"}
    assert settings.output_dtype == torch.float16
    assert settings.verify == 0.25
    assert read_settings(defaults(verify=False)).verify is False


def test_auto_is_a_precision_that_may_be_narrowed_down() -> None:
    settings = read_settings(defaults(enabled_precisions="auto", max_error=0.01))
    assert (settings.precision, settings.max_error) == ("auto", 0.01)
    assert settings.enabled_precisions == {torch.float32, torch.bfloat16, torch.float16}
    assert read_settings(defaults(enabled_precisions="auto,bf16", max_error=0.01)).enabled_precisions == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"backend": "opnvino"}, "backend: expected one of"),
        ({"enabled_precisions": "fp32,int4"}, "int4"),
        ({"min_block_size": 0}, "min_block_size"),
        ({"output_dtype": "floaty"}, "unknown dtype"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": 0.1, "verify": False}, "not both"),
        ({"device": "gpu9"}, "device"),
    ],
)
def test_illegal_values_are_usage_errors(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(typer.BadParameter, match=expected):
        read_settings(defaults(**changed))
