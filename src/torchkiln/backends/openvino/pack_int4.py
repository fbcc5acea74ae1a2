"""pack_int4: constants of 4-bit integers, which PyTorch keeps in a byte each, as OpenVINO's i4: two in a byte.

The frontend has no name for an integer of 4 bits. What is packed is a constant of three dimensions (rows, groups, group size) that is made floating,
scaled and read by a product as a matrix, as quantized.py spells weights with a scale for each group, and that has no value beyond -8 to 7.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .library import import_openvino


def pack_int4(model: Any) -> int:
    """Rewrite an ``openvino.Model``, in place. Returns the number of constants packed."""
    ov = import_openvino()
    packed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_element_type(0) != ov.Type.i8 or not _is_grouped_weight(node):
            continue
        values = node.get_data()
        if values.min() < -8 or values.max() > 7:
            continue
        constant = ov.op.Constant(ov.Tensor(_nibbles(values), list(values.shape), ov.Type.i4), shared_memory=False)
        constant.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(constant.output(0))
        packed += 1
    if packed:
        model.validate_nodes_and_infer_types()
    return packed


def _is_grouped_weight(constant: Any) -> bool:
    """Whether a constant of three dimensions, an even number of integers, is only cast, shifted, scaled and made a matrix."""
    shape = constant.get_output_shape(0)
    if len(shape) != 3 or np.prod(shape) % 2:
        return False
    node = constant
    for kinds in (("Convert",), ("Subtract", "Multiply"), ("Multiply", "Reshape"), ("Reshape",)):
        readers = node.output(0).get_target_inputs()
        if len(readers) != 1:
            return False
        node = next(iter(readers)).get_node()
        if node.get_type_name() == "Reshape":
            return len(node.get_output_partial_shape(0)) == 2
        if node.get_type_name() not in kinds:
            return False
    return False


def _nibbles(values: np.ndarray) -> np.ndarray:
    """int8 of -8 to 7 -> uint8, the first of two neighbours in the low half."""
    pairs = values.reshape(-1, 2).astype(np.uint8)
    return (pairs[:, 0] & 15) | ((pairs[:, 1] & 15) << 4)
