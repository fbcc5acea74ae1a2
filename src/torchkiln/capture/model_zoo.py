"""model_zoo: torchvision's and timm's models by name, with seeded random weights and the input shape their metadata gives."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import MissingPackage, ModelSourceError
from ..inputs import Input
from .settle_batch_norms import settle_batch_norms

if TYPE_CHECKING:
    from .sources import LoadedModel


def load_torchvision(name: str, seed: int, weights: str | None) -> LoadedModel:
    """Any model of ``torchvision.models.list_models()``: classification, segmentation, detection, video, quantization, optical flow.

    Raises:
        MissingPackage: torchvision is not installed.
        ModelSourceError: no such model or weights (the message has the nearest names), or the weights cannot be had.
    """
    from .sources import LoadedModel

    models = _torchvision_models()
    if name not in models.list_models():
        raise unknown_name(f"torchvision:{name}", "torchvision model", name, models.list_models())
    options: dict[str, str | None] = {"weights": weights}
    if weights is None:
        # Segmentation and detection models fetch pretrained backbones unless told otherwise.
        if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            options["weights_backbone"] = None
    else:
        known = list(models.get_model_weights(name).__members__)
        if weights not in known:
            raise unknown_name(f"torchvision:{name}", "weights", weights, known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = models.get_model(name, **options)
        except OSError as error:  # a download that fails: no network, no disk
            raise ModelSourceError(f"torchvision:{name}: weights {weights} could not be fetched: {error}") from error
        notes = _redraw_zero_layers(model) if weights is None else []
    inputs = _torchvision_inputs(models, name, model)
    if weights is None and inputs is not None:
        notes += settle_batch_norms(model, inputs, seed)
    if inputs is None:
        notes.append(f"torchvision:{name} takes a list of images: wrap it in a factory that takes a tensor")
    return LoadedModel(model.eval(), f"torchvision:{name}", inputs, notes)


def load_timm(name: str, seed: int, weights: str | None) -> LoadedModel:
    """Any model of ``timm.list_models()``. ``weights`` is DEFAULT or one of the model's tags (``a1_in1k``).

    Raises:
        MissingPackage: timm is not installed.
        ModelSourceError: no such model or weights (the message has the nearest names), or the weights cannot be had.
    """
    from .sources import LoadedModel

    try:
        import timm
    except ImportError as error:
        raise MissingPackage(f'timm:{name} needs timm, which is not installed: pip install "torchkiln[models]" ({error})') from error
    if not timm.is_model(name):
        raise unknown_name(f"timm:{name}", "timm model", name, timm.list_models())
    full_name = name
    if weights is not None:
        tags = [p.partition(".")[2] for p in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        if weights != "DEFAULT" and weights not in tags:
            raise unknown_name(f"timm:{name}", "weights", weights, ["DEFAULT", *tags])
        if weights != "DEFAULT":
            full_name = f"{name.partition('.')[0]}.{weights}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(full_name, pretrained=weights is not None)
        except (OSError, RuntimeError) as error:  # timm turns "this model has no pretrained weights" into a RuntimeError
            raise ModelSourceError(f"timm:{full_name}: the model could not be made: {error}") from error
        notes = _redraw_zero_layers(model) if weights is None else []
    cfg: Any = model.pretrained_cfg
    inputs = [Input((1, *cfg["input_size"]))]
    if weights is None:
        notes += settle_batch_norms(model, inputs, seed)
    return LoadedModel(model.eval(), f"timm:{full_name}", inputs, notes)


def unknown_name(source: str, what: str, name: str, known: Iterable[str]) -> ModelSourceError:
    """ModelSourceError that suggests the nearest names, or lists all when they are few."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?"
    elif len(names) <= 12:
        hint = f" There are: {', '.join(names) or 'none'}."
    else:
        hint = ""
    return ModelSourceError(f"{source}: unknown {what} {name!r}.{hint}")


def _torchvision_models() -> ModuleType:
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise MissingPackage(f'torchvision: models need torchvision, which cannot be imported: pip install "torchkiln[models]" ({error})') from error
    return torchvision.models


def _torchvision_inputs(models: ModuleType, name: str, model: nn.Module) -> list[Input] | None:
    """One image (or clip, or pair of images) of the size the architecture was published with; None for detection models."""
    kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "detection":
        return None
    if kind == "optical_flow":
        return [Input((1, 3, 128, 128)), Input((1, 3, 128, 128))]
    if kind == "video":
        size = models.get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]
        return [Input((1, 3, 16, *size))]
    # A vision transformer accepts one size only. Its weights may be for another than its random initialisation.
    side = getattr(model, "image_size", 299 if "inception" in name else 224)
    return [Input((1, 3, side, side))]


def _redraw_zero_layers(model: nn.Module) -> list[str]:
    """Redraw linear and convolution layers whose weight and bias are all zeros (the heads of torchvision's ViTs).

    Such a head makes the output constant, so that comparing two engines would compare nothing.
    """
    redrawn = []
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or layer.weight.numel() == 0:
            continue
        parameters = [p for p in (layer.weight, layer.bias) if p is not None]
        if any(p.count_nonzero() for p in parameters):
            continue
        fan_in = layer.weight[0].numel()
        for p in parameters:
            nn.init.normal_(p, std=1 / math.sqrt(fan_in))
        redrawn.append(name)
    if not redrawn:
        return []
    return [f"layers initialised with zeros were redrawn from a seeded normal, so that outputs are not constant: {', '.join(redrawn)}"]
