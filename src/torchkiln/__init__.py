"""torchkiln: turn a PyTorch model into an inference engine.

One line, as fast as the hardware allows, checked against the model, kept in one file, with PyTorch as the fallback.

    engine = torchkiln.compile(model, inputs=[torchkiln.Input((1, 3, 224, 224))], enabled_precisions={torch.half})
    engine(x)
    engine.save("model.kiln")
    torchkiln.load("model.kiln")(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from . import postprocess, ptq
    from .compiler import bisect, compile
    from .engine.engine import Engine, load, save
    from .engine.merge import merge
    from .engine.report import Report
    from .inputs import Input
    from .pool.pool import Pool
    from .pool.replicate import replicate
    from .postprocess import with_postprocess
    from .precision_aliases import dtype
    from .refit_engine import refit
    from .settings import CompileSettings
    from .sliding_window.inference import sliding_window_inference
    from .sparsity.sparsify import remove_masks, sparsify
    from .sparsity.sparsity_report import sparsity_report

__version__ = "0.1.0"

__all__ = [
    "CompileSettings",
    "Engine",
    "Input",
    "Pool",
    "Report",
    "__version__",
    "bisect",
    "compile",
    "dtype",
    "errors",
    "load",
    "merge",
    "postprocess",
    "ptq",
    "refit",
    "remove_masks",
    "replicate",
    "save",
    "sliding_window_inference",
    "sparsify",
    "sparsity_report",
    "with_postprocess",
]

#: Imported on first use, so that ``import torchkiln`` costs little (``torchkiln --help`` needs no torch) and loading an engine imports no compiler.
_LAZY = {
    "bisect": "compiler",
    "compile": "compiler",
    "Engine": "engine.engine",
    "Input": "inputs",
    "load": "engine.engine",
    "merge": "engine.merge",
    "refit": "refit_engine",
    "save": "engine.engine",
    "Report": "engine.report",
    "CompileSettings": "settings",
    "dtype": "precision_aliases",
    "Pool": "pool.pool",
    "replicate": "pool.replicate",
    "sliding_window_inference": "sliding_window.inference",
    "with_postprocess": "postprocess",
    "remove_masks": "sparsity.sparsify",
    "sparsify": "sparsity.sparsify",
    "sparsity_report": "sparsity.sparsity_report",
}
#: Modules that are attributes: ``torchkiln.ptq.DataLoaderCalibrator``.
_LAZY_MODULES = ("postprocess", "ptq")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY_MODULES:
        return import_module(f".{name}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module 'torchkiln' has no attribute {name!r}")
    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LAZY_MODULES})
