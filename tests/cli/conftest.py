"""A small model in a file, and an engine file made from it by the command line itself."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from torchkiln.cli.app import app

MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.mix = nn.Sequential(nn.Linear(6, 13), nn.GELU(), nn.Linear(13, 6), nn.LayerNorm(6), nn.ReLU())

        def forward(self, ids, scale):
            hidden = self.mix(self.embed(ids)) * scale
            return {"hidden": hidden, "best": hidden.argmax(-1)}

    def make():
        return Net(), [torch.tensor([[0, 3, 10]]), torch.rand(1, 3, 6)]

    def image():
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 3), nn.Sigmoid())
"""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])


def invoke_json(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "net_of_the_tests.py"
    path.write_text(textwrap.dedent(MODEL))
    return path


@pytest.fixture(scope="session")
def engine_file(model_file: Path) -> Path:
    """Two inputs with a batch from 1 to 5; outputs named by the keys of a dict."""
    path = model_file.parent / "net.kiln"
    ranges = []
    for bound, batch in (("min", 1), ("opt", 2), ("max", 5)):
        ranges += [f"--{bound}-shape", f"ids:{batch}x3@int64", f"--{bound}-shape", f"scale:{batch}x3x6"]
    result = invoke("compile", f"{model_file}:make", "-o", path, "--backend", "openvino", "--seed", "3", *ranges)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def image_engine_file(model_file: Path) -> Path:
    """One input, one output."""
    path = model_file.parent / "image.kiln"
    result = invoke("compile", f"{model_file}:image", "-o", path, "--backend", "openvino", "--shape", "2x3x17x23")
    assert result.exit_code == 0, result.output
    return path
