"""Processes that compile and measure: one that dies or hangs costs its candidate and nothing else. The processes run a small program of this test's,
which starts at once; the last test runs the real one."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from torchkiln.backends.cuda import worker_pool
from torchkiln.backends.cuda.compile_kernel import Compiled
from torchkiln.backends.cuda.measure import Job, Outcome
from torchkiln.backends.cuda.recipe import Kernel
from torchkiln.backends.cuda.worker_pool import Worker, WorkerPool, compiled_of
from torchkiln.errors import BuildFailed

#: Obeys a recipe or a kernel's constants: bytes to answer with, a list of several to write at once, or "die", "hang" or "nothing". It imports nothing
#: of torchkiln, so classes are stood in for.
PROGRAM = """
import io, os, pickle, struct, sys, time

class Anything:
    pass

class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        return Anything

def obey(order):
    if order == "die":
        os._exit(3)
    if order == "hang":
        time.sleep(60)
    if order == "nothing":
        return
    answers = order if isinstance(order, list) else [order]
    sys.stdout.buffer.write(b"".join(struct.pack("<Q", len(answer)) + answer for answer in answers))
    sys.stdout.buffer.flush()

while len(header := sys.stdin.buffer.read(8)) == 8:
    kind, what, _ = Reader(io.BytesIO(sys.stdin.buffer.read(struct.unpack("<Q", header)[0]))).load()
    for order in [dict(what.constants)["order"]] if kind == "compile" else what.recipes:
        obey(order)
"""


@pytest.fixture
def started(monkeypatch):
    """The processes that were started, in order."""
    held = []

    class StandIn(Worker):
        def __init__(self) -> None:
            self._process = subprocess.Popen([sys.executable, "-S", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            held.append(self._process)

    monkeypatch.setattr(worker_pool, "Worker", StandIn)
    yield held
    assert all(process.poll() is not None for process in held), "a process outlives its pool"


def fine(median_us):
    return pickle.dumps(Outcome(median_us))


def job(*orders):
    return Job((), (), "ieee", None, orders, {})


def kernel(order, name="k"):
    return Kernel(name, (torch.float16,), (("order", order),))


def test_outcomes_in_order_from_one_process(started):
    with WorkerPool(90, 0, compilers=1) as pool:
        assert pool.measure(job(fine(1.0), fine(2.0))) == [Outcome(1.0), Outcome(2.0)]
        assert pool.measure(job(fine(3.0))) == [Outcome(3.0)]
    assert len(started) == 1


def test_answers_that_arrive_together(started, monkeypatch):
    monkeypatch.setattr(worker_pool, "CANDIDATE_LIMIT_S", 1.0)
    monkeypatch.setattr(worker_pool, "START_LIMIT_S", 10.0)
    with WorkerPool(90, 0, compilers=1) as pool:
        assert pool.measure(job([fine(1.0), fine(2.0), fine(3.0)], "nothing", "nothing")) == [Outcome(1.0), Outcome(2.0), Outcome(3.0)]


def test_a_candidate_that_ends_the_process(started):
    with WorkerPool(90, 0, compilers=1) as pool:
        outcomes = pool.measure(job(fine(1.0), "die", fine(2.0), "die"))
        assert outcomes == [
            Outcome(1.0),
            Outcome(None, "took the process down: the process ended with 3"),
            Outcome(2.0),
            Outcome(None, "took the process down: the process ended with 3"),
        ]
        assert pool.measure(job(fine(5.0))) == [Outcome(5.0)]
    assert len(started) == 3


def test_a_candidate_that_hangs(started, monkeypatch):
    monkeypatch.setattr(worker_pool, "CANDIDATE_LIMIT_S", 1.0)
    with WorkerPool(90, 0, compilers=1) as pool:
        outcomes = pool.measure(job(fine(1.0), "hang", fine(2.0)))
    assert outcomes == [Outcome(1.0), Outcome(None, "took the process down: no answer within 1 s"), Outcome(2.0)]


def test_a_first_candidate_that_hangs_is_given_the_time_to_start(started, monkeypatch):
    monkeypatch.setattr(worker_pool, "CANDIDATE_LIMIT_S", 0.0)
    monkeypatch.setattr(worker_pool, "START_LIMIT_S", 2.0)
    with WorkerPool(90, 0, compilers=1) as pool:
        assert pool.measure(job(fine(1.0))) == [Outcome(1.0)]
    with WorkerPool(90, 0, compilers=1) as pool:
        assert pool.measure(job("hang")) == [Outcome(None, "took the process down: no answer within 2 s")]


def test_too_many_deaths(started):
    with WorkerPool(90, 0, compilers=1) as pool:
        outcomes = pool.measure(job(*["die"] * 8, fine(1.0)))
        assert [outcome.median_us for outcome in outcomes] == [None] * 8 + [1.0]
        with pytest.raises(BuildFailed, match="9 candidates of one operator took the measuring process down; the last: the process ended with 3"):
            pool.measure(job(*["die"] * 9, fine(1.0)))


def test_kernels_are_compiled_once(started):
    code = Compiled(b"cubin", "k", shared_bytes=0, threads=128)
    with WorkerPool(90, 0, compilers=2) as pool:
        first, again = pool.compile(kernel(pickle.dumps(code))), pool.compile(kernel(pickle.dumps(code)))
        assert first is again
        assert first.result(30) == code
        assert len(started) == 1


def test_a_compiler_that_ends_is_replaced(started):
    code = Compiled(b"cubin", "k", shared_bytes=0, threads=128)
    with WorkerPool(90, 0, compilers=1) as pool:
        futures = [pool.compile(kernel(order)) for order in ("die", pickle.dumps(code), "die")]
        assert [future.result(30) for future in futures] == [
            "does not compile: the process ended with 3",
            code,
            "does not compile: the process ended with 3",
        ]
    assert len(started) == 2


def test_codes_of_several_kernels(started):
    code = Compiled(b"cubin", "k", shared_bytes=0, threads=128)
    good, bad = kernel(pickle.dumps(code), "good"), kernel(pickle.dumps("does not compile: too large"), "bad")
    with WorkerPool(90, 0, compilers=1) as pool:
        assert compiled_of([(good, pool.compile(good))]) == ({good: code}, "")
        assert compiled_of([(k, pool.compile(k)) for k in (good, bad)]) == ({}, "bad: does not compile: too large")


SOURCE = """
import triton.language as tl

def copy(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at))
"""


def test_a_real_compiler():
    good = Kernel("copy", (torch.float32, torch.float32), (("N", 64),), source=SOURCE)
    bad = Kernel("copy", (torch.float32, torch.float32), (("N", 63),), source=SOURCE)  # no power of two
    with WorkerPool(80, 0, compilers=1) as pool:
        futures = [pool.compile(bad), pool.compile(good)]
        why, code = (future.result(100) for future in futures)
    assert not isinstance(code, str), code
    assert why.startswith("does not compile: CompilationError")
    assert code.code.startswith(b"\x7fELF")
    assert (code.name, code.threads) == ("copy", 128)
