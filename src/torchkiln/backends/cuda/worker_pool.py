"""worker_pool: the processes that compile and measure (worker.py), started when needed, replaced when they die."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from typing import Any, cast

from ...errors import BuildFailed
from ...log import REJECTS, log
from .compile_kernel import Compiled
from .measure import Job, Outcome
from .recipe import Kernel
from .worker import read_message, write_message

#: A candidate that has not answered after this many seconds hangs. A first answer may have to wait for CUDA and the libraries to start.
CANDIDATE_LIMIT_S = 20.0
START_LIMIT_S = 120.0


class WorkerDied(Exception):
    """The process ended, or did not answer in time."""


class Worker:
    """One process of worker.py."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        # A new session: an interrupt at the terminal reaches the build, which then stops its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: tuple[Any, ...]) -> None:
        assert self._process.stdin is not None
        try:
            write_message(self._process.stdin, request)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:  # a closed pipe is a ValueError
            raise WorkerDied(str(error)) from error

    def answer(self, limit_s: float) -> Any:
        """The next answer. Raises WorkerDied when there is none within ``limit_s``."""
        # Past the buffer, which could hold a whole answer that the selector then waits for in vain.
        answers: Any = cast(BufferedReader, self._process.stdout).raw
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            if not selector.select(limit_s):
                self.stop()
                raise WorkerDied(f"no answer within {limit_s:.0f} s")
        try:
            return read_message(answers)
        except EOFError:
            raise WorkerDied(f"the process ended with {self._process.wait()}") from None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class WorkerPool:
    """Compilers, one for each core but one, and one process that measures. A context manager: leaving it stops them."""

    def __init__(self, capability: int, device_index: int, compilers: int | None = None) -> None:
        count = compilers or max(1, min(16, (os.cpu_count() or 2) - 1))
        self._capability = capability
        self._device_index = device_index
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="torchkiln-compile")
        self._local = threading.local()
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._futures: dict[Kernel, Future[Compiled | str]] = {}
        self._measurer: Worker | None = None
        self._is_closing = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in [*self._workers, *([self._measurer] if self._measurer else [])]:
            worker.stop()

    def compile(self, kernel: Kernel) -> Future[Compiled | str]:
        """The kernel's code, in time; text that says why not. The same kernel is compiled once."""
        with self._lock:
            if kernel not in self._futures:
                self._futures[kernel] = self._threads.submit(self._compile, kernel)
            return self._futures[kernel]

    def _compile(self, kernel: Kernel) -> Compiled | str:
        worker = getattr(self._local, "worker", None)
        try:
            if worker is None:
                worker = self._local.worker = self._start()
            worker.ask(("compile", kernel, self._capability))
            return worker.answer(START_LIMIT_S)
        except WorkerDied as died:
            self._local.worker = None
            return f"does not compile: {died}"

    def _start(self) -> Worker:
        with self._lock:  # so that none is started after those that are known were stopped
            if self._is_closing:
                raise WorkerDied("the build is over")
            worker = Worker()
            self._workers.append(worker)
        return worker

    def measure(self, job: Job) -> list[Outcome]:
        """An Outcome for each of the job's recipes. One that crashes or hangs the process is out; the others are measured in a new one."""
        outcomes: list[Outcome] = []
        failures = 0
        while len(outcomes) < len(job.recipes):
            rest = Job(job.inputs, job.outputs, job.math, job.reference, job.recipes[len(outcomes) :], job.compiled)
            if self._measurer is not None and not self._measurer.is_alive:
                self._measurer.stop()  # it died between two jobs: no candidate's fault
                self._measurer = None
            fresh = self._measurer is None
            try:
                if self._measurer is None:
                    self._measurer = Worker()
                self._measurer.ask(("measure", rest, self._device_index))
                for index in range(len(rest.recipes)):
                    outcomes.append(self._measurer.answer(START_LIMIT_S if fresh and not index else CANDIDATE_LIMIT_S))
            except WorkerDied as died:
                if self._measurer is not None:
                    self._measurer.stop()
                self._measurer = None
                log(REJECTS, "tuner: a candidate took the measuring process down: %s", died)
                outcomes.append(Outcome(None, f"took the process down: {died}"))
                failures += 1
                if failures > 8:
                    raise BuildFailed(f"tuner: {failures} candidates of one operator took the measuring process down; the last: {died}") from died
        return outcomes


def compiled_of(futures: Sequence[tuple[Kernel, Future[Compiled | str]]]) -> tuple[dict[Kernel, Compiled], str]:
    """Wait for kernels; the codes, or why one has none."""
    codes: dict[Kernel, Compiled] = {}
    for kernel, future in futures:
        result = future.result()
        if isinstance(result, str):
            return {}, f"{kernel.function}: {result}"
        codes[kernel] = result
    return codes, ""
