"""fold_shapes: sizes that are read from a tensor of fixed shape, as constants.

The frontend may take a size of an activation from a weight that has the same one. That makes the weight, where it is computed from integers,
something that two operators read, and the plugin then computes it as a whole in place of reading the integers in its kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .library import import_openvino


def fold_shapes(model: Any) -> int:
    """Rewrite an ``openvino.Model``, in place. Returns the number of operators replaced."""
    ov = import_openvino()
    folded = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ShapeOf" or node.get_input_partial_shape(0).is_dynamic:
            continue
        dtype = np.int32 if node.get_output_element_type(0) == ov.Type.i32 else np.int64
        constant = ov.op.Constant(np.array(list(node.get_input_shape(0)), dtype=dtype), shared_memory=False)
        node.output(0).replace(constant.output(0))
        folded += 1
    if folded:
        model.validate_nodes_and_infer_types()
    return folded
