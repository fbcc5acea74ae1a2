"""timing_cache: which tactic was fastest for a problem on this GPU, with these versions: an SQLite file that processes share.

The cache only saves time: a file that is damaged or cannot be written is a line in the log, never an error. TORCHKILN_CACHE names another directory;
"off" keeps nothing on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...log import REJECTS, SUMMARY, log, logger
from .cublaslt import version as cublaslt_version

VARIABLE = "TORCHKILN_CACHE"
OFF = "off"
SCHEMA = 1
#: What compiles, checks and chooses, beside kernels and tactics.
_CHOOSERS = (
    "assemble_plan.py",
    "compile_kernel.py",
    "cublaslt.py",
    "cusparselt.py",
    "driver.py",
    "fences.py",
    "int8_samples.py",
    "is_matrix_product.py",
    "measure.py",
    "memory_plan.py",
    "refine_choices.py",
    "replay_us.py",
    "time_plans.py",
    "tuner.py",
)
FILE_NAME = f"timing-cache-{SCHEMA}.sqlite"
#: How long a process waits for the others' writes.
_BUSY_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What was chosen for a problem.

    Attributes:
        median_us: of the chosen tactic.
        candidates: all that were tried: [tactic, config, median in us or None, error or why it was not measured].
    """

    tactic: str
    config: dict[str, Any]
    median_us: float
    candidates: list[list[Any]] = field(default_factory=list)


class TimingCache:
    """Entries by key. Safe with several threads and processes; a process that forks goes on with connections of its own.

    What cannot be written to the file is kept for the life of this object.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """``path``: the file; None: ``default_path()``."""
        self.path = default_path() if path is None else Path(path).expanduser()
        self._lock = threading.Lock()
        self._memory: dict[str, str] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            self._go_without(error)

    def get(self, key: str) -> Entry | None:
        """The entry, None when there is none."""

        def read(database: sqlite3.Connection) -> str | None:
            row = database.execute("SELECT entry FROM timings WHERE key = ?", (key,)).fetchone()
            return row[0] if row else None

        with self._lock:
            text = self._memory.get(key) or self._attempt(read)
        if text is None:
            return None
        try:
            return Entry(**json.loads(text))
        except (TypeError, ValueError) as error:
            log(SUMMARY, "timing cache: the entry %s is malformed (%s): it will be replaced", key, error)
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Store, in place of what was there."""
        text = json.dumps(asdict(entry), sort_keys=True)

        def write(database: sqlite3.Connection) -> bool:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR REPLACE INTO timings (key, entry, written) VALUES (?, ?, ?)", (key, text, int(time.time())))
            database.execute("COMMIT")
            return True

        with self._lock:
            self._memory.pop(key, None)
            if not self._attempt(write):
                self._memory[key] = text

    def clear(self) -> None:
        """Forget everything."""

        def delete(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM timings")
            database.execute("COMMIT")

        with self._lock:
            self._memory.clear()
            self._attempt(delete)

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do it on the file; with a new one when the file is damaged. None when it cannot be done."""
        for last in (False, True):
            if self.path is None:
                return None
            try:
                with closing(_connect(self.path)) as database:
                    return action(database)
            except sqlite3.OperationalError as error:  # no permission, no space, locked for too long
                if "locked" in str(error) or "busy" in str(error):
                    log(SUMMARY, "timing cache: %s is locked by another process for more than %d s", self.path, _BUSY_S)
                elif _is_readable(self.path):
                    log(SUMMARY, "timing cache: cannot use %s (%s)", self.path, error)
                else:
                    self._go_without(error)
                return None
            except sqlite3.DatabaseError as error:
                if last:
                    self._go_without(error)
                    return None
                self._move_aside(error)
        return None

    def _move_aside(self, error: Exception) -> None:
        assert self.path is not None
        aside = self.path.with_name(f"{self.path.name}.damaged-{os.getpid()}-{time.time_ns()}")
        logger.warning("timing cache: %s is damaged (%s): moved to %s, a new one is begun", self.path, error, aside.name)
        try:
            # A journal left behind would be replayed into the new file.
            Path(f"{self.path}-journal").unlink(missing_ok=True)
            os.replace(self.path, aside)
        except FileNotFoundError:
            pass  # another process was faster
        except OSError as failure:
            self._go_without(failure)

    def _go_without(self, error: Exception) -> None:
        log(
            SUMMARY,
            "timing cache: cannot use %s (%s); timings are kept in memory only. Set %s to another directory, or to %s",
            self.path,
            error,
            VARIABLE,
            OFF,
        )
        self.path = None


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that has the table. A connection for each use costs 0.1 ms and knows nothing of threads and forks."""
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS timings (key TEXT PRIMARY KEY, entry TEXT NOT NULL, written INTEGER NOT NULL)")
            database.execute(f"PRAGMA user_version = {SCHEMA}")
            database.execute("COMMIT")
        elif version != SCHEMA:
            raise sqlite3.DatabaseError(f"its schema is version {version}, not {SCHEMA}")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def default_path() -> Path | None:
    """The file in the user's cache directory; None when the user turned caches off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == OFF:
        return None
    if chosen:
        return Path(chosen).expanduser() / FILE_NAME
    import platformdirs

    return Path(platformdirs.user_cache_dir("torchkiln", appauthor=False)) / FILE_NAME


def key(problem_key: str, environment: Mapping[str, Any]) -> str:
    """Of a problem (``Problem.key()``) in an environment (``environment()``)."""
    return hashlib.sha256(json.dumps([problem_key, environment], sort_keys=True).encode()).hexdigest()


def environment(device: torch.device | int | None = None) -> dict[str, Any]:
    """All that timings depend on besides the problem: the GPU, the versions, torchkiln's own kernels."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _triton_version(),
        "cudnn": torch.backends.cudnn.version(),
        "cublaslt": cublaslt_version(),
        "sources": source_digest(),
    }


@cache
def _triton_version() -> str:
    for name in ("triton", "triton-windows", "pytorch-triton"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            log(REJECTS, "timing cache: no package %s", name)
    return ""


@cache
def source_digest() -> str:
    """SHA-256 of the tactics and kernels, and of what compiles, checks and chooses among them: their change makes timings stale."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    files = [root / name for name in _CHOOSERS]
    for path in sorted([*files, *(path for folder in ("tactics", "kernels", "pointwise") for path in (root / folder).rglob("*.py"))]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
