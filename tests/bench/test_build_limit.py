"""build_limit: it interrupts, it lets go, and it survives a compiler that catches everything."""

import signal
import threading
import time

import pytest

from torchkiln.bench.build_limit import BuildTimeout, build_limit


def test_a_build_in_time_passes():
    with build_limit(5):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] in (0, pytest.approx(600, abs=600))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX alone can interrupt")
def test_a_long_build_is_interrupted_even_through_except_exception():
    start = time.monotonic()

    def compile_something():
        try:
            while time.monotonic() - start < 5:
                time.sleep(0.01)
        except Exception:
            pytest.fail("the limit was swallowed")

    with pytest.raises(BuildTimeout), build_limit(0.05):
        compile_something()
    assert time.monotonic() - start < 2


def test_an_alarm_set_before_still_counts():
    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    outer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with build_limit(5):
            time.sleep(0.02)
        remaining = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0 < remaining < 0.2
        time.sleep(0.3)
        assert fired == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_outside_the_main_thread_the_excess_is_reported_afterwards():
    caught: list[BaseException] = []

    def build():
        try:
            with build_limit(0.01):
                time.sleep(0.05)
        except BuildTimeout as timeout:
            caught.append(timeout)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert len(caught) == 1
