"""Dump: with TORCHKILN_DUMP=dir, one readable graph a pass, numbered: 00_captured.py, 01_remove_no_ops.py, ..."""

from __future__ import annotations

import os
from pathlib import Path

from torch.fx import GraphModule


class Dump:
    """Writes graphs into a directory, numbered in the order they are written. Without a directory it writes nothing.

    A directory that already holds a dump is left alone: this one goes into ``run_1``, ``run_2``, ... inside it.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self.directory = None if directory is None else _fresh(Path(directory))
        self._count = 0

    @classmethod
    def from_environment(cls) -> Dump:
        """The dump that TORCHKILN_DUMP asks for."""
        return cls(os.environ.get("TORCHKILN_DUMP") or None)

    def write(self, name: str, graph_module: GraphModule, note: str = "") -> Path | None:
        """Write ``graph_module`` as NN_name.py, headed by ``note``; returns the path, None when nothing is dumped."""
        if self.directory is None:
            return None
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self._count:02d}_{name}.py"
        self._count += 1
        code = graph_module.print_readable(print_output=False, include_stride=True, include_device=True)
        heading = f"# {name}: {note}\n" if note else f"# {name}\n"
        path.write_text(heading + code, encoding="utf-8")
        return path


def _fresh(directory: Path) -> Path:
    candidate, number = directory, 0
    while (candidate / "00_captured.py").exists():
        number += 1
        candidate = directory / f"run_{number}"
    return candidate
