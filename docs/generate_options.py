"""Write docs/options.md from the declarations in settings.py: python docs/generate_options.py"""

from __future__ import annotations

from pathlib import Path

import torch

from torchkiln.dtypes import dtype_name
from torchkiln.settings import FOREIGN_OPTIONS, declared_options

HEAD = """# Options

Options of `torchkiln.compile(model, inputs, **options)`, of `torch.compile(model, backend="torchkiln", options={...})`, and, with dashes, of
`torchkiln compile`. An unknown name raises `UnknownOption` and suggests the nearest one.

This file is written by `python docs/generate_options.py` from the declarations in `src/torchkiln/settings.py`.

| option | default | meaning |
|---|---|---|
"""

FOREIGN = """
## Options of other tools

Names from Torch-TensorRT that torchkiln knows but does not take; they raise `UnsupportedOption` with this text:

| option | instead |
|---|---|
"""


def show(value: object) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(show(v) for v in value) + "}" if value else "{}"
    return f"torch.{dtype_name(value)}" if isinstance(value, torch.dtype) else repr(value)


def render() -> str:
    rows = [f"| `{f.name}` | `{show(f.default)}` | {f.metadata['doc']} |" for f in declared_options()]
    foreign = [f"| `{name}` | {text} |" for name, text in FOREIGN_OPTIONS.items()]
    return HEAD + "\n".join(rows) + "\n" + FOREIGN + "\n".join(foreign) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(render())
