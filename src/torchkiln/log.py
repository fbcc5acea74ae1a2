"""Logging: TORCHKILN_LOG=1..4 (summary; per-step times; tactics and rejects; generated code)."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("torchkiln")

SUMMARY, STEPS, REJECTS, CODE = 1, 2, 3, 4
_level = 0


def set_log_level(level: int) -> None:
    """Show messages up to ``level`` (0 silent .. 4 generated code) on standard error."""
    global _level
    _level = level
    if level and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[torchkiln] %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if level else logging.WARNING)


def log(level: int, message: str, *args: object) -> None:
    """Log ``message % args`` when the user asked for ``level``."""
    if level <= _level:
        logger.info(message, *args)


def log_level() -> int:
    return _level


def _level_from_environment() -> int:
    text = os.environ.get("TORCHKILN_LOG", "0")
    return int(text) if text.isdigit() else 0


set_log_level(_level_from_environment())
