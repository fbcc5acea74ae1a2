"""table: which function runs which ONNX operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .node import Call, Value
from .operators import (
    activation,
    convolution,
    elementwise,
    indexing,
    matmul,
    microsoft,
    normalization,
    quantization,
    recurrent,
    reduce,
    resize,
    shape,
)

Function = Callable[[Call], Value]

_STANDARD = (elementwise, activation, reduce, matmul, convolution, normalization, shape, indexing, resize, quantization, recurrent)

#: Operator -> function, for each domain ("" is ONNX's own).
OPERATORS: Mapping[str, Mapping[str, Function]] = MappingProxyType(
    {"": MappingProxyType({name: f for family in _STANDARD for name, f in family.OPERATORS.items()}), "com.microsoft": microsoft.OPERATORS}
)

#: Why an operator that is not in the table never will be.
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "Loop": "a loop whose length the data decides cannot become one graph: unroll it, or export the model with torch.export instead",
        "Scan": "a loop over a graph cannot become one graph: unroll it, or export the model with torch.export instead",
        "RandomNormal": "an engine has no random numbers",
        "RandomNormalLike": "an engine has no random numbers",
        "RandomUniform": "an engine has no random numbers",
        "RandomUniformLike": "an engine has no random numbers",
        "Multinomial": "an engine has no random numbers",
        "Bernoulli": "an engine has no random numbers",
    }
)
