"""Pool: the replicas of one engine behind one callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from ..engine.engine import Engine
from ..errors import InputMismatch, ReplicaFailed, UserError
from ..inputs import Input
from .map_in_order import map_in_order
from .replica import Ready, Replica, Result, first_device, ready_events
from .threads import make_threads

T = TypeVar("T")


class Pool:
    """Replicas of one engine. Call it as the engine is called: the next replica that is free takes the call.

    Safe under concurrent calls from several threads; as many run at a time as there are replicas, each in a thread of its own. Tensors may be on
    any device, and come back on the device of the call's first tensor unless ``output_device`` says otherwise. Nobody waits for the copy of a pinned
    tensor: it must not change before the result is computed. ``torchkiln.replicate`` makes one.
    Close it, or use it in a ``with`` block, to give its threads and memory back.
    """

    def __init__(self, engines: Sequence[Engine], output_device: torch.device | str | None = None, num_threads: int | None = None) -> None:
        """Args:
        engines: nobody else's, all of the same contents.
        output_device: see ``torchkiln.replicate``.
        num_threads: PyTorch's threads in each replica's own thread; None: as many as elsewhere.
        """
        self._replicas = tuple(Replica(index, engine) for index, engine in enumerate(engines))
        self._output_device = output_device
        self._free: SimpleQueue[Replica] = SimpleQueue()
        for replica in self._replicas:
            self._free.put(replica)
        self._threads = make_threads(len(self._replicas), num_threads)
        self._closed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call, on the next replica that is free.

        Raises InputMismatch as the engine does (and any other UserError as UserError), and ReplicaFailed for anything else that goes wrong in a
        replica; both name it and its device.
        """
        return self._start(None, args, kwargs).result().wait()

    def map(
        self,
        batches: Iterable[T],
        inputs: Callable[[T], Any] | None = None,
        *,
        look_ahead: int | None = None,
        with_batch: bool = False,
    ) -> Iterator[Any]:
        """The result for each of ``batches`` (a DataLoader, say), in their order, computed by all replicas at once.

        Args:
            batches: read in the caller's thread, ``look_ahead`` batches at most ahead of the result that is handed out.
            inputs: what the engine takes from a batch, as ``lambda batch: batch["image"]``; default: all of it. A tuple or list is the positional
                arguments, a dict of strings the keyword arguments, anything else the one argument.
            look_ahead: default: two for each replica.
            with_batch: give ``(batch, result)`` in place of the result.

        When a call fails, its turn raises what ``__call__`` raises, with the number of the batch; calls that had begun are waited for, others
        dropped, and the pool can be used again.
        """
        self._check_open()
        ahead = 2 * len(self._replicas) if look_ahead is None else look_ahead
        if not isinstance(ahead, int) or ahead < 1:
            raise UserError(f"Pool.map: look_ahead: expected a whole number from 1, got {look_ahead!r}")

        def start(number: int, batch: T) -> Future[Result]:
            return self._start(number, *_call_of(batch if inputs is None else inputs(batch)))

        found = map_in_order(batches, start, ahead)
        return ((batch, result.wait()) for batch, result in found) if with_batch else (result.wait() for _, result in found)

    def run_on_replica(self, task: Callable[[Replica], T], ready: Ready, what: str = "") -> Future[T]:
        """Run ``task`` with a replica that is its own meanwhile, in a thread of the pool and on the replica's stream.

        Args:
            ready: the task's work on the GPU waits for these.
            what: the task, for errors.

        The Future raises what ``__call__`` raises.
        """
        self._check_open()
        return self._threads.submit(self._run_task, task, ready, what, None)

    def close(self) -> None:
        """Wait for calls that run, drop those that have not begun, and free threads, streams and engines. Calling the pool again raises UserError."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        replicas, self._replicas = self._replicas, ()
        self._free = SimpleQueue()
        for replica in replicas:
            if replica.stream is not None:
                # The GPU may still be reading what goes with the engine.
                replica.stream.synchronize()

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, in the order of ``devices``; none once the pool is closed."""
        return self._replicas

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of each replica."""
        return tuple(replica.device for replica in self._replicas)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The engine's input tensors in flat order."""
        self._check_open()
        return self._replicas[0].engine.inputs

    def eval(self) -> Pool:
        """Nothing to do: as ``Engine.eval``."""
        return self

    def __len__(self) -> int:
        return len(self._replicas)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<torchkiln.Pool: closed>"
        return f"<torchkiln.Pool of {len(self)}: {', '.join(map(str, self.devices))}; {self._replicas[0].engine!r}>"

    def _start(self, batch: int | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Future[Result]:
        self._check_open()
        target = self._output_device
        if target is None:
            target = first_device((args, kwargs))
        elif target == "replica":
            target = None
        device = None if target is None else torch.device(target)
        ready = ready_events((args, kwargs))
        # The caller's tensors live until the call has run: ``args`` are held by the task.
        return self._threads.submit(self._run_task, lambda replica: replica.run(args, kwargs, device), ready, "", batch)

    def _run_task(self, task: Callable[[Replica], T], ready: Ready, what: str, batch: int | None) -> T:
        replica = self._free.get()
        try:
            with replica.entered(ready):
                return task(replica)
        except Exception as error:
            raise _explain(error, replica, what, batch) from error
        finally:
            self._free.put(replica)

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("Pool: it is closed: make another with torchkiln.replicate(engine)")


def _call_of(given: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(given, (tuple, list)):
        return given, {}
    if isinstance(given, dict) and all(isinstance(key, str) for key in given):
        return (), given
    return (given,), {}


def _explain(error: Exception, replica: Replica, what: str, batch: int | None) -> Exception:
    where = f"{replica}{f', batch {batch}' if batch is not None else ''}{f', {what}' if what else ''}"
    if isinstance(error, UserError):
        return (InputMismatch if isinstance(error, InputMismatch) else UserError)(f"{where}: {error}")
    return ReplicaFailed(f"{where}: {type(error).__name__}: {error}", device=replica.device, replica=replica.index, batch=batch)
