"""settings_options: the command-line options of CompileSettings, made from its declarations so that no option is declared twice."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .debug import remember_debug

if TYPE_CHECKING:
    from ..settings import CompileSettings

#: Settings whose option has another name than the setting.
RENAMED = {
    "enabled_precisions": "--precision",
    "calibrator": "--calibration-cache",
    "num_threads": "--threads",
    "verify": "--verify/--no-verify",
    "workspace_size": "--workspace",
    "immutable_weights": "--immutable-weights/--refittable",
    "profiles": "--profile",
}
#: Settings that are written in another way on the command line, and how.
_METAVARS = {"calibrator": "FILE", "workspace_size": "MIB", "profiles": "NAME=MIN:OPT:MAX[,NAME=...]"}

#: How a declaration's type is written on the command line.
_TYPES: dict[str, Any] = {
    "Any": str,
    "bool": bool,
    "int": int,
    "int | None": int,
    "str | None": str,
    "tuple[str, ...]": list[str],
    "tuple[Mapping[str, Any], ...]": list[str],
    "str": str,
    "frozenset[str]": list[str],
    "frozenset[torch.dtype]": str,
    "torch.dtype": str,
    "torch.dtype | None": str,
    "torch.device | str | None": str,
    "float | None": float,
    "bool | float | None": bool,
}


class SettingsCommand(TyperCommand):
    """A command that also takes an option for each setting; they arrive in ``ctx.obj``. They are made when the command is
    used, not when the program starts, because the declarations need torch."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [*super().get_params(ctx), *_setting_parameters()]

    def invoke(self, ctx: Any) -> Any:
        ctx.obj = {p.name: ctx.params.pop(p.name) for p in _setting_parameters()}
        return super().invoke(ctx)


def read_settings(values: dict[str, Any]) -> CompileSettings:
    """The settings that parsed options describe. Raises typer.BadParameter for a value that is not legal."""
    from ..dtypes import parse_dtype
    from ..errors import UserError
    from ..quantize.calibrator import CacheCalibrator
    from ..settings import CompileSettings, declared_options
    from .shapes import parse_profile

    options: dict[str, Any] = {}
    try:
        for declared in declared_options():
            value = values.get(declared.name)
            if value is None:
                continue
            if declared.name == "enabled_precisions":
                value = comma_list([value])
                if "auto" in value:
                    options["precision"] = "auto"
                    value.remove("auto")
                    if not value:
                        continue
            elif declared.name == "calibrator":
                value = CacheCalibrator(value)
            elif declared.name == "workspace_size":
                value = value * 2**20
            elif declared.name == "profiles":
                value = tuple(parse_profile(text) for text in value)
            elif declared.name == "target":
                value = tuple(comma_list(value))
            elif str(declared.type).startswith("frozenset"):
                value = frozenset(comma_list(value))
            elif str(declared.type).startswith("torch.dtype"):
                value = parse_dtype(value)
            options[declared.name] = value
        if values["tolerance"] is not None:
            if not values["verify"]:
                raise typer.BadParameter("give either --tolerance or --no-verify, not both")
            options["verify"] = values["tolerance"]
        return CompileSettings.from_options(options, where="torchkiln compile")
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


def comma_list(texts: list[str]) -> list[str]:
    """``["a,b", "c"]`` -> ``["a", "b", "c"]``."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _setting_parameters() -> list[Any]:
    """The click parameters, made by typer itself from a function that has the right signature."""
    from ..settings import declared_options

    parameters = [_parameter(d.name, _TYPES[str(d.type)], d.default, d.metadata["doc"]) for d in declared_options() if d.metadata["has_flag"]]
    parameters.append(_parameter("tolerance", float, None, "The largest relative L2 error that passes, instead of the precision's own."))

    def collect() -> None: ...

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    scratch = typer.Typer(add_completion=False)
    scratch.command()(collect)
    return list(typer.main.get_command(scratch).params)


def _parameter(name: str, kind: Any, default: Any, doc: str) -> inspect.Parameter:
    import torch

    from ..dtypes import dtype_name

    if name == "enabled_precisions":
        default = "fp32"
    elif isinstance(default, torch.dtype):
        default = dtype_name(default)
    elif isinstance(default, (frozenset, tuple)):
        default = sorted(default)
    flag = RENAMED.get(name, "--" + name.replace("_", "-"))
    callback = remember_debug if name == "debug" else None
    option = typer.Option(flag, help=doc, callback=callback, is_eager=callback is not None, metavar=_METAVARS.get(name), rich_help_panel="Settings")
    # "or None" keeps help free of empty defaults.
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
