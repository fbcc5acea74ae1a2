"""runtime: an AOTInductor package as a Runner. Imports neither Inductor nor anything else that compiles, and reads no pickle.

The loader is the C++ one (torch::inductor::AOTIModelPackageLoader) that C++ programs use. ``torch._inductor.aoti_load_package`` would import the
compiler, and looks for other things in the package, exported programs and weights among them, which it reads with pickle.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...errors import CorruptEngineFile, TargetMismatch
from ..contract import Runner
from .target import check_target

#: Triton's kernels load 16 bytes at a time where the compiler could see that the tensors they were built with allow it.
ALIGNMENT_BYTES = 16


def load(artifact: Artifact, device: torch.device, num_threads: int | None) -> Runner:
    """Load the package. This runs its machine code.

    Raises TargetMismatch when it was built for another torch, CPU or GPU, or cannot be loaded; CorruptEngineFile for metadata that makes no sense.
    """
    metadata = artifact.metadata
    target, input_count = metadata.get("target"), metadata.get("input_count")
    if not isinstance(target, dict) or not isinstance(input_count, int):
        raise CorruptEngineFile(f"inductor package: expected metadata with target and input_count, got {metadata!r}")
    check_target(target, device)
    loader = _open_package(artifact.payload, device)
    if device.type == "cuda":
        return CudaPackageRunner(loader, input_count, device)
    return PackageRunner(loader, input_count, num_threads)


def _open_package(payload: bytes, device: torch.device) -> Any:
    # The loader takes a file. It unpacks it into a directory of its own, which it removes when it goes; ours can go at once.
    with tempfile.TemporaryDirectory(prefix="torchkiln-") as directory:
        path = os.path.join(directory, "segment.pt2")
        with open(path, "wb") as file:
            file.write(payload)
        index = device.index if device.index is not None else -1
        # Without the container's own thread synchronisation (its events may not be queried while a graph is captured); CudaPackageRunner locks.
        single_threaded = device.type == "cuda"
        try:
            return torch._C._aoti.AOTIModelPackageLoader(path, "model", single_threaded, 1, index)
        except RuntimeError as error:
            raise TargetMismatch(
                f"inductor package: cannot be loaded here: {str(error).splitlines()[0]}. Build the engine again on this machine."
            ) from error


class PackageRunner:
    """Calls a package on the CPU. Safe under concurrent calls: they take turns inside the package."""

    capture_blocker = "runs on the CPU"

    def __init__(self, loader: Any, input_count: int, num_threads: int | None) -> None:
        self._loader = loader
        self._run = loader.boxed_run
        self._input_count = input_count
        self._num_threads = num_threads

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(inputs) != self._input_count:
            # The generated code would read past the end.
            raise CorruptEngineFile(f"inductor package: takes {self._input_count} inputs, the engine passes {len(inputs)}")
        # The code has the strides of contiguous inputs built in. boxed_run empties the list it is given.
        given = [value if value.is_contiguous() else value.contiguous() for value in inputs]
        if self._num_threads is None or torch.get_num_threads() == self._num_threads:
            outputs = self._run(given)
        else:
            with _threads(self._num_threads):
                outputs = self._run(given)
        return own_outputs(outputs, inputs)


class CudaPackageRunner:
    """Calls a package on a CUDA device, on the caller's current stream; returns before the GPU is done. Concurrent calls launch in turns."""

    capture_blocker = ""

    def __init__(self, loader: Any, input_count: int, device: torch.device) -> None:
        self._loader = loader
        self._run = loader.boxed_run
        self._input_count = input_count
        self._index = device.index if device.index is not None else torch.cuda.current_device()
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(inputs) != self._input_count:
            raise CorruptEngineFile(f"inductor package: takes {self._input_count} inputs, the engine passes {len(inputs)}")
        given = [_laid_out(value) for value in inputs]
        with self._lock:
            if torch.cuda.current_device() == self._index:
                outputs = self._run(given)
            else:
                # The package runs on the current device's current stream.
                with torch.cuda.device(self._index):
                    outputs = self._run(given)
        return own_outputs(outputs, inputs)


def _laid_out(value: torch.Tensor) -> torch.Tensor:
    """Contiguous, and aligned as the kernels expect."""
    if not value.is_contiguous():
        return value.contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT_BYTES else value


def own_outputs(outputs: list[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``outputs``, with those that share memory with an input copied: the caller owns what it gets.

    Inductor returns an input, or a view of one, as it is; and it drops operators that do nothing, a clone too.
    """
    held = {value.untyped_storage().data_ptr() for value in inputs}
    for index, output in enumerate(outputs):
        if output.untyped_storage().data_ptr() in held:
            outputs[index] = output.detach().clone()
    return outputs


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """The generated code and oneDNN take OpenMP's thread count of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
