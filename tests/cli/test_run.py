"""``torchkiln run``: inputs from files or at random, outputs in figures and in a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import torchkiln

from .conftest import invoke, invoke_json


def test_given_inputs_give_the_engines_outputs(engine_file: Path, tmp_path: Path) -> None:
    ids, scale = np.random.default_rng(1).integers(0, 11, (4, 3)), np.random.default_rng(2).normal(size=(4, 3, 6))
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))  # fits in the int64 the engine takes
    np.save(tmp_path / "scale.npy", scale)  # numpy's float64, to float32
    files = ["-i", f"ids={tmp_path / 'ids.npy'}", "-i", f"scale={tmp_path / 'scale.npy'}"]
    told = invoke_json("run", engine_file, *files, "-o", tmp_path / "out.npz", "-n", "3")

    expected = torchkiln.load(engine_file)(torch.from_numpy(ids), torch.from_numpy(scale).float())
    outputs = np.load(tmp_path / "out.npz")
    names = [o["name"] for o in told["outputs"]]
    assert list(outputs) == names
    for name, tensor, row in zip(names, expected.values(), told["outputs"], strict=True):
        assert np.array_equal(outputs[name], tensor.numpy())
        assert row["shape"] == list(tensor.shape)
        assert row["mean"] == pytest.approx(tensor.double().mean().item())
        assert row["max"] == tensor.max().item()
        assert row["not_finite"] == 0
    assert told["notes"] == []
    assert 0 < told["latency_ms"]["min"] <= told["latency_ms"]["median"] <= told["latency_ms"]["max"]


def test_random_inputs_are_seeded_and_take_the_shapes_asked_for(engine_file: Path) -> None:
    shapes = ["--shape", "scale:5x3x6", "--shape", "ids:5x3"]
    first, again, other = (invoke_json("run", engine_file, "-n", "1", "--seed", str(s), *shapes) for s in (1, 1, 2))
    assert [i["shape"] for i in first["inputs"]] == [[5, 3], [5, 3, 6]]
    assert first["outputs"] == again["outputs"]
    assert first["outputs"] != other["outputs"]
    assert "drawn at random with seed 1: ids, scale" in first["notes"]


def test_the_table_and_the_note(image_engine_file: Path) -> None:
    result = invoke("run", image_engine_file, "-n", "2")
    assert result.exit_code == 0, result.output
    assert "2x2x13x19" in result.stdout
    assert "2 calls" in result.stdout
    assert "drawn at random" in result.stderr


def test_one_input_needs_no_name(image_engine_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 17, 23), np.float32))
    assert invoke("run", image_engine_file, "-i", tmp_path / "x.npy", "-n", "1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "idss=ids.npy"], r"no input 'idss'.*'ids'"),
        (["-i", "ids.npy"], "2 inputs: give NAME=FILE.npy"),
        (["-i", "ids=absent.npy"], "no such file"),
        (["-i", "ids=ids.npy"], "inputs without values: scale"),
        (["-i", "ids=ids.npy", "-i", "ids=ids.npy"], "given twice"),
        (["-i", "ids=floats.npy", "--random"], "expected dtype int64, got float32"),
        (["-i", "ids=text.npy", "--random"], "not an array file"),
        (["-i", "ids=pickle.npy", "--random"], "not an array file"),
        (["-i", "ids=two.npz", "--random"], "archive of arrays"),
        (["--shape", "ids:6x3", "--shape", "scale:6x3x6"], r"InputMismatch.*ids.*dimension 0.*1 to 5.*6"),
        (["--shape", "idz:6x3"], "no input 'idz'"),
        (["--device", "cuda:99"], "TargetMismatch"),
    ],
)
def test_what_does_not_fit(engine_file: Path, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", np.zeros((2, 3), np.int64))
    np.save("floats.npy", np.zeros((2, 3), np.float32))
    np.save("pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(1))
    Path("text.npy").write_text("1 2 3")
    result = invoke("run", engine_file, *arguments)
    assert result.exit_code == 1, result.output
    assert re.search(expected, result.stderr), result.stderr


def test_a_file_that_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "m.kiln").write_bytes(b"PK\x03\x04 nothing of the kind")
    result = invoke("run", tmp_path / "m.kiln")
    assert result.exit_code == 1
    assert "CorruptEngineFile" in result.stderr
