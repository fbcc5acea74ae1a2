"""configure: the settings as TensorRT's builder configuration: targets, profiles, flags, limits, caches, progress."""

from __future__ import annotations

import contextvars
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import BuildFailed, UnsupportedOption, UserError
from ...partition.segment import Segment
from ...progress import progress
from ...replace_file import replace_file
from ...settings import CompileSettings
from ..contract import Candidate
from .library import Library
from .network import ParsedNetwork

#: What TensorRT-RTX cannot honour: option -> why, and what to do.
_NOT_RTX = {
    "version_compatible": "a plan of TensorRT-RTX is bound to its version: build it with the version that will run it",
    "hardware_compatible": "a plan of TensorRT-RTX serves every target it is asked for: target='sm_86,sm_89'",
    "timing_cache_path": "TensorRT-RTX times nothing while it builds: it keeps the kernels it compiles on the GPU in its runtime cache",
}


def check_options(library: Library, settings: CompileSettings) -> None:
    """Raises UnsupportedOption for a setting that the library cannot honour."""
    for name, why in _NOT_RTX.items() if library.is_rtx else ():
        if getattr(settings, name):
            raise UnsupportedOption(f"{name}: {why}")


def configure(parsed: ParsedNetwork, segment: Segment, candidate: Candidate, settings: CompileSettings) -> Any:
    """The builder configuration for one segment (whose settings ``check_options`` has passed)."""
    trt, builder, is_rtx = parsed.library.module, parsed.builder, parsed.library.is_rtx
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names and types for inspectors; costs kilobytes
    if is_rtx:
        config.num_compute_capabilities = len(candidate.targets)
        for index, target in enumerate(candidate.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.name.replace("_", "").upper()), index)
    _add_profiles(parsed, segment, config)
    _set_flags(trt, config, settings)
    if settings.workspace_size:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_size)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.max_aux_streams is not None:
        config.max_aux_streams = settings.max_aux_streams
    if settings.timing_cache_path is not None:
        _load_timing_cache(config, Path(settings.timing_cache_path))
    config.progress_monitor = _monitor_class(trt)(contextvars.copy_context())
    return config


def _set_flags(trt: Any, config: Any, settings: CompileSettings) -> None:
    flags = trt.BuilderFlag
    if settings.disable_tf32:
        config.clear_flag(flags.TF32)
    if settings.sparse_weights:
        config.set_flag(flags.SPARSE_WEIGHTS)
    if settings.takes_new_weights:
        config.set_flag(flags.REFIT)
    if settings.strip_engine_weights:
        config.set_flag(flags.STRIP_PLAN)
    if settings.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)  # a plan with a runtime inside is host code, which is not run
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _add_profiles(parsed: ParsedNetwork, segment: Segment, config: Any) -> None:
    """One optimization profile for each of the segment's, where a dimension varies."""
    network = parsed.network
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    if all(-1 not in tuple(tensor.shape) for tensor in tensors):
        return
    for number, ranges in enumerate(segment.profiles):
        profile = parsed.builder.create_optimization_profile()
        for tensor, shapes in zip(tensors, ranges, strict=True):
            if -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) == -1:
            raise BuildFailed(f"TensorRT refuses profile {number} of {segment.name}: {parsed.logger.errors() or ranges}")


def _load_timing_cache(config: Any, path: Path) -> None:
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"timing_cache_path: {path} cannot be read: {error.strerror}") from error
    config.set_timing_cache(config.create_timing_cache(data), False)


def save_timing_cache(config: Any, settings: CompileSettings) -> None:
    """Write the timings of a build for the next one, atomically. Raises UserError when the place cannot be written."""
    if settings.timing_cache_path is None:
        return
    path = Path(settings.timing_cache_path)
    try:
        with replace_file(path) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise UserError(f"timing_cache_path: {path} cannot be written: {error.strerror}") from error


@cache
def _monitor_class(trt: Any) -> type:
    class Monitor(trt.IProgressMonitor):
        """Passes the builder's outermost phases on to whoever watches the build; the builder may call from threads of its own."""

        def __init__(self, context: contextvars.Context) -> None:
            trt.IProgressMonitor.__init__(self)
            self._context = context
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = num_steps
                self._say(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                self._say(phase_name, step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._steps:
                self._say(phase_name, self._steps.pop(phase_name))

        def _say(self, phase: str, done: int) -> None:
            self._context.copy().run(progress, f"TensorRT: {phase}", done, self._steps.get(phase, done))

    return Monitor
