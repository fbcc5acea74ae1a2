"""refit: new weights into a plan that was built refittable, or whose weights are stored apart.

Run on real hardware: none of it with TensorRT itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...engine.artifact import Artifact
from ...errors import BuildFailed, CorruptEngineFile, MissingPackage, UserError
from .data_types import torch_dtype
from .open_plan import OpenPlan, open_plan


def refit_plan(artifact: Artifact, weights: Mapping[str, torch.Tensor], device: torch.device) -> Artifact:
    """The same segment with other weights, without a build.

    A plan whose weights are stored apart ("weightless") keeps its payload and stores the new ones; it needs every weight it has. One that was
    built refittable is serialized again, and keeps the weights that are not given where TensorRT can.

    Args:
        weights: by their names in the ONNX graph; any device and strides, the plan's dtype and size.
        device: a GPU that the plan runs on: TensorRT refits a deserialized plan only.

    Raises UserError, naming the weights, when the plan takes no new ones, or they are missing, unknown, or of another dtype or shape; BuildFailed
    when TensorRT refuses; MissingPackage where the library cannot refit; what ``open_plan`` raises.
    """
    weightless = artifact.metadata.get("weightless") is True
    if not weightless and artifact.metadata.get("refittable") is not True:
        raise UserError("refit: the plan was not built for new weights. Build with immutable_weights=False, or with strip_engine_weights=True.")
    for name, tensor in weights.items():
        stored = artifact.tensors.get(name) if weightless else None
        if stored is not None and stored.shape != tensor.shape:
            raise UserError(f"refit: weight {name}: expected shape {tuple(stored.shape)}, got {tuple(tensor.shape)}")
    plan = open_plan(artifact, device)
    refit_engine(plan, weights)
    if weightless:
        # A weight that the build took into the plan whole is stored and not in the plan; it cannot be new.
        fresh = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        return replace(artifact, tensors={**artifact.tensors, **fresh})
    return replace(artifact, payload=_serialize(plan))


def refit_stored_weights(plan: OpenPlan, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a plan whose weights are stored apart from those of its artifact. Raises CorruptEngineFile, naming the weights, when they do not fit."""
    with plan.gpu.active():
        wanted = set(_refitter(plan).get_all_weights())
    try:
        refit_engine(plan, {name: tensor for name, tensor in tensors.items() if name in wanted})
    except UserError as error:
        raise CorruptEngineFile(f"tensorrt segment: the stored weights do not fit the plan: {error}") from error


def refit_engine(plan: OpenPlan, weights: Mapping[str, torch.Tensor]) -> None:
    """Put ``weights`` into the deserialized plan, before it has execution contexts. Raises UserError, BuildFailed."""
    module = plan.library.module
    with plan.gpu.active():
        refitter = _refitter(plan)
        known = set(refitter.get_all_weights())
        unknown = sorted(set(weights) - known)
        if unknown:
            raise UserError(f"refit: the plan has no weights {_list(unknown)}. It has: {_list(sorted(known))}")
        # TensorRT copies nothing until it refits: the memory lives in this list.
        held = [_host_memory(tensor) for tensor in weights.values()]
        for name, tensor in zip(weights, held, strict=True):
            expected = refitter.get_weights_prototype(name)
            dtype = torch_dtype(expected.dtype)
            if dtype is not tensor.dtype or expected.size != tensor.numel():
                wanted = dtype if dtype is not None else expected.dtype.name
                raise UserError(
                    f"refit: weight {name}: expected {expected.size} elements of {wanted}, got shape {tuple(tensor.shape)} of {tensor.dtype}"
                )
            # By address and not by array: numpy has no bfloat16 and no float8.
            if not refitter.set_named_weights(name, module.Weights(expected.dtype, tensor.data_ptr(), tensor.numel())):
                raise BuildFailed(f"refit: {plan.name} refused weight {name}: {plan.logger.errors() or 'it gave no reason'}")
        missing = sorted(refitter.get_missing_weights())
        if missing:
            raise UserError(
                f"refit: the weights {_list(missing)} are missing: the plan holds none of its own, or uses them together with some that were given"
            )
        if not refitter.refit_cuda_engine():
            raise BuildFailed(f"refit: {plan.name} could not refit the plan: {plan.logger.errors() or 'it gave no reason'}")
        del held


def _refitter(plan: OpenPlan) -> Any:
    """Raises MissingPackage where the library cannot refit: the lean runtime may come without it."""
    make = getattr(plan.library.module, "Refitter", None)
    if make is None:
        raise MissingPackage(f"refit: {plan.name} cannot put weights into a plan: install the full library, tensorrt 10 or 11 (from NVIDIA)")
    return make(plan.engine, plan.logger)


def _serialize(plan: OpenPlan) -> bytes:
    """The refitted plan, refittable again where the library can leave it so."""
    flags = plan.library.module.SerializationFlag
    with plan.gpu.active():
        config = plan.engine.create_serialization_config()
        # Only later versions drop it from a plan unless asked to keep it.
        if hasattr(flags, "INCLUDE_REFIT"):
            config.set_flag(flags.INCLUDE_REFIT)
        memory = plan.engine.serialize_with_config(config)
    if memory is None:
        raise BuildFailed(f"refit: {plan.name} could not serialize the refitted plan: {plan.logger.errors() or 'it gave no reason'}")
    return bytes(memory)


def _host_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"
