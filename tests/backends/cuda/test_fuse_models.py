"""The fusion passes on whole models: what is fused, and that nothing is left that should be."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from torchkiln.backends.cuda.passes.pipeline import OPTIONAL_PASSES, PASSES, fuse

from .fusion import calls, check_graph, lowered, ops, rejects

models = pytest.importorskip("torchvision.models")


def fused(model, shape=(1, 3, 224, 224)):
    graph_module = lowered(model, [shape], torch.float16)
    results = fuse(graph_module)
    assert [name for name, _ in results] == [run.__name__ for run in PASSES + OPTIONAL_PASSES]
    check_graph(graph_module)
    assert rejects(graph_module) == ""
    return graph_module


def test_resnet50():
    after = fused(models.resnet50())
    assert ops(after) == {"conv": 53, "max_pool2d": 1, "adaptive_avg_pool2d": 1, "view": 1, "linear": 1, "_to_copy": 1}
    assert Counter((n.args[3] is not None, n.args[11]) for n in calls(after, "conv")) == {(False, "relu"): 33, (True, "relu"): 16, (False, "none"): 4}


def test_efficientnet_b0():
    after = fused(models.efficientnet_b0())
    assert not ops(after).keys() & {"convolution", "mul", "silu", "sigmoid", "add"}
    assert {name: ops(after)[name] for name in ("conv", "conv_excite", "squeeze_excite")} == {"conv": 33, "conv_excite": 16, "squeeze_excite": 0}
    found = Counter((n.args[3] is not None, n.args[4] is not None, n.args[11]) for n in calls(after, "conv"))
    assert found == {(False, False, "silu"): 17, (True, True, "none"): 9, (False, True, "none"): 7}


def test_mobilenet_v3():
    after = fused(models.mobilenet_v3_large())
    assert not ops(after).keys() & {"convolution", "mul", "hardswish", "hardsigmoid", "relu", "add"}
    assert (ops(after)["conv_excite"], ops(after)["squeeze_excite"]) == (8, 0)


def test_vit_b_16():
    after = fused(models.vit_b_16())
    assert (ops(after)["attention"], ops(after)["layer_norm"], ops(after)["linear"], ops(after)["gelu"]) == (12, 25, 49, 0)
    found = Counter((n.args[3] is not None, n.args[4]) for n in calls(after, "linear"))
    assert found == {(False, "none"): 13, (False, "gelu"): 12, (True, "none"): 24}


def test_swin_unetr():
    networks = pytest.importorskip("monai.networks.nets")
    after = fused(networks.SwinUNETR(in_channels=1, out_channels=2, feature_size=24), (1, 1, 64, 64, 64))
    assert not ops(after).keys() & {"convolution", "instance_norm", "leaky_relu", "gelu", "softmax", "matmul"}
    assert {n: ops(after)[n] for n in ("attention", "layer_norm", "group_norm", "linear")} == {
        "attention": 8,
        "layer_norm": 25,
        "group_norm": 26,
        "linear": 36,
    }
    found = Counter((n.args[4] is not None, n.args[6], n.args[8]) for n in calls(after, "group_norm"))
    assert found == {(False, "leaky_relu", torch.float16): 10, (True, "leaky_relu", torch.float16): 10, (False, "none", torch.float16): 6}
    assert ops(after)["_to_copy"] == 2  # the input, which three convolutions read, and the output
