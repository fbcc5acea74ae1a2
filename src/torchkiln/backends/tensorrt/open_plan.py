"""open_plan: a plan as an ICudaEngine, after every check that can be made before the library's deserializer sees it.

Run on real hardware: none of it. The checks that come before the GPU is touched, get_engine_validity among them, are run with the real TensorRT-RTX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...engine.choose_target import fits
from ...errors import CorruptEngineFile, MissingPackage, TargetMismatch
from ...log import STEPS, log
from ...target import Target
from .gpu import Gpu, find_gpu
from .library import Library, import_runtime
from .logger import make_logger

#: What to do about each of TensorRT-RTX's reasons.
_ADVICE = {
    "VERSION_MISMATCH": "install the library version that it was built with, or build the engine again",
    "UNSUPPORTED_CC": "build the engine for this GPU",
    "OLD_CUDA_DRIVER": "update the NVIDIA driver",
    "OLD_CUDA_RUNTIME": "update the CUDA runtime",
    "INSUFFICIENT_GPU_MEMORY": "free GPU memory",
    "MALFORMED_ENGINE": "build the engine again",
    "CUDA_ERROR": "see that CUDA works on this machine (torch.zeros(1, device='cuda'))",
}


@dataclass(frozen=True)
class OpenPlan:
    """A deserialized plan and all that must live as long as it does: the engine first, so that it goes first."""

    engine: Any
    runtime: Any
    logger: Any
    library: Library
    gpu: Gpu

    @property
    def name(self) -> str:
        return f"{self.library.flavor} {self.library.version}"


def open_plan(artifact: Artifact, device: torch.device) -> OpenPlan:
    """Deserialize the plan on ``device``. The plan may not hold host code: the runtime's ``engine_host_code_allowed`` stays False.

    Raises TargetMismatch when ``device`` is no GPU that the plan was built for, or this library cannot read it; MissingPackage;
    CorruptEngineFile for metadata that makes no sense.
    """
    metadata = artifact.metadata
    targets = metadata.get("targets")
    if not isinstance(targets, list) or not isinstance(metadata.get("library"), str) or not isinstance(metadata.get("version"), str):
        raise CorruptEngineFile(f"tensorrt segment: expected metadata with library, version and targets, got {sorted(metadata)}")
    gpu = find_gpu(device)
    if not any(fits(str(target), Target(gpu.target)) for target in targets):
        raise TargetMismatch(
            f"tensorrt segment: built for {', '.join(map(str, targets))}; {gpu.device} is {gpu.name} ({gpu.target}). "
            f"Build for it: torchkiln compile MODEL --backend tensorrt --target {gpu.target}"
        )
    library = _import_library(metadata)
    _check_version(metadata, library)
    logger = make_logger(library)
    with gpu.active():
        runtime = library.module.Runtime(logger)
        _check_validity(artifact.payload, library, runtime, logger)
        engine = runtime.deserialize_cuda_engine(artifact.payload)
    if engine is None:
        hint = ""
        if metadata.get("version_compatible") is True:
            hint = " A version-compatible plan must be built without the lean runtime inside (EXCLUDE_LEAN_RUNTIME): host code in plans is not run."
        raise TargetMismatch(
            f"tensorrt segment: {library.flavor} {library.version} cannot load a plan built by {_built_by(metadata)} on {gpu.name}: "
            f"{logger.errors() or 'it gave no reason'}.{hint} Build the engine again on this machine, or install that version."
        )
    return OpenPlan(engine, runtime, logger, library, gpu)


def _import_library(metadata: Mapping[str, Any]) -> Library:
    try:
        return import_runtime(metadata["library"], version_compatible=metadata.get("version_compatible") is True)
    except MissingPackage as error:
        raise MissingPackage(f"tensorrt segment, built by {_built_by(metadata)}: {error}") from error


def _check_version(metadata: Mapping[str, Any], library: Library) -> None:
    """TensorRT reads plans of its own version only, unless they are version compatible. TensorRT-RTX is asked (get_engine_validity)."""
    if library.flavor == "tensorrt_rtx" or metadata.get("version_compatible") is True:
        return
    built, here = (version.split(".")[:3] for version in (metadata["version"], library.version))
    if built != here:
        raise TargetMismatch(
            f"tensorrt segment: built by {_built_by(metadata)}, this is {library.flavor} {library.version}, and a plan runs on its own version only. "
            f"Install {metadata['library']}=={metadata['version']}, or build again, with version_compatible=True to run on later versions too."
        )


def _check_validity(plan: bytes, library: Library, runtime: Any, logger: Any) -> None:
    """Asks TensorRT-RTX whether the plan fits this machine; it reads the plan's header for that. TensorRT has no such question."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return
    validity, diagnostics = ask(plan)
    kinds = library.module.EngineInvalidityDiagnostics.__members__
    reasons = [name for name, value in kinds.items() if int(diagnostics) & int(value)]
    if validity == library.module.EngineValidity.INVALID:
        advice = (
            "; ".join(_ADVICE.get(name, "build the engine again") for name in reasons)
            or "see that the GPU works (nvidia-smi), else build the engine again"
        )
        said = logger.errors()
        raise TargetMismatch(
            f"tensorrt segment: {library.flavor} {library.version} says that the plan is not valid here: {', '.join(reasons) or 'no reason given'}"
            f"{f' ({said})' if said else ''}. What to do: {advice}."
        )
    if validity == library.module.EngineValidity.SUBOPTIMAL:
        log(STEPS, "tensorrt segment: %s says that the plan may be slow here: %s", library.flavor, ", ".join(reasons) or "no reason given")


def _built_by(metadata: Mapping[str, Any]) -> str:
    return f"{metadata['library']} {metadata['version']}"
