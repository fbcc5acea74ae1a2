"""The passes over int8: what becomes of pairs, and that the numbers stay."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.backends.cuda.fusion import calls, ops, rejects
from tests.backends.cuda.int8_models import Bottlenecks, Joined, error, fused, graph_of, int8_weight, pair, quantized, weight

from torchkiln.backends.cuda.passes.commute_quantize import commute_quantize
from torchkiln.backends.cuda.passes.convert_quantize import convert_quantize
from torchkiln.backends.cuda.passes.fuse_int8 import MAX_PRODUCTS
from torchkiln.backends.cuda.support import supports
from torchkiln.ptq import QuantizeOptions
from torchkiln.quantized_ops import register_quantized_ops

aten = torch.ops.aten
TOLERANCES = {None: 1e-6, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def compare(before, after, *inputs, tolerance=1e-6):
    with torch.no_grad():
        for right, got in zip(before(*inputs), after(*inputs), strict=True):
            assert (got.shape, got.dtype) == (right.shape, right.dtype)
            assert error(got, right) <= tolerance


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_network_stays_in_8_bits(precision):
    before = quantized(Bottlenecks, (2, 3, 13, 11), precision)
    after = fused(before)
    found = ops(after)
    assert (found["int8_conv"], found["int8_linear"], found["int8_max_pool"], found["dequantize"]) == (7, 2, 1, 0)
    assert found["quantize"] == 2, "that of the input, and that of the mean"
    layers = calls(after, "int8_conv")
    assert [layer.args[-1] for layer in layers].count(torch.int8) == 6
    assert {layer.args[10] for layer in layers[:3]} == {"none"}, "a relu in front of a quantize is a bound"
    assert [layer.args[12] for layer in layers[:3]] == [0, 0, 0]
    residuals = [layer.args[4] for layer in layers if layer.args[4] is not None]
    assert [residual.meta["val"].dtype for residual in residuals] == [torch.int8] * 2
    assert layers[-1].args[-1] is torch.float32, "a cast behind a layer is part of it"
    scales = {layer.args[2].meta["val"].dtype for layer in layers}
    assert (scales, rejects(after)) == ({torch.float32}, "")
    assert "relu" not in found
    compare(before, after, torch.randn(2, 3, 13, 11), tolerance=TOLERANCES[precision])


def test_what_is_not_int8():
    before = quantized(Joined, (1, 16, 5, 4), torch.float16)
    after = fused(before)
    found, why = ops(after), rejects(after)
    assert (found["int8_conv"], found["conv"]) == (4, 1)
    assert "not in int8: a convolution in 2 groups" in why
    assert "but it has 3 readers: it is written in torch.float16 too" in why
    (cat,) = after.graph.find_nodes(op="call_function", target=aten.cat.default)
    assert cat.meta["val"].dtype is torch.int8
    (pad,) = after.graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default)
    assert pad.meta["val"].dtype is torch.int8
    assert "dequantize_per_channel" not in found, "the weight of the grouped convolution is a constant"
    (conv,) = calls(after, "conv")
    assert (conv.args[1].op, conv.args[1].meta["val"].dtype) == ("get_attr", torch.float16)
    compare(before, after, torch.randn(1, 16, 5, 4), tolerance=1e-2)


def test_a_floating_graph_is_left_alone():
    def write(graph, x):
        return graph.call_function(aten.relu.default, (x,))

    module = graph_of(write, (2, 3))
    assert ops(fused(module)) == ops(module)


def test_equal_quantizes_become_one():
    def write(graph, x):
        return graph.call_function(aten.add.Tensor, (pair(graph, x, 0.02), pair(graph, x, 0.02)))

    before = graph_of(write, (3, 40))
    after = copy.deepcopy(before)
    assert convert_quantize(after) == 6  # four pairs' halves, two of which vanish
    assert (ops(after)["quantize"], ops(after)["dequantize"]) == (1, 1)
    compare(before, after, torch.randn(3, 40), tolerance=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_around_a_pair_vanish(dtype):
    def write(graph, x):
        low = graph.call_function(aten._to_copy.default, (x,), {"dtype": dtype})
        wide = graph.call_function(aten._to_copy.default, (low,), {"dtype": torch.float32})
        value = pair(graph, wide, 0.03)
        back = graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype})
        return graph.call_function(aten.add.Tensor, (graph.call_function(aten.tanh.default, (back,)), value))

    before = graph_of(write, (3, 40))
    after = fused(before)
    (quantize,) = calls(after, "quantize")
    assert quantize.args[0].meta["val"].dtype is dtype
    assert {node.args[-1] for node in calls(after, "dequantize")} == {dtype, torch.float32}
    compare(before, after, torch.randn(3, 40), tolerance=0)


def call(name, *args):
    return lambda graph, x: graph.call_function(getattr(aten, name).default, (x, *args))


def joined(graph, x):
    return graph.call_function(aten.cat.default, ([x, call("max_pool2d", [3, 3], [1, 1], [1, 1])(graph, x)], 2))


@pytest.mark.parametrize(
    "between",
    [
        [call("max_pool2d", [3, 3], [2, 2], [1, 1])],
        [call("relu"), call("constant_pad_nd", [1, 0, 2, 1], -0.3), call("max_pool2d", [2, 2])],
        [call("permute", [0, 2, 3, 1]), call("clone"), call("relu"), call("permute", [0, 3, 1, 2])],
        [joined, call("relu"), call("roll", [1, -2], [2, 3])],
    ],
)
def test_quantizes_move_over_what_keeps_integers(between):
    def write(graph, x):
        x = graph.call_function(aten.convolution.default, conv_of(pair(graph, x, 0.02), weight(graph)))
        for move in between:
            x = move(graph, x)
        return graph.call_function(aten.convolution.default, conv_of(pair(graph, x, 0.05), weight(graph)))

    before = graph_of(write, (2, 8, 9, 8), **int8_weight(8, 8, 2, 2))
    after = fused(before)
    found = ops(after)
    assert (found["quantize"], found["int8_conv"], found["relu"], found["max_pool2d"]) == (1, 2, 0, 0), "nothing floating is between"
    compare(before, after, torch.randn(2, 8, 9, 8))


def test_a_quantize_of_its_own_grid_gives_the_integers_again():
    def write(graph, x):
        value = pair(graph, x, 0.02)
        moved = graph.call_function(aten.max_pool2d.default, (graph.call_function(aten.relu.default, (value,)), [2, 2], [1, 1]))
        return pair(graph, moved, 0.02)

    before = graph_of(write, (1, 3, 5, 6))
    after = fused(before)
    assert (ops(after)["quantize"], ops(after)["clamp"], ops(after)["int8_max_pool"]) == (1, 1, 1)
    compare(before, after, torch.randn(1, 3, 5, 6), tolerance=0)


def test_a_dequantize_moves_over_views_to_its_layer():
    def write(graph, x):
        value = pair(graph, x, 0.02)
        turned = graph.call_function(aten.clone.default, (graph.call_function(aten.permute.default, (value, [0, 2, 1])),))
        flat = graph.call_function(aten.reshape.default, (turned, [6, 32]))
        padded = graph.call_function(aten.constant_pad_nd.default, (flat, [0, 3]))
        return graph.call_function(aten.linear.default, (padded, weight(graph)))

    before = graph_of(write, (2, 32, 3), **int8_weight(24, 35))
    after = fused(before)
    assert (ops(after)["int8_linear"], ops(after)["dequantize"]) == (1, 0)
    compare(before, after, torch.randn(2, 32, 3))


@pytest.mark.parametrize("op", ["linear", "mm", "addmm", "matmul", "mm of a transposed weight", "a weight by one scale"])
def test_products(op):
    shape, axis = ((24, 40), 0) if op in ("linear", "mm of a transposed weight", "a weight by one scale") else ((40, 24), 1)

    def write(graph, x):
        x = pair(graph, x, 0.02)
        w = weight(graph, axis=axis)
        if op == "a weight by one scale":
            w = graph.call_function(register_quantized_ops().dequantize_per_tensor.default, (graph.get_attr("w"), 0.004, 0, -127, 127, torch.int8))
        if op == "mm of a transposed weight":
            return graph.call_function(aten.mm.default, (x, graph.call_function(aten.t.default, (w,))))
        if op in ("linear", "a weight by one scale"):
            return graph.call_function(aten.linear.default, (x, w, graph.get_attr("bias")))
        if op == "addmm":
            return graph.call_function(aten.addmm.default, (graph.get_attr("bias"), x, w))
        return graph.call_function(getattr(aten, op).default, (x, w))

    before = graph_of(write, (5, 40), bias=torch.randn(24), **int8_weight(*shape, axis=axis))
    after = fused(before)
    assert set(ops(after)) == {"quantize", "int8_linear"}
    (layer,) = calls(after, "int8_linear")
    assert (tuple(layer.args[1].meta["val"].shape), layer.args[1].meta["val"].dtype) == ((24, 40), torch.int8)
    compare(before, after, torch.randn(5, 40))


def conv_of(x, w, groups=1, transposed=False):
    return (x, w, None, [1, 1], [0, 0], [1, 1], transposed, [0, 0], groups)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"zero_point": 3}, "the zero point 3: kernels take torch.int8 with 0"),
        ({"dtype": torch.uint8}, "its input is torch.uint8"),
        ({"pair": False}, "its input is not quantized"),
        ({"axis": 1}, "dimension 1, not of the output channels"),
        ({"zero": 2}, "its weight has zero points other than 0"),
        ({"transposed": True}, "a transposed convolution"),
    ],
)
def test_layers_that_are_refused_compute_in_floating_point(change, reason):
    axis, dtype = change.get("axis", 0), change.get("dtype", torch.int8)

    def write(graph, x):
        x = pair(graph, x, 0.02, change.get("zero_point", 0), dtype) if change.get("pair", True) else x
        return graph.call_function(aten.convolution.default, conv_of(x, weight(graph, axis=axis), transposed=change.get("transposed", False)))

    before = graph_of(write, (2, 8, 5, 6), **int8_weight(8, 8, 3, 3, axis=axis, zero=change.get("zero", 0)))
    after = fused(before)
    assert reason in rejects(after)
    assert (ops(after)["conv"], ops(after)["int8_conv"], ops(after)["dequantize_per_channel"]) == (1, 0, 0)
    compare(before, after, torch.randn(2, 8, 5, 6))


def test_pairs_that_are_no_number_are_named():
    def write(graph, x):
        q = register_quantized_ops()
        grid = (graph.get_attr("w_s"), graph.get_attr("w_z"), 1, -128, 127, torch.int8)
        integers = graph.call_function(q.quantize_per_channel.default, (x, *grid))
        return graph.call_function(q.dequantize_per_channel.default, (integers, *grid))

    after = copy.deepcopy(graph_of(write, (2, 8, 5), **int8_weight(8, 8)))
    assert convert_quantize(after) == 0
    assert "one constant scale" in rejects(after)


@pytest.mark.parametrize("shape", [(2, 40, 24), (40,)])
def test_products_with_other_than_a_matrix_are_refused(shape):
    def write(graph, x):
        grid = (0.004, 0, -127, 127, torch.int8)
        w = graph.call_function(register_quantized_ops().dequantize_per_tensor.default, (graph.get_attr("w"), *grid))
        return graph.call_function(aten.matmul.default, (pair(graph, x, 0.02), w))

    before = graph_of(write, (2, 5, 40), w=int8_weight(*shape)["w"])
    after = fused(before)
    assert (ops(after)["matmul"], ops(after)["int8_linear"]) == (1, 0)
    assert "expected a matrix as its weight" in rejects(after)
    compare(before, after, torch.randn(2, 5, 40))


@pytest.mark.parametrize(("depth", "fits"), [(MAX_PRODUCTS, True), (MAX_PRODUCTS + 1, False)])
@pytest.mark.parametrize("turned", [False, True])
def test_sums_that_may_not_fit_32_bits_are_refused(depth, fits, turned):
    assert MAX_PRODUCTS * 2**14 < 2**31 <= (MAX_PRODUCTS + 1) * 2**14
    axis = 1 if turned else 0

    def write(graph, x):
        w, product = weight(graph, axis=axis), aten.mm if turned else aten.linear
        return graph.call_function(product.default, (pair(graph, x, 0.02), w))

    after = fused(graph_of(write, (1, depth), **int8_weight(*((depth, 2) if turned else (2, depth)), axis=axis)))
    assert ops(after)["int8_linear"] == fits
    assert ("may not fit 32 bits" in rejects(after)) is not fits


def test_a_padded_pool_whose_windows_may_be_empty_stays_floating():
    def write(graph, x):
        y = graph.call_function(aten.convolution.default, conv_of(pair(graph, x, 0.02), weight(graph)))
        return pair(graph, graph.call_function(aten.max_pool2d.default, (y, [2, 2], [1, 1], [1, 1], [10, 10])), 0.05)

    before = graph_of(write, (1, 8, 9, 9), **int8_weight(8, 8, 1, 1))  # the taps of its window lie at -1 and 9
    after = fused(before)
    assert (ops(after)["int8_max_pool"], ops(after)["max_pool2d"]) == (0, 1)
    compare(before, after, torch.randn(1, 8, 9, 9), tolerance=0)


def test_a_dequantize_behind_a_concatenation_has_its_dtype():
    def write(graph, x):
        low = graph.call_function(aten._to_copy.default, (pair(graph, x, 0.02),), {"dtype": torch.float16})
        wide = pair(graph, graph.call_function(aten.neg.default, (x,)), 0.02)
        cat = graph.call_function(aten.cat.default, ([low, wide], 1))
        return graph.call_function(aten.add.Tensor, (graph.call_function(aten.tanh.default, (cat,)), pair(graph, cat, 0.05)))

    before = graph_of(write, (2, 8, 6, 6))
    compare(before, fused(before), torch.randn(2, 8, 6, 6), tolerance=1e-3)


def test_what_is_computed_in_many_ways_is_looked_at_once():
    def write(graph, x):
        for _ in range(40):  # to look at each way from x would take years
            x = graph.call_function(aten.add.Tensor, (graph.call_function(aten.silu.default, (x,)), x))
        return pair(graph, graph.call_function(aten.max_pool2d.default, (x, [2, 2])), 0.02)

    after = graph_of(write, (1, 8, 4, 4))
    convert_quantize(after)
    assert commute_quantize(after) == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_numbers_have_the_same_name_in_every_plan(batch):
    def write(graph, x):
        first = pair(graph, x, 0.5) if batch == 1 else x
        return graph.call_function(aten.add.Tensor, (pair(graph, first, 0.25), x))

    after = fused(graph_of(write, (batch, 7)))
    numbers = {name: tensor.item() for name, tensor in after.named_buffers()}
    assert (numbers["number_3e800000"], numbers["number_40800000"]) == (0.25, 4.0)


@pytest.mark.parametrize(
    ("scale", "dtype", "reason"), [(-0.02, torch.int8, "scales above 0, not -0.02"), (0.02, torch.float8_e4m3fn, "not of float8_e4m3fn")]
)
def test_pairs_that_keep_no_order_are_refused(scale, dtype, reason):
    def write(graph, x):
        grid = (scale, 0, -128, 127, dtype)
        q = register_quantized_ops()
        integers = graph.call_function(q.quantize_per_tensor.default, (x, *grid))
        return graph.call_function(q.dequantize_per_tensor.default, (integers, *grid))

    before = graph_of(write, (2, 5))
    assert all(reason in supports(node).reason for node in before.graph.nodes if node.op == "call_function")
    assert reason in rejects(fused(before))


def test_the_first_and_last_layers_stay_floating_by_default():
    before = quantized(Bottlenecks, (2, 3, 13, 11), torch.float16, QuantizeOptions())
    after = fused(before)
    assert (ops(after)["conv"], ops(after)["int8_conv"], ops(after)["linear"]) == (1, 6, 1)
    (pool,) = after.graph.find_nodes(op="call_function", target=aten.max_pool2d.default)
    assert pool.meta["val"].dtype is torch.float16, "what a floating layer wrote is pooled as it is"
    compare(before, after, torch.randn(2, 3, 13, 11), tolerance=1e-2)


def test_an_output_quantized_to_another_kind_of_integer_is_named():
    def write(graph, x):
        y = graph.call_function(aten.linear.default, (pair(graph, x, 0.02), weight(graph)))
        return pair(graph, y, 0.05, 7, torch.uint8)

    before = graph_of(write, (5, 40), **int8_weight(24, 40))
    after = fused(before)
    assert "quantizes it to torch.uint8 with the zero point 7" in rejects(after)
    compare(before, after, torch.randn(5, 40))


def norm_of(graph, x, features):
    return graph.call_function(aten.layer_norm.default, (x, [features], graph.get_attr("gamma"), graph.get_attr("beta"), 1e-5))


@pytest.mark.parametrize("reader", ["none", "a cast", "itself"])
def test_layer_norms_write_integers(reader):
    def write(graph, x):
        normed = norm_of(graph, x, 40)
        y = graph.call_function(aten.linear.default, (pair(graph, graph.call_function(aten.view.default, (normed, [15, 40])), 0.03), weight(graph)))
        if reader == "a cast":
            half = graph.call_function(aten._to_copy.default, (normed,), {"dtype": torch.float16})
            normed = graph.call_function(aten._to_copy.default, (graph.call_function(aten.tanh.default, (half,)),), {"dtype": torch.float32})
        flat = graph.call_function(aten.view.default, (normed, [15, 40]))
        return y if reader == "none" else graph.call_function(aten.add.Tensor, (y, flat))

    before = graph_of(write, (3, 5, 40), gamma=torch.rand(40), beta=torch.randn(40), **int8_weight(40, 40))
    after = fused(before)
    found = ops(after)
    single = reader == "none"
    assert (found["int8_layer_norm"], found["int8_layer_norm_both"], found["int8_linear"], found["layer_norm"]) == (single, not single, 1, 0)
    if not single:
        assert found["quantize"] == 0
        (both,) = calls(after, "int8_layer_norm_both")
        assert both.args[-1] is (torch.float16 if reader == "a cast" else torch.float32)
    compare(before, after, torch.randn(3, 5, 40), tolerance=1e-6 if reader != "a cast" else 1e-3)


def test_layer_norms_that_are_quantized_otherwise_are_named():
    def write(graph, x):
        normed = norm_of(graph, x, 40)
        return graph.call_function(aten.add.Tensor, (pair(graph, normed, 0.03), pair(graph, normed, 0.02)))

    before = graph_of(write, (5, 40), gamma=torch.rand(40), beta=torch.randn(40))
    after = fused(before)
    assert "quantizes it by several scales" in rejects(after)
    assert (ops(after)["layer_norm"], ops(after)["quantize"]) == (1, 2)
    compare(before, after, torch.randn(5, 40))


def test_a_layer_norm_is_not_rounded_to_half_first():
    def write(graph, x):
        half = graph.call_function(aten._to_copy.default, (norm_of(graph, x, 32),), {"dtype": torch.float16})
        turned = graph.call_function(aten.permute.default, (half, [1, 0, 2]))
        wide = graph.call_function(aten._to_copy.default, (turned,), {"dtype": torch.float32})
        return graph.call_function(aten.linear.default, (pair(graph, wide, 0.03), weight(graph)))

    before = graph_of(write, (3, 5, 32), gamma=torch.rand(32), beta=torch.randn(32), **int8_weight(32, 32))
    after = fused(before)
    assert set(ops(after)) == {"int8_layer_norm", "permute", "int8_linear"}
    compare(before, after, torch.randn(3, 5, 32), tolerance=1e-2)
