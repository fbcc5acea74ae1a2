"""The program as a whole: help, versions, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import torchkiln
from torchkiln.cli.app import app
from torchkiln.errors import ModelSourceError

COMMANDS = ("compile", "run", "bench", "inspect", "merge", "refit", "export", "doctor")


def test_help_lists_every_command_and_imports_no_torch() -> None:
    code = "import sys; from torchkiln.cli.app import main; sys.argv = ['torchkiln', '--help']\ntry: main()\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stdout.splitlines()[-1] == "False"


def test_the_module_is_the_program() -> None:
    result = subprocess.run([sys.executable, "-m", "torchkiln", "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == f"torchkiln {torchkiln.__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compile", "m", "--min-blok-size", "3"], "--min-block-size"),
        (["compil"], "'compile'"),
        (["compile", "torch.nn:Identity"], "--output/-o is needed"),
        (["compile", "torch.nn:Identity", "-o", "no/such/folder/m.kiln"], "does not exist"),
        (["compile", "torch.nn:Identity", "-o", "m.kiln", "--backend", "opnvino"], "backend: expected one of"),
        (["run", "no_such.kiln"], "does not exist"),
        (["bench", "m", "--sweep-resolution", "160,big"], "whole numbers"),
        (["bench", "torch.nn:Identity", "--shape", "2", "--precision", "fp33"], "fp33"),
        (["export", "no_such.kiln", "-o", "x.pt2"], "no such file"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], expected: str) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.stderr.split())


def test_an_error_is_one_message_on_stderr_and_exit_code_1() -> None:
    result = CliRunner().invoke(app, ["compile", "torchvision:resnet35", "-o", "never.kiln"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("ModelSourceError: torchvision:resnet35")
    assert "'resnet34'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_keeps_the_traceback(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setattr("torchkiln.log._level", 1)
    result = CliRunner().invoke(app, ["compile", "nothing", "-o", "never.kiln", *(["--debug"] if how == "option" else [])])
    assert isinstance(result.exception, ModelSourceError)


def test_doctor_says_what_is_here_and_why_not() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    machine = json.loads(result.stdout)
    backends = {(b["name"], b["device"]): b for b in machine["backends"]}
    assert backends["torch", "cpu"]["available"]
    assert "fp32" in backends["torch", "cpu"]["precisions"]
    assert all(b["reason"] for b in backends.values() if not b["available"])
    assert machine["cpu"]["usable_cores"] >= 1
    assert {p["name"] for p in machine["packages"]} >= {"onnxruntime", "torchvision", "matplotlib"}

    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert machine["cpu"]["model"] in shown.stdout
    assert all(name in shown.stdout for name in ("openvino", "onnxruntime", "inductor", "torch"))


def test_doctor_names_the_extra_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchkiln.cli import machine

    original = machine._version
    monkeypatch.setattr(machine, "_version", lambda package: None if package == "matplotlib" else original(package))
    result = CliRunner().invoke(app, ["doctor"])
    assert 'pip install "torchkiln[report]"' in result.stdout
