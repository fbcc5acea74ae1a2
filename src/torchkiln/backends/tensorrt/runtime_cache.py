"""runtime_cache: the kernels that TensorRT-RTX compiled for this GPU, kept on disk, so that the next process need not compile them.

One file a plan, GPU and library version, in the user's cache directory. TORCHKILN_CACHE names another directory; "off" keeps nothing.
The cache only saves time: a file that is damaged, foreign or cannot be written is a line in the log, never an error.

Run on real hardware: nothing of the library's own part. That its blobs come back and save time is NVIDIA's word; the handling of files is tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ...log import STEPS, SUMMARY, log

VARIABLE = "TORCHKILN_CACHE"
OFF = "off"
SUFFIX = ".rtxcache"
#: Bound on the whole directory. Files unused for longest go first.
LIMIT_BYTES = 2 << 30
#: A file that another process is still writing is younger than this.
_STALE_S = 3600.0
_MAGIC = b"torchkiln TensorRT-RTX runtime cache 1\n"
_DIGEST_BYTES = 32


def cache_directory() -> Path | None:
    """Where the files are; None when the user turned the cache off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == OFF:
        return None
    if chosen:
        return Path(chosen).expanduser() / "tensorrt-rtx"
    import platformdirs

    return Path(platformdirs.user_cache_dir("torchkiln", appauthor=False)) / "tensorrt-rtx"


def cache_path(plan: bytes, gpu_name: str, version: str) -> Path | None:
    """The file for this plan on this GPU with this library; None when the cache is off."""
    directory = cache_directory()
    if directory is None:
        return None
    machine = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu_name}-{version}").strip("-")
    return directory / f"{hashlib.sha256(plan).hexdigest()[:32]}-{machine}{SUFFIX}"


class RuntimeCache:
    """TensorRT-RTX's cache of one plan, attached to ``config`` (its IRuntimeConfig), read from ``path`` and written back there.

    Safe under concurrent calls from several threads.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._config = config
        self._cache = config.create_runtime_cache()
        self._lock = threading.Lock()
        self._changed = False
        self._saved = b""
        blob = _read(path)
        if blob is not None:
            if self._cache.deserialize(blob):
                self._saved = hashlib.sha256(blob).digest()
                log(STEPS, "runtime cache: %d bytes from %s", len(blob), path)
            else:
                log(SUMMARY, "runtime cache: the library refuses %s (another driver, GPU or version, or damage): it will be replaced", path)
        if config.set_runtime_cache(self._cache) is False:
            log(SUMMARY, "runtime cache: the library did not take it; kernels are compiled in every process")

    def mark_changed(self) -> None:
        """Kernels may have been compiled since the last save."""
        self._changed = True

    def save(self) -> None:
        """Write the file if there is something new. Raises nothing: what goes wrong is logged."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            memory = self._cache.serialize()
            if memory is None:
                log(SUMMARY, "runtime cache: the library could not serialize it")
                return
            blob = bytes(memory)
            digest = hashlib.sha256(blob).digest()
            if digest == self._saved:
                return
            try:
                _write(self._path, blob, digest)
            except OSError as error:
                log(SUMMARY, "runtime cache: cannot write %s (%s); set %s to another directory, or to %s", self._path, error, VARIABLE, OFF)
                return
            self._saved = digest
            log(STEPS, "runtime cache: %d bytes to %s", len(blob), self._path)
            remove_old_files(self._path.parent, keep=self._path)


def remove_old_files(directory: Path, keep: Path, limit_bytes: int | None = None) -> None:
    """Remove the cache files unused for longest until the rest fits ``limit_bytes`` (LIMIT_BYTES), and what writers left behind. ``keep`` stays."""
    limit = LIMIT_BYTES if limit_bytes is None else limit_bytes
    found = []
    for path in directory.iterdir():
        # Another process may remove a file between the listing and the look at it.
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == SUFFIX:
                found.append((path == keep, status.st_mtime, status.st_size, path))
            elif path.suffix == ".tmp" and path.name.startswith("writing-") and time.time() - status.st_mtime > _STALE_S:
                path.unlink()
    total = sum(size for _, _, size, _ in found)
    for is_kept, _, size, path in sorted(found):
        if total <= limit or is_kept:
            break
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log(SUMMARY, "runtime cache: cannot remove %s (%s)", path, error)
            continue
        total -= size


def _read(path: Path) -> bytes | None:
    """The blob in ``path``; None, with a line in the log, when there is none that is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log(SUMMARY, "runtime cache: cannot read %s (%s)", path, error)
        return None
    with contextlib.suppress(OSError):  # a directory that cannot be written can still be read
        os.utime(path)  # used now: remove_old_files goes by this
    start = len(_MAGIC) + _DIGEST_BYTES
    blob = data[start:]
    # The library is native code: it is not given a damaged file to parse.
    if not data.startswith(_MAGIC) or data[len(_MAGIC) : start] != hashlib.sha256(blob).digest():
        log(SUMMARY, "runtime cache: %s is damaged or not a torchkiln cache: it will be replaced", path)
        return None
    return blob


def _write(path: Path, blob: bytes, digest: bytes) -> None:
    """Atomic: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(prefix="writing-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + digest + blob)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
