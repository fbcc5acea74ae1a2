"""torchkiln bisect, and torchkiln compile --precision auto."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

import torchkiln

from .conftest import invoke, invoke_json

OVERFLOW = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

        def forward(self, x):
            x = self.stem(x).abs() + 1
            x = x * 300.0 * 300.0
            return self.head(x.sqrt() * 1e-3)

    def make():
        return Net(), [torch.rand(4, 6)]
"""


@pytest.fixture(scope="module")
def overflow_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "overflow_of_the_tests.py"
    path.write_text(textwrap.dedent(OVERFLOW))
    return f"{path}:make"


def test_bisect_names_the_operators_and_their_lines(overflow_file: str) -> None:
    result = invoke("bisect", overflow_file, "--precision", "fp16", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "fp16: relative error not finite with" in result.stdout
    assert "(overflow_of_the_tests.py:12): aten.mul.Tensor" in result.stdout
    assert "smallest set that must stay in float32" in result.stdout
    assert "enabled_precisions={torch.float16}, keep_float32={'mul_1', 'sqrt'}" in result.stdout


def test_bisect_as_json_and_a_tolerance_that_holds(overflow_file: str) -> None:
    found = invoke_json("bisect", overflow_file, "--seed", "1")
    assert found["model"] == overflow_file
    assert (found["precision"], found["holds"], found["error"]) == ("fp16", False, None)  # JSON has no infinity
    assert found["keep_float32"] == ["mul_1", "sqrt"]
    assert found["error_kept"] <= 1e-2 == found["tolerance"]
    found = invoke_json("bisect", overflow_file, "--precision", "bf16", "--tolerance", "0.5")
    assert (found["holds"], found["first"], found["smallest"]) == (True, None, [])


def test_bisect_of_a_precision_it_has_not(overflow_file: str) -> None:
    result = invoke("bisect", overflow_file, "--precision", "fp4")
    assert result.exit_code == 1
    assert "expected fp16, bf16 or int8, got 'fp4'" in result.stderr


def test_compile_chooses_precisions_and_draws_the_frontier(model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    engine, plot = tmp_path / "auto.kiln", tmp_path / "plot.svg"
    shape = ("--shape", "2x3x17x23", "--backend", "openvino", "-o", engine)
    found = invoke_json("compile", f"{model_file}:image", "--precision", "auto", "--max-error", "0.5", "--frontier", plot, *shape)
    (report,) = found["reports"]
    points = report["frontier"]["points"]
    assert {"openvino fp32"} <= {point["name"] for point in points}
    assert sum(point["is_kept"] for point in points) == 1
    assert report["frontier"]["limit"] == 0.5
    assert "<svg" in plot.read_text()
    kept = torchkiln.load(engine).report().frontier
    assert json.loads(json.dumps([vars(point) for point in kept.points])) == points


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--precision", "auto"), "expected a budget"),
        (("--precision", "auto,fp32", "--max-error", "0.1"), "in float32 alone"),
        (("--max-error", "0.1"), "max_error: it belongs to"),
        (("--frontier", "p.png"), "--frontier is what --precision auto finds"),
        (("--precision", "bf16", "--keep-float32", "nothing_of_the_kind"), "names no operator, node or module"),
    ],
)
def test_wrong_requests(model_file: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    result = invoke("compile", f"{model_file}:image", "--shape", "2x3x17x23", "-o", tmp_path / "m.kiln", *arguments)
    assert result.exit_code in (1, 2)
    assert expected in " ".join(result.stderr.split())


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_search(model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    engine = tmp_path / "m.kiln"
    arguments = ("--precision", "auto", "--max-error", "0.1", "--frontier", tmp_path / "plot.xyz")
    result = invoke("compile", f"{model_file}:image", "--shape", "2x3x17x23", "-o", engine, *arguments)
    assert result.exit_code == 1
    assert "expected a name that ends in .png, .svg or .pdf" in " ".join(result.stderr.split())
    assert not engine.exists()
