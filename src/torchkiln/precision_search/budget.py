"""budget: how far an engine may be from the float32 model: by the error of its outputs, or by a measure of the caller's own."""

from __future__ import annotations

import math

from ..engine.engine import Engine
from ..errors import UserError
from ..progress import progress
from ..settings import CompileSettings


class Budget:
    """``max_error``, or ``accuracy`` with ``max_drop``. ``baseline`` is the float32 engine's accuracy, once it was measured."""

    def __init__(self, settings: CompileSettings) -> None:
        self.name = "max_error" if settings.max_error is not None else "max_drop"
        limit = settings.max_error if settings.max_error is not None else settings.max_drop
        assert limit is not None
        self.limit = limit
        self._function = settings.accuracy
        self.baseline = math.nan

    @property
    def by_error(self) -> bool:
        return self.name == "max_error"

    def accuracy(self, engine: Engine) -> float | None:
        """What the caller's function gives for an engine; None where the budget is an error. Raises UserError when that is no number."""
        if self._function is None:
            return None
        progress("accuracy", 0, 0)
        value = self._function(engine)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"accuracy: expected a finite number of the engine, got {value!r}")
        return number

    def admits(self, error: float | None, accuracy: float | None) -> bool:
        """Whether an engine with this relative error and accuracy is within the budget."""
        if self.by_error:
            return error is not None and error <= self.limit
        return accuracy is not None and accuracy >= self.baseline - self.limit
