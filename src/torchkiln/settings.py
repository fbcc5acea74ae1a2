"""CompileSettings: each option declared once, with its default and its documentation.

The same declarations serve ``torchkiln.compile(**options)``, ``torch.compile(options=...)``, the command line and
docs/options.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

import torch

from .dtypes import ENABLED_PRECISIONS, PRECISIONS, dtype_name, parse_dtype, precision_name
from .errors import UnknownOption, UnsupportedOption, UserError
from .target import CURRENT, parse_names

BACKEND_NAMES = ("auto", "openvino", "onnxruntime", "cuda", "inductor", "tensorrt", "torch")


def option(default: Any, doc: str, backends: tuple[str, ...] = (), *, is_kept: bool = True, has_flag: bool = True) -> Any:
    """``backends``: those that read the option; () when it matters whatever the backend. ``is_kept``: whether reports and files hold its value.
    ``has_flag``: whether the command line has an option of its own for it."""
    return field(default=default, metadata={"doc": doc, "backends": backends, "is_kept": is_kept, "has_flag": has_flag})


_GROUP_SIZES = (16, 32, 64, 128, 256)
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
    keep_float32: frozenset[str] = option(
        frozenset(),
        "What stays in float32 in an engine of a narrower precision: module paths ('encoder.norm', with all below it), operators ('aten.mul') and "
        "nodes ('mul_3') of the lowered graph, with wildcards as in file names. 'torchkiln bisect' finds what needs it.",
    )
    precision: str | None = option(
        None,
        "'auto': choose the precision of each layer: the fastest engine within max_error or max_drop. Among enabled_precisions, where they are "
        "given, else among all that can run here (int8 needs a calibrator). On the command line --precision auto.",
        has_flag=False,
    )
    max_error: float | None = option(None, "precision='auto': the largest relative L2 error against the source model, at every checked shape.")
    accuracy: Any = option(
        None,
        "precision='auto': a function of an engine that gives a number, more being better; what max_drop is measured by.",
        is_kept=False,
        has_flag=False,
    )
    max_drop: float | None = option(None, "precision='auto': how much less than the float32 engine's the result of accuracy may be.", has_flag=False)
    max_builds: int = option(8, "precision='auto': most engines of mixed precision to build, beside those of one precision.")
    calibrator: Any = option(
        None,
        "Where the ranges of int8 come from: torchkiln.ptq.DataLoaderCalibrator(batches) or CacheCalibrator(file); on the command line a calibration "
        "cache, as 'torchkiln calibrate' writes it. Not needed for a model with quantize/dequantize pairs of its own.",
        is_kept=False,
    )
    weight_precision: str | None = option(
        None,
        "Keep the weights of linear layers, products with constants and embedding tables in 'int8' or 'int4', made floating in the kernels that read "
        "them; activations stay in enabled_precisions. Needs no data. With torch.int8 enabled too, a kernel may round its activations as they come.",
    )
    weight_group_size: int = option(128, "int4 weights: how many inputs of an output share a scale: 16, 32, 64, 128 or 256.")
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
        "1e-4 fp32, 1e-2 fp16, 8e-2 bf16, 0.25 int8, 0.05 and 0.4 for weights in int8 and int4; on a GPU 1e-2 for fp32 where torch allows TF32). "
        "A number: that tolerance. "
        "False or None: no check, and the file says so.",
    )
    verify_dtype: torch.dtype = option(torch.float32, "The precision of the reference run: torch.float32 or torch.float64.")
    seed: int = option(0, "Seed of the random inputs drawn for checking and timing when only shapes were given.")
    num_threads: int | None = option(None, "CPU threads the engine uses. Default: torch.get_num_threads() when it is loaded.")
    optimization_level: int | None = option(None, "How hard the builder tries, 0 (fastest build) to 5. Default: 3.", _GPU)
    workspace_size: int = option(0, "Most bytes of scratch memory an engine may use on the GPU. 0: the library's default, all there is.", _TENSORRT)
    disable_tf32: bool = option(False, "Compute fp32 in full, without TF32 tensor cores.", _GPU)
    sparse_weights: bool = option(
        False,
        "Use 2:4 sparse kernels for weights that have that pattern (torchkiln.sparsify prunes to it) where they are measured to be faster. The "
        "report says for each layer whether they are.",
        _GPU,
    )
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
        put("keep_float32", _names(self.keep_float32, "keep_float32"))
        self._read_search(put)
        if self.keep_float32 and self.enabled_precisions == {torch.float32} and self.weight_precision is None:
            raise UserError("keep_float32: nothing narrower than float32 is enabled: leave it out, or add a precision to enabled_precisions")
        if self.calibrator is not None:
            if not callable(getattr(self.calibrator, "calibrate", None)):
                raise UserError(f"calibrator: expected a torchkiln.ptq.DataLoaderCalibrator or CacheCalibrator, got {self.calibrator!r}")
            if torch.int8 not in self.enabled_precisions:
                raise UserError("calibrator: it is for int8: add torch.int8 to enabled_precisions, or leave it out")
        if self.weight_precision not in (None, "int8", "int4"):
            raise UserError(f"weight_precision: expected 'int8', 'int4' or None, got {self.weight_precision!r}")
        if type(self.weight_group_size) is not int or self.weight_group_size not in _GROUP_SIZES:
            raise UserError(f"weight_group_size: expected one of {', '.join(map(str, _GROUP_SIZES))}, got {self.weight_group_size!r}")
        if self.weight_group_size != 128 and self.weight_precision != "int4":
            raise UserError("weight_group_size: it is for int4 weights: say weight_precision='int4', or leave it out")
        if self.weight_precision is not None and self.calibrator is not None:
            raise UserError("weight_precision: a calibrator's int8 layers have weights in 8 bits already: leave one of the two out")
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

    def _read_search(self, put: Callable[[str, Any], None]) -> None:
        """Check the options of precision='auto', which itself enables what is there to choose among. Raises UserError."""
        budgets = [name for name in ("max_error", "accuracy", "max_drop") if getattr(self, name) is not None]
        if self.precision is None:
            if budgets or self.max_builds != 8:
                name = budgets[0] if budgets else "max_builds"
                raise UserError(f"{name}: it belongs to precision='auto': add that, or leave {name} out")
            return
        if self.precision != "auto":
            raise UserError(f"precision: expected 'auto', got {self.precision!r}: name precisions in enabled_precisions")
        if budgets not in (["max_error"], ["accuracy", "max_drop"]):
            raise UserError(f"precision='auto': expected a budget, max_error alone or accuracy with max_drop, got {' and '.join(budgets) or 'none'}")
        if self.accuracy is not None and not callable(self.accuracy):
            raise UserError(f"accuracy: expected a function of an engine, got {self.accuracy!r}")
        for name, lowest in (("max_error", "> 0"), ("max_drop", ">= 0")):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf or (name == "max_error" and value == 0):
                raise UserError(f"{name}: expected a finite number {lowest}, got {value!r}")
            put(name, float(value))
        if type(self.max_builds) is not int or self.max_builds < 0:
            raise UserError(f"max_builds: expected an integer >= 0, got {self.max_builds!r}")
        if self.max_error is not None and self.verify is not True:
            raise UserError(f"verify: max_error says how exact the engine must be, and it is checked: leave verify={self.verify!r} out")
        for name in ("weight_precision", "output_dtype"):
            if getattr(self, name) is not None:
                raise UserError(f"{name}: precision='auto' does not go with it: leave one of the two out")
        if not (self.immutable_weights and not self.strip_engine_weights):
            raise UserError("precision='auto': it chooses by the weights: an engine for other weights is built with enabled_precisions")
        if self.enabled_precisions == {torch.float32}:
            put("enabled_precisions", frozenset(PRECISIONS.values()) | ({torch.int8} if self.calibrator is not None else set()))

    def unread_by(self, backend: str) -> list[str]:
        """The options that were set to something else than their default and that ``backend`` does not read."""
        readers = {f.name: f.metadata["backends"] for f in fields(self)}
        return [f.name for f in fields(self) if readers[f.name] and backend not in readers[f.name] and getattr(self, f.name) != f.default]

    def without_search(self, **changed: Any) -> CompileSettings:
        """The settings of a build whose precisions are chosen, with other changes."""
        return replace(self, precision=None, max_error=None, accuracy=None, max_drop=None, max_builds=type(self).max_builds, **changed)

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
        if options.get("precision") == "auto" and "enabled_precisions" in options and _precisions(options["enabled_precisions"]) == {torch.float32}:
            raise UserError(
                f"{where}: enabled_precisions: precision='auto' has nothing to choose among in float32 alone: leave it out, or add others"
            )
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


def _names(value: Any, option_name: str) -> frozenset[str]:
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{option_name}: expected names, as {{'encoder.norm', 'aten.mul'}}, got {value!r}")
    return frozenset(names)


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
