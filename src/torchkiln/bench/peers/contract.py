"""The contract every peer keeps: whether it can run here, and how it is built. A new peer is one small file and a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from ...verify.reference import flat_tensors
from ..case import Case


@dataclass(frozen=True)
class Refusal:
    """Why a peer has no figures at this precision here. ``status``: "missing" (something to install) or "skipped" (makes no sense)."""

    status: str
    reason: str


class Refused(Exception):
    """Raised by a build that finds out late that it should have refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass
class Runner:
    """A built peer, as the clock sees it.

    Attributes:
        call: the thing that is timed: ``call(*inputs)``. Whatever it returns may be a buffer that the next call overwrites.
        input_sets: its arguments for each call in turn, already in the form, dtype and layout it likes best.
        tensors: what ``call`` returned -> flat output tensors, in the source model's order; not timed.
        options: how it was set up, for a reader.
        chosen_precision: what it computes in, where that is its own choice (an engine's); empty for others.
        on_device: ``call`` takes and returns tensors on the case's device (False: it works on host arrays).
        torch_stream: on CUDA it computes on torch's current stream, after whatever torch has been asked to copy there.
        torch_memory: its CUDA memory comes from torch's allocator, so torch can say how much it takes.
    """

    call: Callable[..., Any]
    input_sets: Sequence[tuple[Any, ...]]
    tensors: Callable[[Any], list[Tensor]] = flat_tensors
    options: str = ""
    on_device: bool = True
    torch_stream: bool = True
    torch_memory: bool = True
    chosen_precision: str = ""
    notes: list[str] = field(default_factory=list)


class Peer(Protocol):
    """One way to run a model that the engine is compared with."""

    @property
    def name(self) -> str:
        """Its name in the ``runner`` column, in ``--peers``, everywhere."""
        ...

    @property
    def slow_build(self) -> bool:
        """Built after the others, so that a build over the time limit holds nothing up."""
        ...

    def refuse(self, case: Case, precision: torch.dtype) -> Refusal | None:
        """None when it can be built for this case at this precision on this machine. Cheap; imports nothing heavy."""
        ...

    def build(self, case: Case, precision: torch.dtype) -> Runner:
        """Build it, under ``torch.no_grad()``. May raise anything: the row then says so."""
        ...


def refuse_missing(package: str, extra: str | None) -> Refusal | None:
    """A Refusal when ``package`` is not installed; ``extra`` is the torchkiln extra that brings it."""
    if find_spec(package) is not None:
        return None
    command = f'pip install "torchkiln[{extra}]"' if extra else f"pip install {package}"
    return Refusal("missing", f"{package} is not installed: {command}")
