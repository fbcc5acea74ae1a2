"""Engine: a built model, ready to call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TargetMismatch, TorchkilnError, UserError
from ..inputs import Input
from ..log import STEPS, SUMMARY, log
from .call_check import CallCheck
from .choose_target import Choice, choose_target
from .contents import EngineContents
from .report import Report
from .schedule import Schedule, load_segments

if TYPE_CHECKING:
    from ..backends.contract import Runner
    from .cuda_graph import CudaGraphRunner

Flat = Sequence[torch.Tensor]


class Engine:
    """A built model. Call it as the model was called: the same arguments, nested the same way, give the same result.

    Safe under concurrent calls from several threads; engines share no state. Outputs are fresh tensors that the caller owns and carry no
    gradient. On CUDA, ``input_buffers`` and ``static_outputs`` save what a call costs to set up its inputs and outputs.
    """

    def __init__(
        self,
        contents: EngineContents | Sequence[EngineContents],
        device: torch.device | str | None = None,
        num_threads: int | None = None,
        *,
        choice: Choice | None = None,
        runners: Sequence[Runner] | None = None,
        may_be_absent: bool = False,
    ) -> None:
        """Load every segment of the contents that fit this machine best. ``torchkiln.compile`` and ``torchkiln.load`` are the ways to get one.

        Args:
            contents: what the engine holds, for one target or more.
            device: where to run; default: the GPU where the engine holds something for it, else the CPU.
            num_threads: CPU threads.
            choice: which of the contents to run, where that is settled.
            runners: run these in place of the segments' own, on ``device`` (how a build is checked where its target is absent).
            may_be_absent: an engine that holds nothing for this machine is no error; it can be saved, and calling it raises TargetMismatch.

        Raises TargetMismatch when nothing in it runs here.
        """
        self._held = (contents,) if isinstance(contents, EngineContents) else tuple(contents)
        self._num_threads = num_threads
        self._absent = ""
        self._reason = ""
        if runners is not None:
            self._contents, self._device = self._held[0], torch.device(device or "cpu")
        else:
            try:
                choice = choice or choose_target(self._held, device)
            except TargetMismatch as error:
                if not may_be_absent:
                    raise
                self._contents, self._device, self._absent = self._held[0], torch.device(self._held[0].device), str(error)
                return
            self._contents, self._device, self._reason = choice.contents, choice.device, choice.reason
            if choice.is_second_best:
                warnings.warn(f"torchkiln: running on the CPU: {choice.reason}", stacklevel=3)
            log(SUMMARY, "engine %s: %s %s on %s: %s", *self._summary(), choice.reason)
        chosen = self._contents
        self._check = CallCheck(chosen.inputs, chosen.args_structure.leaf_paths(), self._device, chosen.equal_dims)
        self._flatten = chosen.args_structure.flatten
        self._unflatten: Callable[[Flat], Any] = chosen.outputs_structure.unflatten
        self._single_tensor = chosen.outputs_structure.leaf_paths() == [""]
        self._schedule = Schedule(chosen, load_segments(chosen, self._device, num_threads) if runners is None else runners)
        self._no_graph = self._schedule.capture_blocker() if self._device.type == "cuda" else ""
        self._run = self._choose_run()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Raises InputMismatch naming the input, what was expected and what came."""
        if self._absent:
            raise TargetMismatch(self._absent)
        flat = self._flatten((args, kwargs))
        outputs = self._run(self._check(flat))
        return outputs[0] if self._single_tensor else self._unflatten(outputs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The input tensors in flat order: shapes (or ranges), dtypes, names."""
        return self._contents.inputs

    @property
    def input_buffers(self) -> tuple[torch.Tensor, ...]:
        """On CUDA, the memory a call reads its inputs from, at their opt shapes, in flat order. Written in place and passed to a call, these very
        tensors are not copied:

            (x,) = engine.input_buffers
            x.copy_(image)
            engine(x)

        For one caller at a time: a call that copies its inputs overwrites them, and so does a write while a call still runs (on another stream).
        What they hold at first is of no meaning. Raises UserError where calls are not replayed from a CUDA graph (the CPU).
        """
        return self._graphs("input_buffers").input_buffers(*[spec.opt_shape for spec in self.inputs])

    @property
    def static_outputs(self) -> bool:
        """On CUDA: whether calls return the same output tensors every time, which the next call overwrites. False unless set:
        ``engine.static_outputs = True``, for one caller that is done with the outputs before it calls again. It saves their allocation, or copies.

        Setting it raises UserError where calls are not replayed from a CUDA graph (the CPU).
        """
        return bool(getattr(self._run, "static_outputs", False)) if not self._absent else False

    @static_outputs.setter
    def static_outputs(self, value: bool) -> None:
        if bool(value) != self.static_outputs:
            self._graphs("static_outputs").static_outputs = bool(value)

    def _graphs(self, what: str) -> CudaGraphRunner:
        """What replays the engine's calls; ``what`` is what was asked of it."""
        if self._absent:
            raise TargetMismatch(self._absent)
        if self._device.type != "cuda":
            raise UserError(f"engine.{what}: only where calls are replayed from a CUDA graph; this engine runs on {self._device}")
        run: CudaGraphRunner = self._run  # type: ignore[assignment]
        # Where capture failed for other shapes alone, calls with these are replayed all the same.
        if self._no_graph or (run.note and not run.captured_shapes):
            raise UserError(f"engine.{what}: only where calls are replayed from a CUDA graph; {self.cuda_graph_note}")
        return run

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._contents.output_names

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def contents(self) -> EngineContents:
        """What runs here is made of, as the file keeps it; the first target's where nothing runs here."""
        return self._contents

    @property
    def held(self) -> tuple[EngineContents, ...]:
        """Everything the engine holds, one for each build. After ``torchkiln.load``, only what was loaded."""
        return self._held

    @property
    def targets(self) -> tuple[str, ...]:
        """What the engine was built for: "cpu", "sm_89", ..."""
        return tuple(name for contents in self._held for name in contents.targets)

    @property
    def runs_here(self) -> bool:
        """Whether the engine can be called on this machine."""
        return not self._absent

    @property
    def target_note(self) -> str:
        """Why these of the held contents run here, or why none can."""
        return self._absent or self._reason

    @property
    def runners(self) -> list[Runner]:
        """The loaded segments, in running order (for measuring). Raises TargetMismatch where the engine does not run here."""
        if self._absent:
            raise TargetMismatch(self._absent)
        return self._schedule.runners

    def report(self) -> Report:
        """What was built: segments, backends, precision, parity with the source model, rejected operators with reasons, times.

        Of what runs here, where the engine holds several builds; ``reports`` gives all.
        """
        return self._contents.report

    def reports(self) -> list[Report]:
        """The report of each build the engine holds."""
        return [contents.report for contents in self._held]

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything the engine holds to one file, atomically: on failure whatever was at ``path`` is still there."""
        from .file import write_engine_file

        write_engine_file(self._held, path)

    def eval(self) -> Engine:
        """Nothing to do: an engine is always in inference mode. Here so that code written for modules runs."""
        return self

    def __repr__(self) -> str:
        report = self._contents.report
        shapes = ", ".join(repr(i) for i in self.inputs)
        where = f"on {self._device}" if not self._absent else f"for {', '.join(self.targets)} (not in this machine)"
        return f"<torchkiln.Engine {report.model}: {report.backend} {report.precision} {where}, inputs: {shapes}>"

    def _summary(self) -> tuple[str, str, str, torch.device]:
        report = self._contents.report
        return report.model, report.backend, report.precision, self._device

    @property
    def cuda_graph_note(self) -> str:
        """Why calls on CUDA are not replayed from a CUDA graph; empty when they are, and on the CPU."""
        if self._absent:
            return ""
        return f"no CUDA graph: {self._no_graph}" if self._no_graph else getattr(self._run, "note", "")

    def _choose_run(self) -> Callable[[Flat], Flat]:
        """On CUDA, replay one graph per shape where every segment can be captured, that of the opt shapes captured now; elsewhere run the segments
        one by one."""
        if self._device.type != "cuda" or self._no_graph:
            return self._schedule.run
        from .cuda_graph import CudaGraphRunner

        run = CudaGraphRunner(self._schedule.run, self._device, batch_buckets=self._schedule.batch_buckets)
        try:
            run.prepare([_trial_value(spec, self._device) for spec in self._contents.inputs])
        except RuntimeError as error:
            # A first call will raise it, on the caller's own values.
            log(STEPS, "no CUDA graph at load: %s", error)
        return run


def _trial_value(spec: Input, device: torch.device) -> torch.Tensor:
    """Different values of the input's domain, of the opt shape: where all are alike, nothing would show what a graph reads (see graph_proof)."""
    if not spec.dtype.is_floating_point:
        return spec.random(device=device)
    low, high = spec.tensor_domain or (-1.0, 1.0)
    value = torch.empty(spec.opt_shape, dtype=torch.float32, device=device)
    return value.uniform_(float(low), float(high), generator=torch.Generator(device).manual_seed(0)).to(spec.dtype)


def load(path: str | PathLike[str], device: torch.device | str | None = None, num_threads: int | None = None, trusted: bool = False) -> Engine:
    """Load an engine from a file: of the targets it holds, the best that runs here (``engine.target_note`` says why). No source code is needed.

    Args:
        path: a file that ``Engine.save`` wrote.
        device: where to run; default: the GPU where the file holds something for it, else the CPU (with a warning where there is a GPU).
        num_threads: CPU threads; default: torch.get_num_threads().
        trusted: allow segments that hold native code (AOTInductor); such code runs with your rights, so say True only for files whose origin
            you trust.

    Raises:
        CorruptEngineFile, UnsupportedSchema, TargetMismatch, UntrustedCode, MissingPackage: see torchkiln.errors.
    """
    from .file import read_engine_file

    choices: list[Choice] = []

    def choose(held: Sequence[EngineContents]) -> list[EngineContents]:
        choices.append(choose_target(held, device))
        return [choices[0].contents]

    try:
        return Engine(read_engine_file(path, trusted=trusted, choose=choose), num_threads=num_threads, choice=choices[0])
    except TorchkilnError as error:
        error.add_note(f"while loading {path}") if hasattr(error, "add_note") else None
        raise


def save(engine: Engine, path: str | PathLike[str]) -> None:
    """``engine.save(path)``, in the form torch.jit.save and torch_tensorrt.save have."""
    engine.save(path)
