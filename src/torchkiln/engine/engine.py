"""Engine: a built model, ready to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TargetMismatch, TorchkilnError, UserError
from ..inputs import Input
from .call_check import CallCheck
from .contents import EngineContents
from .report import Report
from .schedule import Schedule, load_segments

if TYPE_CHECKING:
    from ..backends.contract import Runner

Flat = Sequence[torch.Tensor]


class Engine:
    """A built model. Call it as the model was called: the same arguments, nested the same way, give the same result.

    Safe under concurrent calls from several threads; engines share no state. Outputs are fresh tensors that the caller owns and carry no
    gradient.
    """

    def __init__(self, contents: EngineContents, device: torch.device | str | None = None, num_threads: int | None = None) -> None:
        """Load every segment of ``contents``. ``torchkiln.compile`` and ``torchkiln.load`` are the ways to get one.

        Raises TargetMismatch when the engine was built for another kind of device or this machine lacks it.
        """
        self._contents = contents
        self._device = _target_device(contents, device)
        self._num_threads = num_threads
        self._check = CallCheck(contents.inputs, contents.args_structure.leaf_paths(), self._device, contents.equal_dims)
        self._flatten = contents.args_structure.flatten
        self._unflatten: Callable[[Flat], Any] = contents.outputs_structure.unflatten
        self._single_tensor = contents.outputs_structure.leaf_paths() == [""]
        self._schedule = Schedule(contents, load_segments(contents, self._device, num_threads))
        self._no_graph = self._schedule.capture_blocker() if self._device.type == "cuda" else ""
        self._run = self._choose_run()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Raises InputMismatch naming the input, what was expected and what came."""
        flat = self._flatten((args, kwargs))
        outputs = self._run(self._check(flat))
        return outputs[0] if self._single_tensor else self._unflatten(outputs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The input tensors in flat order: shapes (or ranges), dtypes, names."""
        return self._contents.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._contents.output_names

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def contents(self) -> EngineContents:
        """What the engine is made of, as the file keeps it."""
        return self._contents

    @property
    def runners(self) -> list[Runner]:
        """The loaded segments, in running order (for measuring)."""
        return self._schedule.runners

    def report(self) -> Report:
        """What was built: segments, backends, precision, parity with the source model, rejected operators with reasons, times."""
        return self._contents.report

    def save(self, path: str | PathLike[str]) -> None:
        """Write the engine to one file, atomically: on failure whatever was at ``path`` is still there."""
        from .file import write_engine_file

        write_engine_file(self._contents, path)

    def eval(self) -> Engine:
        """Nothing to do: an engine is always in inference mode. Here so that code written for modules runs."""
        return self

    def __repr__(self) -> str:
        report = self._contents.report
        shapes = ", ".join(repr(i) for i in self.inputs)
        return f"<torchkiln.Engine {report.model}: {report.backend} {report.precision} on {self._device}, inputs: {shapes}>"

    @property
    def cuda_graph_note(self) -> str:
        """Why calls on CUDA are not replayed from a CUDA graph; empty when they are, before the first call, and on the CPU."""
        return f"no CUDA graph: {self._no_graph}" if self._no_graph else getattr(self._run, "note", "")

    def _choose_run(self) -> Callable[[Flat], Flat]:
        """On CUDA, replay one graph per shape where every segment can be captured; elsewhere run the segments one by one."""
        if self._device.type != "cuda" or self._no_graph:
            return self._schedule.run
        from .cuda_graph import CudaGraphRunner

        return CudaGraphRunner(self._schedule.run, self._device)


def load(path: str | PathLike[str], device: torch.device | str | None = None, num_threads: int | None = None, trusted: bool = False) -> Engine:
    """Load an engine from a file. The model's source code is not needed.

    Args:
        path: a file that ``Engine.save`` wrote.
        device: where to run; default: the kind of device it was built for.
        num_threads: CPU threads; default: torch.get_num_threads().
        trusted: allow segments that hold native code (AOTInductor); such code runs with your rights, so say True only for files whose origin
            you trust.

    Raises:
        CorruptEngineFile, UnsupportedSchema, TargetMismatch, UntrustedCode, MissingPackage: see torchkiln.errors.
    """
    from .file import read_engine_file

    contents = read_engine_file(path, trusted=trusted)
    try:
        return Engine(contents, device, num_threads)
    except TorchkilnError as error:
        error.add_note(f"while loading {path}") if hasattr(error, "add_note") else None
        raise


def save(engine: Engine, path: str | PathLike[str]) -> None:
    """``engine.save(path)``, in the form torch.jit.save and torch_tensorrt.save have."""
    engine.save(path)


def _target_device(contents: EngineContents, device: torch.device | str | None) -> torch.device:
    built = torch.device(contents.device)
    try:
        target = torch.device(built.type) if device is None else torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device: expected a torch device as 'cpu' or 'cuda:0', got {device!r}: {error}") from None
    if target.type != built.type:
        raise TargetMismatch(
            f"engine {contents.report.model}: built for {built.type}, asked to load on {target}: compile the model again with device={str(target)!r}"
        )
    if target.type == "cuda":
        if not torch.cuda.is_available():
            raise TargetMismatch(
                f"engine {contents.report.model}: built for cuda, but this machine has no usable GPU: compile the model with device='cpu'"
            )
        if target.index is None:
            target = torch.device("cuda", torch.cuda.current_device())
        if target.index >= torch.cuda.device_count():
            raise TargetMismatch(f"engine {contents.report.model}: asked to load on {target}, but this machine has {torch.cuda.device_count()} GPUs")
    return target
