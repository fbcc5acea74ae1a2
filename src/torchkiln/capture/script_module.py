"""script_module: a traced or scripted ScriptModule -> ExportedProgram, through torch's own converter."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram, ShapesCollection

from .arguments import Arguments


def export_script_module(model: torch.jit.ScriptModule, arguments: Arguments, shapes: ShapesCollection | None) -> ExportedProgram:
    """Convert ``model`` with ``TS2EPConverter``, at the shapes (and ranges) asked for.

    torch's converter traces its result again with every dimension free; engines want the user's own ranges, so that step is replaced.
    """
    from torch._export.converter import TS2EPConverter

    class Converter(TS2EPConverter):
        def retrace_as_exported_program(self, gm: torch.fx.GraphModule, name_to_constant: dict[str, Any]) -> ExportedProgram:
            for name, value in name_to_constant.items():
                if isinstance(value, torch.Tensor) and not hasattr(gm, name):
                    gm.register_buffer(name, value)
            return torch.export.export(gm, arguments.args, arguments.kwargs or None, dynamic_shapes=shapes, strict=False)

    return Converter(model, arguments.args, arguments.kwargs or None).convert()
