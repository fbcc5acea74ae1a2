"""The engine file: what is written is read back, atomically, with weights stored once, and nothing runs that was not asked for."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import zipfile

import pytest
import safetensors.torch
import torch

from torchkiln.engine import file as engine_file
from torchkiln.engine.artifact import Artifact
from torchkiln.engine.contents import EngineSegment
from torchkiln.engine.engine import Engine, load
from torchkiln.engine.file import read_engine_file, read_manifest, write_engine_file
from torchkiln.engine.safetensors_member import parse_tensors, tensor_chunks
from torchkiln.errors import CompilerBug, CorruptEngineFile, TargetMismatch, UntrustedCode, UserError

from .tiny_engine import call, members_of, signed, tiny_contents


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.kiln"


def native(contents, backend="inductor", native_code=True):
    contents.segments[1].artifact.native_code = native_code
    contents.segments[1].backend = backend
    return contents


def test_round_trip(path):
    contents = tiny_contents()
    write_engine_file([contents], path)
    (loaded,) = read_engine_file(path)
    for name in ("device", "inputs", "args_structure", "outputs_structure", "output_names", "output_slots", "slot_count", "report"):
        assert getattr(loaded, name) == getattr(contents, name), name
    for got, expected in zip(loaded.segments, contents.segments, strict=True):
        assert (got.name, got.backend, got.precision, got.inputs, got.outputs) == (
            expected.name,
            expected.backend,
            expected.precision,
            expected.inputs,
            expected.outputs,
        )
        assert (got.artifact.payload, got.artifact.metadata) == (expected.artifact.payload, expected.artifact.metadata)
        assert got.artifact.tensors.keys() == expected.artifact.tensors.keys()
        assert all(torch.equal(got.artifact.tensors[k], expected.artifact.tensors[k]) for k in got.artifact.tensors)
    assert all(torch.equal(a, b) for a, b in zip(call(Engine(loaded)), call(Engine(contents)), strict=True))


def test_outputs_are_those_of_the_model(path):
    contents = tiny_contents(seed=5)
    write_engine_file([contents], path)
    weight, bias = (contents.segments[0].artifact.tensors[k] for k in ("weight", "bias"))
    x, y = torch.randn(7, 19), torch.randn(1, 19)
    got = load(path)(x, y=y)
    h = torch.relu(x @ weight.T + bias)
    torch.testing.assert_close(got["out"], h @ weight + 2 * y)
    torch.testing.assert_close(got["rest"][0], h)
    assert got["rest"][1:] == [3, None]


def test_equal_engines_give_equal_files(tmp_path):
    for name in ("a.kiln", "b.kiln"):
        write_engine_file([tiny_contents()], tmp_path / name)
    write_engine_file(read_engine_file(tmp_path / "a.kiln"), tmp_path / "c.kiln")
    assert (tmp_path / "a.kiln").read_bytes() == (tmp_path / "b.kiln").read_bytes() == (tmp_path / "c.kiln").read_bytes()


def test_a_tensor_that_two_segments_read_is_stored_once(path):
    contents = tiny_contents()
    write_engine_file([contents], path)
    weight = contents.segments[0].artifact.tensors["weight"].numpy().tobytes()
    assert path.read_bytes().count(weight) == 1
    (loaded,) = read_engine_file(path)
    assert loaded.segments[0].artifact.tensors["weight"].data_ptr() == loaded.segments[1].artifact.tensors["weight"].data_ptr()


def test_members_are_what_other_programs_read(path):
    contents = tiny_contents()
    write_engine_file([contents], path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    members = members_of(path.read_bytes())
    tensors = safetensors.torch.load(members["targets/0/segment_0.safetensors"])
    assert torch.equal(tensors["weight"], contents.segments[0].artifact.tensors["weight"])
    manifest = json.loads(members["manifest.json"])
    assert read_manifest(path)["targets"][0]["segments"] == manifest["targets"][0]["segments"]
    assert manifest["targets"][0]["built_on"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_infinity_in_a_report_stays_json(path):
    write_engine_file([tiny_contents()], path)
    text = members_of(path.read_bytes())["manifest.json"].decode()
    assert "Infinity" not in text
    assert read_engine_file(path)[0].report.candidates[0].relative_error == float("inf")


@pytest.mark.parametrize("seed", range(4))
def test_safetensors_of_every_dtype(seed):
    generator = torch.Generator().manual_seed(seed)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    tensors = {}
    for i, dtype in enumerate((*dtypes, torch.complex64, torch.float8_e4m3fn, torch.uint16)):
        shape = torch.randint(0, 6, (int(torch.randint(0, 4, (), generator=generator)),), generator=generator).tolist()
        tensors[f"t{i}"] = torch.randint(0, 2, shape, generator=generator).float().to(dtype)
    tensors["strided"] = torch.randn(7, 5, generator=generator).t()
    data = bytearray(b"".join(bytes(chunk) for chunk in tensor_chunks(tensors, "test")))
    read = parse_tensors(torch.frombuffer(data, dtype=torch.uint8), "test")
    theirs = safetensors.torch.load(bytes(data))
    assert read.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for got in (read[name], theirs[name]):
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert got.contiguous().reshape(-1).view(torch.uint8).tolist() == tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_safetensors_of_an_unknown_dtype():
    with pytest.raises(CompilerBug, match=r"'t'.*complex128"):
        list(tensor_chunks({"t": torch.zeros(3, dtype=torch.complex128)}, "test"))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.kiln: cannot open"):
        read_engine_file(tmp_path / "absent.kiln")
    with pytest.raises(UserError, match="cannot open"):
        read_engine_file(tmp_path)


def test_errors_name_the_file(path):
    path.write_bytes(b"not a zip")
    with pytest.raises(CorruptEngineFile, match=r"tiny\.kiln: not an engine file"):
        read_engine_file(path)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="absent"):
        write_engine_file([tiny_contents()], tmp_path / "absent" / "tiny.kiln")
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_engine_file([tiny_contents()], tmp_path / "directory")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), CompilerBug("bad metadata")])
def test_a_failed_write_leaves_the_old_file(path, monkeypatch, failure):
    write_engine_file([tiny_contents(seed=1)], path)
    before = path.read_bytes()

    def fail(tensors, where):
        yield b"some bytes"
        raise failure

    monkeypatch.setattr(engine_file, "tensor_chunks", fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else type(failure)):
        write_engine_file([tiny_contents(seed=2)], path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_readers_see_the_old_file_or_the_new(path):
    files = [tiny_contents(seed) for seed in (1, 2)]
    write_engine_file([files[0]], path)
    bytes_of = {contents.segments[0].artifact.tensors["weight"].numpy().tobytes() for contents in files}
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for contents in files:
                write_engine_file([contents], path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {read_engine_file(path)[0].segments[0].artifact.tensors["weight"].numpy().tobytes() for _ in range(60)}
    finally:
        stop.set()
        writer.join()
    assert seen <= bytes_of


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_mode_and_links(path, tmp_path):
    link = tmp_path / "link.kiln"
    link.symlink_to(path)
    old = os.umask(0o027)
    try:
        write_engine_file([tiny_contents()], link)
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("backend", "flag"), [("inductor", True), ("inductor", False), ("openvino", True), ("cuda", True), ("cuda", False)])
def test_native_code_needs_trust(path, backend, flag):
    write_engine_file([native(tiny_contents(), backend, flag)], path)
    with pytest.raises(UntrustedCode, match=rf"segment_1 \({backend}\).*trusted=True"):
        read_engine_file(path)
    assert read_engine_file(path, trusted=True)[0].segments[1].backend == backend
    assert read_manifest(path)["targets"][0]["segments"][1]["native_code"] is flag


def test_native_code_of_another_machine(path):
    write_engine_file([native(tiny_contents())], path)
    members = members_of(path.read_bytes())
    manifest = json.loads(members["manifest.json"])
    manifest["targets"][0]["built_on"]["machine"] = "riscv128"
    path.write_bytes(signed(members, manifest))
    with pytest.raises(TargetMismatch, match="riscv128"):
        read_engine_file(path, trusted=True)


def test_contents_that_do_not_hold_together_are_not_written(path):
    contents = tiny_contents()
    contents.segments = (*contents.segments, EngineSegment("segment_0", "torch", "fp32", (0,), (3,), Artifact(b"")))
    with pytest.raises(CorruptEngineFile, match="twice"):
        write_engine_file([contents], path)
    assert not path.exists()


def test_metadata_that_is_not_json(path):
    contents = tiny_contents()
    contents.segments[0].artifact.metadata["dtype"] = torch.float16
    with pytest.raises(CompilerBug, match="manifest"):
        write_engine_file([contents], path)
    assert not path.exists()


def test_loading_imports_no_compiler(path):
    write_engine_file([tiny_contents()], path)
    code = (
        "import sys, torchkiln.engine.engine as e; e.load(sys.argv[1]);"
        "compiler = ('capture', 'lower', 'partition', 'race', 'verify', 'bench', 'cli', 'compiler');"
        "ours = [m for m in sys.modules if m.startswith('torchkiln.')];"
        "bad = [m for m in ours if m.split('.')[1] in compiler or m.endswith('.build')]; assert ours and not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


def test_large_weights_are_not_copied(tmp_path):
    """Reading takes the weights' own size and little more."""
    pytest.importorskip("resource")
    contents = tiny_contents()
    contents.segments[0].artifact.tensors["large"] = torch.randn(25_000_000)
    path = tmp_path / "large.kiln"
    write_engine_file([contents], path)
    code = (
        "import sys, resource, torch; from torchkiln.engine.file import read_engine_file;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); contents = read_engine_file(sys.argv[1]); print(peak() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120, capture_output=True, text=True).stdout)
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 150_000_000
