"""sources: a MODEL string of the command line -> a model in eval mode, with the inputs it suggests."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..errors import MissingPackage, ModelSourceError
from ..inputs import Input
from .model_forms import FORMS
from .model_zoo import load_timm, load_torchvision, unknown_name

_SCRIPT_SUFFIXES = (".pt", ".pth", ".ts")


@dataclass
class LoadedModel:
    """A model ready to compile.

    Attributes:
        model: in eval mode (an ExportedProgram is as it was exported).
        name: how reports call it.
        default_inputs: the inputs to compile for when the user gives no shape; None when the source suggests none.
        notes: what a user should know about how it was made.
        input_dtypes: of the inputs that the file declares by name: what a shape given without a dtype has. {} when none are declared.
        shape_hint: how to give the shapes of the inputs that vary, as command-line options; "" when the source does not say.
    """

    model: nn.Module | ExportedProgram
    name: str
    default_inputs: list[Input] | None = None
    notes: list[str] = field(default_factory=list)
    input_dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    shape_hint: str = ""


def load_model(source: str, seed: int = 0, weights: str | None = None) -> LoadedModel:
    """The model that ``source`` names; see ``FORMS``. Files and factories run code: load only what you trust.

    Args:
        seed: of the random weights; the caller's random state is left as it was.
        weights: for torchvision and timm: None for random weights, DEFAULT or the name of pretrained ones (fetched from the network).

    Raises:
        ModelSourceError: nothing loadable has that name; the message has the nearest names.
        MissingPackage: torchvision, timm or onnx is needed and not installed.
    """
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "torchvision":
        return load_torchvision(rest, seed, weights)
    if colon and scheme == "timm":
        return load_timm(rest, seed, weights)
    if weights is not None:
        raise ModelSourceError(f"{source}: weights can be chosen only for torchvision: and timm: models, got {weights!r}")
    suffix = Path(source).suffix.lower()
    if suffix == ".kiln":
        raise ModelSourceError(f"{source} is an engine already, not a model: expected {FORMS}. Use 'run', 'bench' or 'inspect' with an engine.")
    if suffix == ".pt2":
        return _load_exported_program(_existing(source))
    if suffix == ".onnx":
        return _load_onnx(_existing(source))
    if suffix in _SCRIPT_SUFFIXES:
        return _load_script_module(_existing(source))
    before, colon, factory = source.rpartition(":")
    if not colon or not before or not factory:
        raise ModelSourceError(f"{source!r} names no model: expected {FORMS}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load_factory(source, before, factory)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ModelSourceError(f"{source}: no such file")
    return path


def _load_exported_program(path: Path) -> LoadedModel:
    if not zipfile.is_zipfile(path):
        raise ModelSourceError(f"{path}: not a .pt2 file as torch.export.save writes it (it is no zip archive)")
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if any("/data/aotinductor/" in m for m in members) and not any("/models/" in m and m.endswith(".json") for m in members):
        raise ModelSourceError(f"{path}: an AOTInductor package holds compiled code, not a model: expected a file written by torch.export.save")
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # what torch's archive reader raises on a damaged file
        raise ModelSourceError(f"{path}: torch.export.load could not read it: {error}") from error
    return LoadedModel(program, path.name)


def _load_onnx(path: Path) -> LoadedModel:
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{path}: reading an ONNX file needs the package onnx ({error}): pip install torchkiln[onnx]") from error
    from .onnx.load import load_onnx

    module, inputs = load_onnx(path)
    fixed = [Input([s for s in i.sizes if isinstance(s, int)], dtype=i.dtype, name=i.name) for i in inputs]
    varies = any(isinstance(size, str) for i in inputs for size in i.sizes)
    hint = " ".join(f"--shape {i.name}:{'x'.join(str(size or '?') for size in i.sizes) or 'scalar'}" for i in inputs) if varies else ""
    return LoadedModel(module, path.name, None if varies else fixed, input_dtypes={i.name: i.dtype for i in inputs}, shape_hint=hint)


def _load_script_module(path: Path) -> LoadedModel:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated", category=FutureWarning)
            model = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise ModelSourceError(
            f"{path}: not a TorchScript file: {first_line} A file of weights only (a state dict) holds no model: write a factory, FILE.py:FACTORY."
        ) from error
    return LoadedModel(model.eval(), path.name)


def _load_factory(source: str, module_name: str, factory_name: str) -> LoadedModel:
    if module_name.endswith(".py"):
        path = _existing(module_name)
        with _importable_from(path.parent):
            return _from_attribute(source, _import_file(source, path), factory_name)
    with _importable_from(Path.cwd()):
        return _from_attribute(source, _import_module(source, module_name), factory_name)


@contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """``folder`` first on the import path, as Python does for a script, while the module and its factory run."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import_file(source: str, path: Path) -> ModuleType:
    # A name of its own: a user's "types.py" must not take the place of the standard module.
    name = f"torchkiln_source_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise ModelSourceError(f"{source}: importing {path} raised {type(error).__name__}: {error}") from error
    return module


def _import_module(source: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelSourceError(f"{source}: no module named {error.name!r} here or among the installed packages: expected {FORMS}") from error
        raise ModelSourceError(f"{source}: importing {name} raised ModuleNotFoundError: {error}") from error
    except Exception as error:  # the user's code may raise anything
        raise ModelSourceError(f"{source}: importing {name} raised {type(error).__name__}: {error}") from error


def _from_attribute(source: str, module: ModuleType, name: str) -> LoadedModel:
    if not hasattr(module, name):
        raise unknown_name(source, "factory", name, [n for n in vars(module) if not n.startswith("_")])
    value = getattr(module, name)
    if callable(value) and not isinstance(value, nn.Module):
        try:
            value = value()
        except Exception as error:  # the user's code may raise anything
            raise ModelSourceError(f"{source}: {name}() raised {type(error).__name__}: {error}") from error
    inputs = None
    if isinstance(value, tuple) and len(value) == 2:
        value, inputs = value[0], _described(source, value[1])
    if isinstance(value, nn.Module):
        value = value.eval()
    elif not isinstance(value, ExportedProgram):
        raise ModelSourceError(f"{source}: expected a torch.nn.Module, an ExportedProgram, or (model, inputs), got {type(value).__name__}")
    return LoadedModel(value, source, inputs)


def _described(source: str, inputs: Any) -> list[Input]:
    """A factory's inputs as Inputs. A tensor's range of values is kept, so that random ones are as legal as it is (token ids, pixels)."""
    items = [inputs] if isinstance(inputs, (torch.Tensor, Input)) else inputs
    if not isinstance(items, (list, tuple)) or not all(isinstance(v, (torch.Tensor, Input)) for v in items):
        raise ModelSourceError(f"{source}: inputs of a factory: expected a list of tensors or torchkiln.Input, got {inputs!r}")
    return [v if isinstance(v, Input) else _describe(v) for v in items]


def _describe(tensor: torch.Tensor) -> Input:
    domain = None
    if tensor.numel() and not tensor.is_complex() and tensor.dtype != torch.bool:
        low, high = float(tensor.min()), float(tensor.max())
        if not tensor.is_floating_point():
            domain = (low, high + 1)
        elif low < high:
            domain = (low, high)
    return Input(tuple(tensor.shape), dtype=tensor.dtype, tensor_domain=domain)
