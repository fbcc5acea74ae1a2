"""quiet_logging: off inside, and as it was afterwards, whichever of several users leaves last."""

from __future__ import annotations

import logging

from torchkiln.backends.quiet_logging import quiet_logging


def test_overlapping_users_restore_what_was():
    first, second = quiet_logging(), quiet_logging()
    before = logging.root.manager.disable
    first.__enter__()
    assert logging.root.manager.disable == logging.CRITICAL
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.CRITICAL
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before
