"""replace_file: the new file whole, or the old one as it was; never a file besides."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkiln.replace_file import replace_file


@pytest.mark.parametrize("old", [None, b"old"])
def test_the_new_file_takes_the_place(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "m.bin"
    if old is not None:
        path.write_bytes(old)
    with replace_file(path) as file:
        file.write(b"new")
        assert (path.read_bytes() if path.exists() else None) == old
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path, error: type[BaseException]) -> None:
    with replace_file(path) as file:
        file.write(b"half")
        raise error


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "absent" / "m.bin"):
        pass
