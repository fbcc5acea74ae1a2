"""examples/cpp: built with the machine's compiler against the installed torch, and run on a package, without Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.backends.inductor.availability import find_compiler
from torchkiln.backends.inductor.export_package import export_package

SOURCE = Path(__file__).parents[2] / "examples" / "cpp" / "run_package.cpp"
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(os.name != "posix" or not (TORCH / "lib" / "libtorch_cpu.so").exists(), reason="needs libtorch as shared libraries of Linux"),
]


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 9, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.linear = nn.Linear(9, 5)

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.linear(self.norm(self.convolution(image)).relu().mean((2, 3)))
        return scores, scores.argmax(1) * 10 + labels


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """docs/cpp.md's command."""
    path = tmp_path_factory.mktemp("cpp") / "run_package"
    command = [find_compiler() or "g++", "-std=c++20", "-O1", str(SOURCE), "-o", str(path)]
    command += [f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include", f"-L{TORCH}/lib"]
    command += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH}/lib"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """An engine, its package, and inputs of odd sizes."""
    torch.manual_seed(3)
    inputs = (torch.randn(3, 3, 17, 23), torch.randint(0, 9, (3,)))
    engine = torchkiln.compile(Scored().eval(), list(inputs), backend="inductor", require_full_compilation=True)
    directory = tmp_path_factory.mktemp("package")
    engine.save(directory / "scored.kiln")
    export_package(directory / "scored.kiln", directory / "scored.pt2")
    inputs[0].numpy().tofile(directory / "image.bin")
    inputs[1].numpy().tofile(directory / "labels.bin")
    return engine, inputs, directory


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Without the variables that would let the program find what it should find by itself.
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH")}
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment)


def test_it_gives_the_numbers_of_the_engine(program, case):
    engine, inputs, directory = case
    done = run(
        program, directory / "scored.pt2", directory, f"3x3x17x23:float32:{directory}/image.bin", f"3:int64:{directory}/labels.bin", "--repeat", 3
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["output_0: float32 [3, 5]", "output_1: int64 [3]"]
    assert "median of 3 calls" in done.stdout
    scores, codes = engine(*inputs)
    np.testing.assert_allclose(np.fromfile(directory / "output_0.bin", np.float32).reshape(3, 5), scores.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.fromfile(directory / "output_1.bin", np.int64), codes.numpy())


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("3x3x17x24:float32:{directory}/image.bin", "expected 14688 bytes, got 14076"),
        ("3x3x17x23:float31:{directory}/image.bin", "expected SHAPE:DTYPE:FILE"),
        ("3x3x17x23:float32:{directory}/nothing.bin", "cannot be read"),
    ],
)
def test_a_wrong_input_is_an_error_that_says_so(program, case, argument, expected):
    directory = case[2]
    done = run(program, directory / "scored.pt2", directory, argument.format(directory=directory))
    assert done.returncode == 1
    assert expected in done.stderr
