"""merge: engine files for different targets as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import torchkiln
from torchkiln.engine.engine import Engine
from torchkiln.engine.file import read_engine_file, write_engine_file
from torchkiln.engine.merge import merge
from torchkiln.errors import CorruptEngineFile, UserError

from .tiny_engine import call, tiny_contents


@pytest.fixture
def files(tmp_path):
    """A file for the CPU and one for two GPUs, with the same weights."""
    paths = [tmp_path / "cpu.kiln", tmp_path / "gpu.kiln"]
    write_engine_file([tiny_contents()], paths[0])
    write_engine_file([replace(tiny_contents(), targets=("sm_86", "sm_89"), device="cuda")], paths[1])
    return paths


def test_both_are_held(files, tmp_path):
    output = tmp_path / "all.kiln"
    assert merge(files, output) == ("cpu", "sm_86", "sm_89")
    held = read_engine_file(output)
    assert [c.targets for c in held] == [("cpu",), ("sm_86", "sm_89")]
    assert [c.device for c in held] == ["cpu", "cuda"]
    assert all(torch.equal(a, b) for a, b in zip(call(torchkiln.load(output, "cpu")), call(Engine(tiny_contents())), strict=True))


def test_equal_weights_are_stored_once(files, tmp_path):
    output = tmp_path / "all.kiln"
    merge(files, output)
    weight = tiny_contents().segments[0].artifact.tensors["weight"].numpy().tobytes()
    assert output.read_bytes().count(weight) == 1
    held = read_engine_file(output)
    assert held[0].segments[0].artifact.tensors["weight"].data_ptr() == held[1].segments[0].artifact.tensors["weight"].data_ptr()


def test_into_one_of_them(files):
    merge(files, files[0])
    assert len(read_engine_file(files[0])) == 2


def test_what_does_not_go_together(files, tmp_path):
    before = files[0].read_bytes()
    with pytest.raises(UserError, match="expected two engine files or more, got 1"):
        merge(files[:1], files[0])
    with pytest.raises(UserError, match="cpu is there twice"):
        merge([files[0], files[0]], files[0])
    other = replace(tiny_contents(), targets=("sm_75",), device="cuda")
    other.inputs = (replace_name(other.inputs[0]), *other.inputs[1:])
    write_engine_file([other], tmp_path / "other.kiln")
    with pytest.raises(UserError, match=r"other.kiln does not go with the files before it: .* differ in their inputs or outputs"):
        merge([files[0], tmp_path / "other.kiln"], files[0])
    (tmp_path / "text.kiln").write_text("no engine")
    with pytest.raises(CorruptEngineFile, match=r"text\.kiln"):
        merge([files[0], tmp_path / "text.kiln"], files[0])
    assert files[0].read_bytes() == before


def replace_name(spec):
    return torchkiln.Input(min_shape=spec.min_shape, opt_shape=spec.opt_shape, max_shape=spec.max_shape, dtype=spec.dtype, name="renamed")
