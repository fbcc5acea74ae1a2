"""merge: engine files for different targets as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import torchkiln
from torchkiln.engine.contents import BuiltOn
from torchkiln.engine.engine import Engine
from torchkiln.engine.file import read_engine_file, read_manifest, write_engine_file
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
    with pytest.raises(UserError, match=r"other.kiln does not go with the files before it: .* differ in their inputs \(name"):
        merge([files[0], tmp_path / "other.kiln"], files[0])
    (tmp_path / "text.kiln").write_text("no engine")
    with pytest.raises(CorruptEngineFile, match=r"text\.kiln"):
        merge([files[0], tmp_path / "text.kiln"], files[0])
    assert files[0].read_bytes() == before


def test_what_no_call_depends_on_may_differ(files, tmp_path):
    other = replace(tiny_contents(), targets=("sm_75",), device="cuda")
    spec = other.inputs[0]
    tuned = torchkiln.Input(min_shape=spec.min_shape, opt_shape=spec.min_shape, max_shape=spec.max_shape, name=spec.name, tensor_domain=(0.0, 1.0))
    other.inputs = (tuned, *other.inputs[1:])
    write_engine_file([other], tmp_path / "other.kiln")
    assert merge([files[0], tmp_path / "other.kiln"], tmp_path / "all.kiln") == ("cpu", "sm_75")


def test_other_weights_are_refused(tmp_path):
    for name, digest, target in (("a", "1" * 64, "cpu"), ("b", "2" * 64, "sm_89"), ("c", "", "sm_90")):
        device = "cpu" if target == "cpu" else "cuda"
        write_engine_file([replace(tiny_contents(), targets=(target,), device=device, model_sha256=digest)], tmp_path / f"{name}.kiln")
    with pytest.raises(UserError, match=r"b\.kiln does not go .* cpu and sm_89 were built from models with different weights"):
        merge([tmp_path / "a.kiln", tmp_path / "b.kiln"], tmp_path / "all.kiln")
    assert merge([tmp_path / "a.kiln", tmp_path / "c.kiln"], tmp_path / "all.kiln") == ("cpu", "sm_90")
    assert [c.model_sha256 for c in read_engine_file(tmp_path / "all.kiln")] == ["1" * 64, ""]


def test_native_code_of_another_machine_is_copied(files, tmp_path):
    foreign = replace(tiny_contents(), targets=("sm_75",), device="cuda", built_on=BuiltOn("Windows", "AMD64", "0.1.0", {}))
    foreign.segments[0].artifact.native_code = True
    foreign.segments[0].backend = "inductor"
    write_engine_file([foreign], tmp_path / "foreign.kiln")
    merge([files[0], tmp_path / "foreign.kiln"], tmp_path / "all.kiln")
    manifest = read_manifest(tmp_path / "all.kiln")
    assert manifest["targets"][1]["built_on"]["system"] == "Windows"


def replace_name(spec):
    return torchkiln.Input(min_shape=spec.min_shape, opt_shape=spec.opt_shape, max_shape=spec.max_shape, dtype=spec.dtype, name="renamed")
