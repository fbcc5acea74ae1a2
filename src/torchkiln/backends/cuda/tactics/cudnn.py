"""cudnn: convolutions by cuDNN, as torch calls it."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import FLOATS, Config, Launch, Packed, Problem, Recipe, Ref, Tactic, TensorSpec, TorchCall, channels_last_strides
from .epilogue import dense_channels_last, epilogue_blocks, epilogue_launch, epilogue_reject


def pack_channels_last(weight: torch.Tensor) -> torch.Tensor:
    """[A, B, *kernel] -> [A, *kernel, B], dense."""
    return weight.movedim(1, -1).contiguous()


def pack_zeros(weight: torch.Tensor) -> torch.Tensor:
    """A bias of zeros for a weight [CO, CI, *kernel]."""
    return torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)


class Cudnn:
    """cuDNN's convolution with its fused relu, or else followed by one launch of torchkiln's epilogue."""

    name = "cudnn"
    ops: tuple[str, ...] = ("conv",)

    def reject(self, problem: Problem) -> str:
        x, weight, _, residual, scale = problem.inputs
        assert x is not None
        assert weight is not None
        if scale is not None:
            return "cuDNN does not scale the input"
        if x.dtype not in FLOATS or weight.dtype != x.dtype:
            return f"the input is {x.dtype}, the weight {weight.dtype}: expected the same of fp16, bf16 and fp32"
        for name, spec in (("input", x), ("output", problem.outputs[0]), ("residual", residual)):
            if spec is not None and spec.numel == 0:
                return f"the {name} is empty"
            if spec is not None and not dense_channels_last(spec):
                return f"the {name} with strides {spec.strides} is not channels_last: cuDNN would be given a copy"
        if max(x.span, weight.span) >= 2**31:
            return "a tensor of more than 2**31 elements"
        return epilogue_reject(problem)

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """``fused``: all by cuDNN; else ``block``: elements of a program of the epilogue."""
        found: list[Config] = []
        if _is_fused(problem) or _is_plain(problem):
            found.append({"fused": True})
        if not _is_plain(problem):
            found += [{"fused": False, "block": block} for block in epilogue_blocks(problem)]
        return found[: (1, 2, 3, 5, 5, 5)[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        x, weight, bias, residual, _ = problem.inputs
        assert x is not None
        assert weight is not None
        y, attributes = problem.outputs[0], problem.attributes
        packed: dict[str, Packed] = {}
        weight_ref = Ref("x1")
        if problem.constants[1]:
            packed["weight"] = Packed(pack_channels_last, ("x1",))
            weight_ref = Ref("packed.weight", weight.shape, channels_last_strides(weight.shape))
        geometry = tuple(list(attributes[name]) for name in ("stride", "padding", "dilation"))
        if not config["fused"] or _is_plain(problem):
            target = "y0" if config["fused"] else "scratch.conv"
            arguments = (
                _dense(x, "x0"),
                weight_ref,
                None,
                *geometry,
                attributes["transposed"],
                list(attributes["output_padding"]),
                attributes["groups"],
            )
            call = TorchCall("aten.convolution.default", arguments, results=(target,))
            if config["fused"]:
                return Recipe((call,), packed=packed)
            spec = TensorSpec(y.shape, channels_last_strides(y.shape), x.dtype)
            launch: Launch = epilogue_launch(problem, config, target, spec)
            return Recipe((call, launch), {"conv": spec}, packed)
        if bias is None:
            # torch would make the zeros anew in every call.
            packed["zeros"] = Packed(pack_zeros, ("x1",))
        bias_ref = Ref("packed.zeros" if bias is None else "x2")
        tail: tuple[Any, ...] = (bias_ref, *geometry, attributes["groups"])
        if residual is None:
            return Recipe((TorchCall("aten.cudnn_convolution_relu.default", (_dense(x, "x0"), weight_ref, *tail)),), packed=packed)
        call = TorchCall("aten.cudnn_convolution_add_relu.default", (_dense(x, "x0"), weight_ref, _dense(residual, "x3"), 1.0, *tail))
        return Recipe((call,), packed=packed)


def _is_plain(problem: Problem) -> bool:
    """Whether there is nothing but the convolution."""
    y = problem.outputs[0]
    alone = problem.inputs[2] is None and problem.inputs[3] is None and problem.attributes["activation"] == "none"
    return alone and _spec(problem, 0).dtype == y.dtype and y.is_channels_last


def _is_fused(problem: Problem) -> bool:
    """Whether cuDNN's convolution with relu is the whole problem."""
    x, weight, bias, residual, _ = problem.inputs
    assert x is not None
    assert weight is not None
    y = problem.outputs[0]
    if problem.attributes["activation"] != "relu" or problem.attributes["transposed"] or len(x.shape) == 3:
        return False  # those operators know only two and three spatial dimensions
    if bias is None and not problem.constants[1]:
        return False
    return y.is_channels_last and all(spec is None or spec.dtype == x.dtype for spec in (bias, residual, y))


def _dense(spec: TensorSpec, name: str) -> Ref:
    """The operand with the strides by which torch knows channels_last, also where a dimension has one element."""
    return Ref(name) if spec.is_channels_last else Ref(name, spec.shape, channels_last_strides(spec.shape))


def _spec(problem: Problem, index: int) -> TensorSpec:
    spec = problem.inputs[index]
    assert spec is not None
    return spec


TACTICS: tuple[Tactic, ...] = (Cudnn(),)
