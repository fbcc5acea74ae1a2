"""``torchkiln bench`` for several processes on one GPU: peers are built at the same time, engines are tuned and everything is measured in turns.

    python benchmarks/in_turns.py FOLDER NUMBER COUNT -- MODEL --shape ...   (run.py --jobs starts them)

FOLDER is shared by the COUNT processes of a run. Each waits, before it builds its engine, until all have built their peers (or WAIT_S have passed)
and the processes with smaller numbers have ended. Give --max-build: the wait is inside what it limits.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import torchkiln.bench
from torchkiln.bench import read_json, write_json
from torchkiln.bench.peers.engine import compile_engine
from torchkiln.bench.result import ENGINE_RUNNER
from torchkiln.cli.app import main

WAIT_S = 240


def build_in_turn(folder: Path, number: int, count: int, *arguments: Any) -> Any:
    """The engine, when it is this process's turn."""
    (folder / f"ready-{number}").touch()
    end = time.monotonic() + WAIT_S
    while len(list(folder.glob("ready-*"))) < count and time.monotonic() < end:
        time.sleep(0.1)
    while len(list(folder.glob("done-*"))) < number:
        time.sleep(0.1)
    start = time.perf_counter()
    engine = compile_engine(*arguments)
    (folder / f"build-{number}").write_text(str(time.perf_counter() - start))
    return engine


def correct_build_time(folder: Path, number: int, path: Path) -> None:
    """Put the time of the build itself into the results, without the wait for it."""
    result = read_json(path)
    for row in result.rows:
        if row.runner == ENGINE_RUNNER and row.build_s is not None:
            row.build_s = float((folder / f"build-{number}").read_text())
    write_json(result, path)


if __name__ == "__main__":
    where, own, others, dashes, *options = sys.argv[1:]
    if dashes != "--":
        sys.exit("expected FOLDER NUMBER COUNT -- and the options of torchkiln bench")
    shared = Path(where)
    build = functools.partial(build_in_turn, shared, int(own), int(others))
    torchkiln.bench.run_benchmark = functools.partial(torchkiln.bench.run_benchmark, build_engine=build)  # type: ignore[assignment]
    sys.argv = ["torchkiln", "bench", *options]
    try:
        main()
    except SystemExit as end:
        if not end.code:
            correct_build_time(shared, int(own), Path(options[options.index("--json") + 1]))
        raise
    finally:
        (shared / f"ready-{own}").touch()
        (shared / f"done-{own}").touch()
