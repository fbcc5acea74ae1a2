"""Which row is best, and by what factor."""

import pytest

from torchkiln.bench import ratios

from .fakes import make_row

EAGER = make_row("eager", median=8.0)
WRONG = make_row("compile", median=1.0, within_tolerance=False)
OPENVINO = make_row("openvino", "bf16", median=2.5)
ENGINE, AUTO = make_row("torchkiln", median=4.0), make_row("torchkiln", "auto", median=2.0)
FAILED = make_row("onnxruntime", median=None)
GROUP = [FAILED, EAGER, WRONG, OPENVINO, ENGINE, AUTO]


def test_sorting_puts_what_has_no_figures_last():
    assert ratios.sorted_rows(GROUP) == [WRONG, AUTO, OPENVINO, ENGINE, EAGER, FAILED]


def test_a_fast_wrong_row_is_not_best_but_is_the_peer_to_beat():
    assert ratios.best_row(GROUP) is AUTO
    assert ratios.best_peer(GROUP) is WRONG
    assert ratios.best_peer(GROUP, "bf16") is OPENVINO
    assert ratios.best_peer([FAILED, AUTO]) is None
    assert ratios.best_row([FAILED]) is None


def test_engines_and_factors():
    assert ratios.engine_rows(GROUP) == [ENGINE, AUTO]
    assert ratios.best_engine(GROUP) is AUTO
    assert ratios.best_engine([*GROUP, make_row("torchkiln", "bf16", median=1.0, within_tolerance=False)]) is AUTO
    assert ratios.best_engine([EAGER, OPENVINO]) is None
    assert ratios.find_row(GROUP, "eager", "fp32") is EAGER
    assert ratios.find_row(GROUP, "onnxruntime", "fp32") is None
    assert ratios.speed_up(EAGER, AUTO) == pytest.approx(4.0)
    assert ratios.speed_up(EAGER, FAILED) is None
    assert ratios.speed_up(None, AUTO) is None
