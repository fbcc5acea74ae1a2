"""``torchkiln inspect``: the manifest's facts, and nothing loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import torchkiln

from .conftest import invoke, invoke_json


def test_it_says_what_the_engine_says(engine_file: Path) -> None:
    engine, facts = torchkiln.load(engine_file), invoke_json("inspect", engine_file)
    assert [(i["name"], tuple(i["min_shape"]), tuple(i["max_shape"])) for i in facts["inputs"]] == [
        (i.name, i.min_shape, i.max_shape) for i in engine.inputs
    ]
    assert facts["outputs"] == list(engine.output_names)
    (target,) = facts["targets"]
    assert target["names"] == ["cpu"]
    assert target["report"] == engine.report().as_json()
    assert facts["size_bytes"] == engine_file.stat().st_size
    assert [s["backend"] for s in target["segments"]] == [s.backend for s in engine.contents.segments]
    assert sum(s["payload_bytes"] + s["tensor_bytes"] for s in target["segments"]) == target["size_bytes"] > 0
    assert facts["native_code"] is False


def test_it_shows_them(engine_file: Path) -> None:
    result = invoke("inspect", engine_file)
    assert result.exit_code == 0, result.output
    for text in ("ids", "int64", "5x3x6", "openvino", "native code: none", "torch "):
        assert text in result.stdout


def test_it_loads_no_backend(engine_file: Path) -> None:
    code = "import sys; from torchkiln.cli.app import app\ntry: app(['inspect', sys.argv[1], '--json'])\nfinally: print('openvino' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, engine_file], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("damage", ["text", "cut", "flip"])
def test_a_damaged_file_is_one_message(engine_file: Path, damage: str, tmp_path: Path) -> None:
    data = bytearray(engine_file.read_bytes())
    if damage == "text":
        data = bytearray(b"not an engine")
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[data.index(b'"schema"') + 3] ^= 1
    path = tmp_path / "m.kiln"
    path.write_bytes(data)
    result = invoke("inspect", path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"CorruptEngineFile: {path}")
