"""model_device: where a model is, in which precision, with which weights; and a copy of it somewhere else."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch.export import ExportedProgram
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..engine.safetensors_member import tensor_bytes
from .capture import Model


def tensors_of(model: Model) -> list[torch.Tensor]:
    """The model's parameters and buffers; of those that torchao keeps as integers, their parts."""
    if isinstance(model, ExportedProgram):
        held = [v for v in (*model.state_dict.values(), *model.constants.values()) if isinstance(v, torch.Tensor)]
    else:
        held = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    return [part for tensor in held for part in _parts_of(tensor)]


def _parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a tensor subclass is made of; of any other the tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts_of(getattr(tensor, name))]


def precision_of(model: Model) -> torch.dtype:
    """The narrowest floating dtype among the model's tensors, if it is a compute precision."""
    dtypes = [t.dtype for t in tensors_of(model) if t.dtype in (torch.float16, torch.bfloat16, torch.float32)]
    return min(dtypes, key=lambda d: d.itemsize, default=torch.float32)


def digest_of(model: Model) -> str:
    """sha256 of the model's parameters and buffers, in their order: dtypes, shapes and bytes. Equal for two loads of one checkpoint."""
    digest = hashlib.sha256()
    for tensor in tensors_of(model):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor.detach().cpu()).numpy().data)
    return digest.hexdigest()


def devices_of(model: Model) -> list[torch.device]:
    """The devices the model's tensors are on, each once, sorted by name."""
    return sorted({t.device for t in tensors_of(model)}, key=str)


def move_model(model: Model, device: torch.device) -> Model:
    """The model itself where it is on ``device`` (or on none); else a copy there. The caller's model stays where it is."""
    if all(found == device for found in devices_of(model)):
        return model
    if isinstance(model, ExportedProgram):
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(copy.deepcopy(model), str(device))
    return copy.deepcopy(model).to(device)
