"""The runtime cache's files. What the library makes of its blobs is made here: see fake_tensorrt.py."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from torchkiln import log as log_module
from torchkiln.backends.tensorrt import runtime_cache
from torchkiln.backends.tensorrt.runtime import load
from torchkiln.backends.tensorrt.runtime_cache import RuntimeCache, cache_directory, cache_path, remove_old_files

from .fake_tensorrt import DEVICE, FakeConfig, FakeLibrary, make_artifact

F32 = torch.float32


def artifact():
    profiles = [{"x": ((1, 5), (9, 5))}]
    return make_artifact("double_and_sum", [("x", F32, (-1, 5))], [("a", F32, (-1, 5)), ("b", F32, (-1,))], profiles)


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


@pytest.fixture
def shown(monkeypatch, caplog):
    monkeypatch.setattr(log_module, "_level", 4)
    caplog.set_level(logging.INFO, logger="torchkiln")
    return caplog


def test_where_the_files_are(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path / "tensorrt-rtx"
    path = cache_path(b"plan", "NVIDIA GeForce RTX 4090", "1.7.1.116")
    assert path.name.endswith("-NVIDIA-GeForce-RTX-4090-1.7.1.116.rtxcache")
    others = [cache_path(b"plan", "NVIDIA L4", "1.7.1.116"), cache_path(b"plan2", "NVIDIA L4", "1.7.1.116"), cache_path(b"plan", "NVIDIA L4", "1.8")]
    assert len({path, *others}) == 4
    monkeypatch.setenv("TORCHKILN_CACHE", "OFF")
    assert cache_directory() is None
    assert cache_path(b"plan", "GPU", "1") is None
    monkeypatch.delenv("TORCHKILN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert "torchkiln" in str(cache_directory())


def test_saved_after_the_first_call_and_when_the_runner_goes(make_machine, tmp_path):
    machine = make_machine()
    runner = load(artifact(), DEVICE, None)
    assert files(tmp_path) == []
    runner([torch.randn(2, 5)])
    (path,) = files(tmp_path)
    assert b"(2, 5)" in path.read_bytes()
    written = path.stat().st_mtime_ns
    runner([torch.randn(2, 5)])
    runner([torch.randn(3, 5)])
    assert path.stat().st_mtime_ns == written
    del runner
    gc.collect()
    assert b"(3, 5)" in path.read_bytes()
    # Another process finds it.
    load(artifact(), DEVICE, None)([torch.randn(2, 5)])
    (context,) = machine.module.contexts[1:]
    assert len(context.config.cache.kernels) == 2


def test_saved_at_the_end_of_the_interpreter(tmp_path):
    root = Path(__file__).parents[3]
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch
        from torchkiln.backends.tensorrt import open_plan
        from torchkiln.backends.tensorrt.runtime import load
        from tests.backends.tensorrt.conftest import Machine
        from tests.backends.tensorrt.test_runtime_cache import artifact
        machine = Machine()
        open_plan.find_gpu, open_plan.import_runtime = lambda device: machine.gpu, machine.import_runtime
        open_plan.make_logger = lambda library: None
        from torchkiln.backends.tensorrt import execution_context
        execution_context.ALIGNMENT_BYTES = 64
        runner = load(artifact(), torch.device("cuda", 0), None)
        for size in (2, 3):
            runner([torch.randn(size, 5)])
        """
    )
    environment = {**os.environ, "TORCHKILN_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script, str(root)], env=environment, check=True, timeout=120)
    (path,) = files(tmp_path)
    assert b"(2, 5)" in path.read_bytes()
    assert b"(3, 5)" in path.read_bytes()


def test_off_keeps_nothing(make_machine, monkeypatch, tmp_path):
    machine = make_machine()
    monkeypatch.setenv("TORCHKILN_CACHE", "off")
    load(artifact(), DEVICE, None)([torch.randn(2, 5)])
    assert machine.module.contexts[0].config.cache is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: b"other" * 99, lambda d: d[:-4] + b"XXXX"])
def test_a_damaged_file_is_not_given_to_the_library_and_is_replaced(make_machine, tmp_path, shown, damage):
    machine = make_machine()
    load(artifact(), DEVICE, None)([torch.randn(2, 5)])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    load(artifact(), DEVICE, None)([torch.randn(2, 5)])
    assert machine.module.blobs == []
    assert path.read_bytes() == whole
    assert "will be replaced" in shown.text


def test_a_blob_that_the_library_refuses_is_replaced(tmp_path, shown):
    path = tmp_path / "a.rtxcache"
    runtime_cache._write(path, b"of another driver", runtime_cache.hashlib.sha256(b"of another driver").digest())
    module = FakeLibrary()
    cache = RuntimeCache(FakeConfig(module), path)
    assert module.blobs == [b"of another driver"]
    assert "the library refuses" in shown.text
    cache.mark_changed()
    cache.save()
    assert runtime_cache._read(path) == b"kernels []"


def test_nothing_is_written_when_nothing_is_new(tmp_path):
    path = tmp_path / "a.rtxcache"
    cache = RuntimeCache(FakeConfig(FakeLibrary()), path)
    cache.save()
    assert not path.exists()
    cache.mark_changed()
    cache.save()
    os.utime(path, (1, 1))
    cache.mark_changed()
    cache.save()
    assert path.stat().st_mtime == 1


def test_what_cannot_be_kept_is_a_line_in_the_log(tmp_path, shown):
    (tmp_path / "file").write_text("in the way")
    cache = RuntimeCache(FakeConfig(FakeLibrary()), tmp_path / "file" / "a.rtxcache")
    cache.mark_changed()
    cache.save()
    assert "cannot write" in shown.text
    assert "cannot read" in shown.text
    module = FakeLibrary()
    module.refuse = {"serialize", "set_runtime_cache"}
    cache = RuntimeCache(FakeConfig(module), tmp_path / "b.rtxcache")
    cache.mark_changed()
    cache.save()
    assert "did not take it" in shown.text
    assert "could not serialize" in shown.text
    assert not (tmp_path / "b.rtxcache").exists()


def test_a_failed_write_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    cache = RuntimeCache(FakeConfig(FakeLibrary()), tmp_path / "a.rtxcache")
    monkeypatch.setattr(runtime_cache.os, "replace", fail)
    cache.mark_changed()
    cache.save()
    assert files(tmp_path) == []


def test_the_oldest_files_go_first(tmp_path):
    now = time.time()
    for age, name in enumerate(["new", "middle", "old", "oldest"]):
        path = tmp_path / f"{name}.rtxcache"
        path.write_bytes(b"x" * 100)
        os.utime(path, (now - age * 10, now - age * 10))
    for name, age in (("writing-1.tmp", 7200), ("writing-2.tmp", 60), ("notes.txt", 7200)):
        (tmp_path / name).write_bytes(b"y" * 1000)
        os.utime(tmp_path / name, (now - age, now - age))
    remove_old_files(tmp_path, keep=tmp_path / "oldest.rtxcache", limit_bytes=250)
    assert {p.name for p in files(tmp_path)} == {"new.rtxcache", "oldest.rtxcache", "writing-2.tmp", "notes.txt"}
    remove_old_files(tmp_path, keep=tmp_path / "oldest.rtxcache", limit_bytes=10)
    assert "oldest.rtxcache" in {p.name for p in files(tmp_path)}


def test_a_file_that_cannot_be_removed_is_a_line_in_the_log(tmp_path, monkeypatch, shown):
    for name in "ab":
        (tmp_path / f"{name}.rtxcache").write_bytes(b"x" * 100)

    def fail(self, missing_ok=False):
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "unlink", fail)
    remove_old_files(tmp_path, keep=tmp_path / "a.rtxcache", limit_bytes=100)
    assert "cannot remove" in shown.text
    assert len(files(tmp_path)) == 2


def test_a_save_keeps_the_directory_within_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_cache, "LIMIT_BYTES", 500)
    old = tmp_path / "old.rtxcache"
    old.write_bytes(b"x" * 499)
    os.utime(old, (1, 1))
    cache = RuntimeCache(FakeConfig(FakeLibrary()), tmp_path / "a.rtxcache")
    cache.mark_changed()
    cache.save()
    assert files(tmp_path) == [tmp_path / "a.rtxcache"]
