"""CompileSettings: each option declared once, with its default and its documentation.

The same declarations serve ``torchkiln.compile(**options)``, ``torch.compile(options=...)``, the command line and
docs/options.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

import torch

from .dtypes import ENABLED_PRECISIONS, dtype_name, parse_dtype, precision_name
from .errors import UnknownOption, UnsupportedOption, UserError
from .target import CURRENT, parse_names

BACKEND_NAMES = ("auto", "openvino", "onnxruntime", "cuda", "inductor", "tensorrt", "torch")


def option(default: Any, doc: str, backends: tuple[str, ...] = (), *, is_kept: bool = True) -> Any:
    """``backends``: those that read the option; () when it matters whatever the backend. ``is_kept``: whether reports and files hold its value."""
    return field(default=default, metadata={"doc": doc, "backends": backends, "is_kept": is_kept})


_TENSORRT = ("tensorrt",)
_GPU = ("cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """Everything a user can choose about a build. Unknown names raise UnknownOption; bad values raise UserError."""

    enabled_precisions: frozenset[torch.dtype] = option(
        frozenset({torch.float32}),
        "The precisions the engine may compute in: any of torch.float32, torch.bfloat16, torch.float16, and torch.int8 for convolutions and linear "
        "layers, which needs a calibrator. float32 is always allowed as a fallback, since it is wider; the report says where it was used.",
    )
    calibrator: Any = option(
        None,
        "Where the ranges of int8 come from: torchkiln.ptq.DataLoaderCalibrator(batches) or CacheCalibrator(file); on the command line a calibration "
        "cache, as 'torchkiln calibrate' writes it. Not needed for a model with quantize/dequantize pairs of its own.",
        is_kept=False,
    )
    backend: str = option(
        "auto",
        "auto (measure every backend that can run here and keep the fastest that passes parity), or one of: "
        "openvino, onnxruntime, cuda, inductor, tensorrt, torch.",
    )
    target: tuple[str, ...] = option(
        (),
        "What to build for: any of 'cpu', 'current' (the device the model is on) and compute capabilities of GPUs ('sm_89'), also of GPUs "
        "that this machine does not have. Several go into one engine file. Default: current.",
    )
    device: torch.device | str | None = option(None, "Where the engine runs. Default: where the model's parameters are, or the CPU.")
    output_dtype: torch.dtype | None = option(None, "Cast floating outputs to this dtype. Default: the model's own output dtypes.")
    min_block_size: int = option(5, "A segment with fewer operators than this stays in PyTorch.")
    torch_executed_ops: frozenset[str] = option(
        frozenset(), "Operators that must run in PyTorch, as 'aten.relu' or 'aten.relu.default' (or the OpOverload itself)."
    )
    require_full_compilation: bool = option(False, "Fail, naming the operators and reasons, if any operator would be left to PyTorch.")
    dryrun: bool = option(False, "Stop after partitioning and return the Report: nothing is built.")
    verify: bool | float | None = option(
        True,
        "True: compare with the source model in float32 within the tolerance of the engine's precision (relative L2 error: "
        "1e-4 fp32, 1e-2 fp16, 8e-2 bf16, 0.25 int8; on a GPU 1e-2 for fp32 where torch allows TF32). A number: that tolerance. "
        "False or None: no check, and the file says so.",
    )
    verify_dtype: torch.dtype = option(torch.float32, "The precision of the reference run: torch.float32 or torch.float64.")
    seed: int = option(0, "Seed of the random inputs drawn for checking and timing when only shapes were given.")
    num_threads: int | None = option(None, "CPU threads the engine uses. Default: torch.get_num_threads() when it is loaded.")
    optimization_level: int | None = option(None, "How hard the builder tries, 0 (fastest build) to 5. Default: 3.", _GPU)
    workspace_size: int = option(0, "Most bytes of scratch memory an engine may use on the GPU. 0: the library's default, all there is.", _TENSORRT)
    disable_tf32: bool = option(False, "Compute fp32 in full, without TF32 tensor cores.", _GPU)
    sparse_weights: bool = option(False, "Let the builder use 2:4 sparse kernels for weights that have that pattern.", _TENSORRT)
    immutable_weights: bool = option(
        True, "False: a refittable engine, whose weights torchkiln.refit can replace without a build. Needs the GPU while building.", _TENSORRT
    )
    strip_engine_weights: bool = option(
        False, "Build the plan without its weights; the file keeps them apart, and load puts them in. Needs the GPU while building.", _TENSORRT
    )
    version_compatible: bool = option(False, "A plan that later versions of TensorRT, and its lean runtime, run.", _TENSORRT)
    hardware_compatible: bool = option(False, "A plan that every GPU from Ampere on runs, not only the kind it is built for.", _TENSORRT)
    max_aux_streams: int | None = option(None, "Most streams the engine may use beside the caller's. Default: the library's choice.", _TENSORRT)
    timing_cache_path: str | None = option(None, "File in which the builder keeps its timings between builds.", _GPU)
    profiles: tuple[Mapping[str, Any], ...] = option(
        (),
        "Optimization profiles: for each, {input name: (min shape, opt shape, max shape)}, within the input's range; the engine is tuned "
        "for each. Default: one, over the inputs' ranges.",
        _TENSORRT,
    )
    debug: bool = option(False, "Log every pass, reject and candidate, as TORCHKILN_LOG=3 does.")

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("enabled_precisions", _precisions(self.enabled_precisions))
        if self.calibrator is not None:
            if not callable(getattr(self.calibrator, "calibrate", None)):
                raise UserError(f"calibrator: expected a torchkiln.ptq.DataLoaderCalibrator or CacheCalibrator, got {self.calibrator!r}")
            if torch.int8 not in self.enabled_precisions:
                raise UserError("calibrator: it is for int8: add torch.int8 to enabled_precisions, or leave it out")
        ops = self.torch_executed_ops
        one = isinstance(ops, str) or not isinstance(ops, Iterable)
        put("torch_executed_ops", frozenset(op_name(op) for op in ([ops] if one else ops)))
        if self.backend not in BACKEND_NAMES:
            raise UserError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {self.backend!r}")
        if not isinstance(self.min_block_size, int) or isinstance(self.min_block_size, bool) or self.min_block_size < 1:
            raise UserError(f"min_block_size: expected an integer >= 1, got {self.min_block_size!r}")
        if self.num_threads is not None and (not isinstance(self.num_threads, int) or self.num_threads < 1):
            raise UserError(f"num_threads: expected an integer >= 1, got {self.num_threads!r}")
        if self.verify is None:
            put("verify", False)
        if not isinstance(self.verify, bool):
            if not isinstance(self.verify, (int, float)) or not self.verify > 0:
                raise UserError(f"verify: expected True, False or a tolerance > 0, got {self.verify!r}")
            put("verify", float(self.verify))
        if self.verify_dtype not in (torch.float32, torch.float64):
            raise UserError(f"verify_dtype: expected torch.float32 or torch.float64, got {self.verify_dtype}")
        if self.output_dtype is not None and not (isinstance(self.output_dtype, torch.dtype) and self.output_dtype.is_floating_point):
            raise UserError(f"output_dtype: expected a floating dtype, got {self.output_dtype}")
        for declared in fields(self):
            name = declared.name
            if declared.type != "bool":
                continue
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.device is not None:
            try:
                put("device", torch.device(self.device))
            except RuntimeError as error:
                raise UserError(f"device: {error}") from None
        put("target", parse_names(self.target))
        bounds = {"optimization_level": (0, 5), "max_aux_streams": (0, 2**31 - 1), "workspace_size": (0, 2**63 - 1), "seed": (0, 2**62)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= high):
                raise UserError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
        if self.timing_cache_path is not None:
            put("timing_cache_path", str(self.timing_cache_path))
        profiles = [self.profiles] if isinstance(self.profiles, Mapping) else self.profiles
        if not isinstance(profiles, Iterable) or not all(isinstance(p, Mapping) for p in profiles):
            raise UserError(f"profiles: expected a list of {{input name: (min, opt, max)}}, got {self.profiles!r}")
        put("profiles", tuple(dict(p) for p in profiles))
        if self.backend != "auto":
            for name in self.unread_by(self.backend):
                readers = ", ".join(next(f for f in fields(self) if f.name == name).metadata["backends"])
                raise UserError(f"{name}: backend {self.backend!r} does not read this option ({readers} does): leave it out")

    def unread_by(self, backend: str) -> list[str]:
        """The options that were set to something else than their default and that ``backend`` does not read."""
        readers = {f.name: f.metadata["backends"] for f in fields(self)}
        return [f.name for f in fields(self) if readers[f.name] and backend not in readers[f.name] and getattr(self, f.name) != f.default]

    @property
    def takes_new_weights(self) -> bool:
        """Whether the engine's weights can be replaced after the build."""
        return self.strip_engine_weights or not self.immutable_weights

    @property
    def target_names(self) -> tuple[str, ...]:
        """What to build for; ``current`` when nothing was said."""
        return self.target or (CURRENT,)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str = "torchkiln.compile") -> CompileSettings:
        """Settings from option names and values. Raises UnknownOption (suggesting the nearest name) and UserError."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name in FOREIGN_OPTIONS:
                raise UnsupportedOption(f"{where}: option {name!r} is not available: {FOREIGN_OPTIONS[name]}")
            if name not in known:
                raise UnknownOption(name, known, where)
        return cls(**options)

    @property
    def precision_names(self) -> list[str]:
        return [name for name, dtype in ENABLED_PRECISIONS.items() if dtype in self.enabled_precisions]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompileSettings:
        """The settings that ``as_json`` gave. Raises UnknownOption, UserError."""
        dtypes = {f.name for f in fields(cls) if str(f.type).startswith("torch.dtype")}
        return cls.from_options(
            {k: parse_dtype(v) if k in dtypes and isinstance(v, str) else v for k, v in data.items()}, where="settings of an engine"
        )

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, for reports and engine files."""
        return {f.name: _json(getattr(self, f.name)) for f in fields(self) if f.metadata["is_kept"]}


#: Options of Torch-TensorRT and TRTorch that mean something we do not do (yet): each says what to do instead.
FOREIGN_OPTIONS: dict[str, str] = {
    "ir": "the way in is chosen from the model's type; use torch.compile(model, backend='torchkiln') for the Dynamo route",
    "truncate_long_and_double": "64-bit types are kept; cast the model or its inputs if you want 32-bit ones",
    "truncate_double": "64-bit types are kept; cast the model or its inputs if you want 32-bit ones",
    "refit": "say immutable_weights=False for an engine whose weights can be replaced",
    "make_refittable": "say immutable_weights=False",
    "refit_identical_engine_weights": "say immutable_weights=False or strip_engine_weights=True",
    "engine_capability": "only standard engines are built, no safety and no DLA ones",
    "dla_core": "DLA engines are not built",
    "dla_sram_size": "DLA engines are not built",
    "dla_local_dram_size": "DLA engines are not built",
    "dla_global_dram_size": "DLA engines are not built",
    "num_avg_timing_iters": "the builder's own default is used; say optimization_level to make it try harder",
    "use_explicit_typing": "networks are always strongly typed, with the types that enabled_precisions asks for",
    "use_fp32_acc": "softmax, norms and long sums are in float32 in every precision",
    "enable_autocast": "say enabled_precisions; the precision pass keeps float32 where the numbers need it",
    "enable_weight_streaming": "weights are on the GPU as long as the engine is loaded",
    "enable_cross_compile_for_windows": "say target='sm_89'; a TensorRT-RTX plan runs on Linux and Windows",
    "cache_built_engines": "save the engine and load it",
    "reuse_cached_engines": "save the engine and load it",
    "lazy_engine_init": "segments are loaded when the engine is",
    "pass_through_build_failures": "a build that fails raises BuildFailed with the library's own message",
    "assume_dynamic_shape_support": "what a backend supports is asked of the backend",
    "use_fast_partitioner": "there is one partitioner",
    "tiling_optimization_level": "say optimization_level",
    "offload_module_to_cpu": "move the model to the CPU and name the GPU: target='sm_89'",
    "use_python_runtime": "there is one runtime",
}


def declared_options() -> tuple[Field[Any], ...]:
    """The option declarations, in order, for documentation and the command line."""
    return fields(CompileSettings)


def op_name(op: Any) -> str:
    """``torch.ops.aten.relu.default``, ``"torch.ops.aten.relu.default"`` or ``"aten::relu"`` -> ``"aten.relu.default"``-style text."""
    text = op if isinstance(op, str) else str(op)
    return text.removeprefix("torch.ops.").replace("::", ".")


def _precisions(value: Any) -> frozenset[torch.dtype]:
    if not isinstance(value, (torch.dtype, str, Iterable)):
        raise UserError(f"enabled_precisions: expected a set of torch dtypes, got {value!r}")
    items = {value} if isinstance(value, (torch.dtype, str)) else set(value)
    precisions: frozenset[Any] = frozenset(ENABLED_PRECISIONS.get(v, v) if isinstance(v, str) else v for v in items)
    if not precisions:
        raise UserError("enabled_precisions: expected at least one precision, got none")
    for p in precisions:
        if p not in ENABLED_PRECISIONS.values():
            raise UserError(f"enabled_precisions: expected a set of torch.float32, torch.bfloat16, torch.float16, torch.int8, got {p}")
    return precisions


def _json(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(precision_name(v) if isinstance(v, torch.dtype) else v for v in value)
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (tuple, list)):
        return [_json(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _json(part) for key, part in value.items()}
    return str(value) if isinstance(value, torch.device) else value
