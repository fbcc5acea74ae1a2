"""torchao_quantizer: torchkiln's choice of int8 layers as a torchao quantizer, for quantization-aware training (prepare_qat_pt2e, convert_pt2e).

The one place that imports torchao. What torchao makes of an annotated model, ``torchkiln.compile`` takes as it is: no calibrator is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import MissingPackage
from .insert_quantize import ACTIVATION_RANGE, WEIGHT_RANGE
from .layers import Names, choice_reason
from .options import QuantizeOptions

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def quantizer(options: QuantizeOptions | None = None, *, is_qat: bool = True) -> Any:
    """A ``torchao.quantization.pt2e.quantizer.Quantizer`` that annotates a model exported by ``torch.export.export(model, inputs).module()``.

    Inputs of the chosen convolutions and linear layers: int8, symmetric, one scale. Weights: int8, symmetric, one scale an output channel.

    Args:
        options: which layers; the default leaves the stem, the head and depthwise convolutions in floating point. ``residuals`` is not read.
        is_qat: for prepare_qat_pt2e; False for prepare_pt2e.

    Raises MissingPackage when torchao is not installed.
    """
    try:
        from torchao.quantization.pt2e import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
    except ImportError as error:
        raise MissingPackage(f"quantization-aware training needs the package torchao ({error}): pip install torchkiln[quantize]") from error

    def spec(observer: Any, bounds: tuple[int, int], **kwargs: Any) -> Any:
        constructor = FakeQuantize.with_args(observer=observer) if is_qat else observer
        return QuantizationSpec(torch.int8, constructor, quant_min=bounds[0], quant_max=bounds[1], **kwargs)

    activation = spec(MovingAverageMinMaxObserver if is_qat else MinMaxObserver, ACTIVATION_RANGE, qscheme=torch.per_tensor_symmetric)
    weight = spec(PerChannelMinMaxObserver, WEIGHT_RANGE, qscheme=torch.per_channel_symmetric, ch_axis=0)

    class TorchkilnQuantizer(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in chosen_layers(model, options or QuantizeOptions()):
                specs = {node.args[0]: activation, node.args[1]: weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
            return model

        def validate(self, model: GraphModule) -> None:
            """Nothing to refuse: only layers that can be quantized are annotated."""

    return TorchkilnQuantizer()


def chosen_layers(model: GraphModule, options: QuantizeOptions) -> list[Node]:
    """The convolutions and linear layers of an exported model that become int8."""
    names = Names()
    found = []
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in (*_CONVOLUTIONS, aten.linear.default):
            name = names.of(node)
            weight = node.args[1]
            if isinstance(weight, Node) and weight.op == "get_attr" and not choice_reason(node, name, options):
                found.append(node)
    return found
