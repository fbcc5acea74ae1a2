"""Every exception torchkiln raises, in one place.

A message says where, what was expected, what came, and what to do. ``UserError`` and its children are for the caller
to fix; ``CompilerBug`` is for us to fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TorchkilnError(Exception):
    """Base of every torchkiln exception."""


class CompilerBug(TorchkilnError):
    """Something that must not happen inside torchkiln. Please report it with the dump's path (``TORCHKILN_DUMP``)."""


class UserError(TorchkilnError, ValueError):
    """The request cannot be carried out as asked; the message says what to change."""


class UnknownOption(UserError):
    """An option name torchkiln does not have."""

    def __init__(self, name: str, known: Iterable[str], where: str = "torchkiln.compile") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known options: {', '.join(names)}."
        super().__init__(f"{where}: unknown option {name!r}.{hint}")


class UnsupportedOption(UserError):
    """An option other tools have and torchkiln understands, but cannot honour here."""


class InputMismatch(UserError):
    """A call's arguments do not fit the engine's input specification (structure, shape, dtype or device)."""


class StatefulModel(UserError):
    """The model changes a buffer, a parameter or an input in ``forward``; an engine has no state."""


class ExportFailed(UserError):
    """torch.export could not capture the model whole."""


class MissingPackage(TorchkilnError, ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


class BackendUnavailable(TorchkilnError):
    """The backend asked for cannot run on this machine or device; the message says why."""


class BuildFailed(TorchkilnError):
    """A backend could not build a segment that was required to be built."""


class ParityFailed(TorchkilnError):
    """The engine's outputs differ from the source model by more than the tolerance for its precision."""


class ReplicaFailed(TorchkilnError):
    """A call failed in one of the replicas of a pool; the exception itself is its cause.

    Attributes:
        device: where the replica is.
        replica: its number in the pool.
        batch: the number of the batch that ``Pool.map`` was given, from 0; None for other calls.
    """

    def __init__(self, message: str, *, device: object = None, replica: int | None = None, batch: int | None = None) -> None:
        super().__init__(message)
        self.device, self.replica, self.batch = device, replica, batch


class CalibrationCacheError(UserError):
    """A calibration cache is missing, damaged, or another model's."""


class ModelSourceError(UserError):
    """A MODEL argument (``torchvision:resnet34``, ``file.py:factory``, a path) does not name a loadable model."""


class EngineFileError(TorchkilnError):
    """An engine file cannot be read."""


class CorruptEngineFile(EngineFileError):
    """The file is damaged, truncated, or not a torchkiln engine."""


class UnsupportedSchema(EngineFileError):
    """The file was written by a newer torchkiln with a schema this one does not know."""


class TargetMismatch(EngineFileError):
    """The file is sound but holds nothing that this machine, device or library version can run."""


class UntrustedCode(EngineFileError):
    """The file holds native code, which loads only with ``trusted=True``."""
