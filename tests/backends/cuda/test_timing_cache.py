"""The timing cache: what is put is got, by other processes too, whatever the state of the file."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import sqlite3
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from torchkiln.backends.cuda import timing_cache
from torchkiln.backends.cuda.timing_cache import FILE_NAME, SCHEMA, Entry, TimingCache, default_path, environment, key, source_digest

ENTRY = Entry("conv_gemm", {"BM": 64, "stages": 3}, 12.5, [["conv_gemm", {"BM": 64, "stages": 3}, 12.5, ""], ["cudnn", {}, None, "no engine"]])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / FILE_NAME


def test_round_trip(path):
    cache = TimingCache(path)
    assert cache.get("a") is None
    cache.put("a", ENTRY)
    assert cache.get("a") == ENTRY == TimingCache(path).get("a")
    other = dataclasses.replace(ENTRY, median_us=3.0)
    TimingCache(path).put("a", other)
    assert cache.get("a") == other
    cache.clear()
    assert cache.get("a") is None
    assert TimingCache(path).get("a") is None


def _write_many(path, process):
    cache = TimingCache(path)
    for index in range(20):
        cache.put(f"{process}-{index}", dataclasses.replace(ENTRY, median_us=float(index)))


def test_several_processes(path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    cache = TimingCache(path)
    assert all(cache.get(f"{number}-{index}").median_us == index for number in range(2) for index in range(20))


def test_several_threads(path):
    cache = TimingCache(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: cache.put(str(index), dataclasses.replace(ENTRY, median_us=float(index))), range(50)))
    assert all(TimingCache(path).get(str(index)).median_us == index for index in range(50))


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at " * 10, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_damaged_file_is_moved_aside(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    cache = TimingCache(path)
    with caplog.at_level(logging.WARNING, "torchkiln"):
        assert cache.get("a") is None
    assert "is damaged" in caplog.text
    assert [file.read_bytes() for file in path.parent.glob("*.damaged-*")] == [content]
    cache.put("a", ENTRY)
    assert TimingCache(path).get("a") == ENTRY


def test_damage_inside_is_moved_aside(path):
    cache = TimingCache(path)
    for index in range(200):
        cache.put(str(index), ENTRY)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    assert cache.get("5") is None
    cache.put("5", ENTRY)
    assert cache.get("5") == ENTRY
    assert list(path.parent.glob("*.damaged-*"))


def test_other_schema_is_moved_aside(path):
    TimingCache(path).put("a", ENTRY)
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    assert TimingCache(path).get("a") is None
    assert list(path.parent.glob("*.damaged-*"))


def test_malformed_entry_is_a_miss(path):
    cache = TimingCache(path)
    cache.put("a", ENTRY)
    for text in ("{", "[]", '{"unknown": 1}'):
        with sqlite3.connect(path) as database:
            database.execute("UPDATE timings SET entry = ?", (text,))
        database.close()
        assert cache.get("a") is None
    cache.put("a", ENTRY)
    assert cache.get("a") == ENTRY


def test_unwritable_place_keeps_entries_in_memory(tmp_path):
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "below" / FILE_NAME)
    assert cache.get("a") is None
    cache.put("a", ENTRY)
    assert cache.get("a") == ENTRY
    cache.clear()
    assert cache.get("a") is None


def test_directory_in_its_place(path):
    path.mkdir(parents=True)
    cache = TimingCache(path)
    cache.put("a", ENTRY)
    assert cache.get("a") == ENTRY


def test_file_that_can_only_be_read(path, monkeypatch):
    """Found entries are used, new ones are kept in memory."""
    TimingCache(path).put("a", ENTRY)
    connect = sqlite3.connect
    monkeypatch.setattr(timing_cache.sqlite3, "connect", lambda p, **options: connect(f"file:{p}?mode=ro", uri=True, **options))
    cache = TimingCache(path)
    assert cache.get("a") == ENTRY
    cache.put("b", ENTRY)
    assert cache.get("b") == ENTRY
    monkeypatch.undo()
    assert TimingCache(path).get("b") is None


def test_file_locked_by_another(path, monkeypatch):
    cache = TimingCache(path)
    cache.put("a", ENTRY)
    monkeypatch.setattr(timing_cache, "_BUSY_S", 0.05)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    assert cache.get("a") is None
    cache.put("b", ENTRY)
    assert cache.get("b") == ENTRY
    database.execute("ROLLBACK")
    database.close()
    assert cache.get("a") == ENTRY


def test_default_path(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHKILN_CACHE", raising=False)
    assert default_path().name == FILE_NAME
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
    assert default_path() == tmp_path / FILE_NAME == TimingCache().path
    monkeypatch.setenv("TORCHKILN_CACHE", "off")
    assert default_path() is None
    cache = TimingCache()
    cache.put("a", ENTRY)
    assert cache.get("a") == ENTRY
    assert not list(tmp_path.iterdir())


def test_key_and_environment(monkeypatch):
    gpu = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    found = environment(0)
    assert found["gpu"] == "NVIDIA H200"
    assert found["capability"] == [9, 0]
    assert found["multiprocessors"] == 132
    assert found["torch"] == torch.__version__
    assert found["triton"]
    assert found["sources"] == source_digest()
    assert key("p", found) == key("p", dict(reversed(found.items())))
    assert len(key("p", found)) == 64
    assert len({key("p", found), key("q", found), key("p", {**found, "torch": "other"})}) == 3


def test_source_digest_covers_the_kernels(monkeypatch, tmp_path):
    for folder in ("tactics", "kernels", "pointwise", "passes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("one")
    choosers = timing_cache._CHOOSERS
    for name in choosers:
        assert (Path(timing_cache.__file__).parent / name).is_file()
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(timing_cache, "__file__", str(tmp_path / "timing_cache.py"))
    digests = set()
    for folder in ("passes", "tactics", "kernels", "pointwise"):
        Path(tmp_path / folder / "a.py").write_text("two")
        source_digest.cache_clear()
        digests.add(source_digest())
    for name in choosers:
        (tmp_path / name).write_text("two")
        source_digest.cache_clear()
        digests.add(source_digest())
    (tmp_path / "kernels" / "a.py").rename(tmp_path / "kernels" / "b.py")
    source_digest.cache_clear()
    digests.add(source_digest())
    source_digest.cache_clear()
    assert len(digests) == len(choosers) + 5
