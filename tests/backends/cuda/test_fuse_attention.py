"""fuse_attention: what it finds, what it refuses, and that the numbers stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchkiln
from torchkiln.backends.cuda.passes.fuse_attention import fuse_attention
from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.pipeline import lower


def fused(model, *shapes, precision=None):
    """(graph before, graph after, rewrites, inputs)."""
    arguments = read_arguments([torchkiln.Input(shape) for shape in shapes], None, torch.device("cpu"), 0)
    program = capture(model.eval(), arguments)
    lower(program)
    before = program.graph_module
    if precision:
        convert_precision(before, precision)
    after = copy.deepcopy(before)
    count = fuse_attention(after)
    generator = torch.Generator().manual_seed(0)
    return before, after, count, [torch.randn(shape, generator=generator) for shape in shapes]


def ops(graph_module):
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


def check(model, *shapes, count=1, precision=None, tolerance=2e-5):
    before, after, found, inputs = fused(model, *shapes, precision=precision)
    assert found == count, after.meta["rejects"]
    assert ops(after).count("torchkiln.attention.default") == count
    assert not after.meta["rejects"]
    for expected, got in zip(before(*inputs), after(*inputs), strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        assert (got - expected).norm() <= tolerance * expected.norm()
    node = next(node for node in after.graph.nodes if node.target is torch.ops.torchkiln.attention.default)
    assert node.meta["val"].is_contiguous()
    return after


def refused(model, *shapes, reason):
    before, after, found, inputs = fused(model, *shapes)
    assert found == 0
    assert any(reason in text for _, text in after.meta["rejects"]), after.meta["rejects"]
    assert ops(after) == ops(before)
    for expected, got in zip(before(*inputs), after(*inputs), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


class Attention(nn.Module):
    """Self-attention over one linear; ``core(q, k, v)`` is the part under test, with q, k, v [B, H, S, D]."""

    def __init__(self, core, heads=3, width=24):
        super().__init__()
        self.core, self.heads = core, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, s, c = x.shape
        q, k, v = self.qkv(x).reshape(b, s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.core(q, k, v).transpose(1, 2).reshape(b, s, c))


class Constant(nn.Module):
    """A core that reads a constant."""

    def __init__(self, function, tensor):
        super().__init__()
        self.function = function
        self.register_buffer("tensor", tensor)

    def forward(self, q, k, v):
        return self.function(q, k, v, self.tensor)


def written(q, k, v, bias=None):
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


HALF = random(13, 13) > 0
HALF[:, 0] = True
SDPA_CORES = {
    "plain": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "3-D": lambda q, k, v: F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2]),
    "mask": Constant(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), random(13, 13)),
    "mask of items": Constant(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), random(2, 1, 1, 13)),
    "bool mask": Constant(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), HALF),
}


@pytest.mark.parametrize("core", SDPA_CORES.values(), ids=SDPA_CORES)
def test_sdpa(core):
    check(Attention(core), (2, 13, 24))


def baddbmm(q, k, v, bias):
    b, h, s, d = q.shape
    q, k, v = (x.reshape(b * h, s, d) for x in (q, k, v))
    return torch.bmm(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=d**-0.5).softmax(-1), v).view(b, h, s, d)


def bmm_with_mask(q, k, v, mask):
    b, h, s, d = q.shape
    q, k, v = (x.reshape(b * h, s, d) for x in (q, k, v))
    scores = (torch.bmm(q, k.transpose(1, 2)) / d**0.5).view(b, h, s, s) + mask
    return torch.bmm(scores.softmax(-1).view(b * h, s, s), v).view(b, h, s, d)


WRITTEN_CORES = {
    "plain": written,
    "scale after": lambda q, k, v: ((q @ k.transpose(-2, -1)) * 0.4).softmax(-1) @ v,
    "division": lambda q, k, v: ((q @ k.transpose(-2, -1)) / 1.7).softmax(-1) @ v,
    "both scaled": lambda q, k, v: ((q * 0.5) @ (k * 0.6).transpose(-2, -1)).softmax(-1) @ v,
    "no scale": lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(dim=3) @ v,
    "keys not transposed": lambda q, k, v: (q @ k[..., :8, :].contiguous().view(2, 3, 8, 8)).softmax(-1) @ v[..., :8, :],
    "bias": Constant(written, random(3, 13, 13)),
    "bias first": Constant(lambda q, k, v, m: (m + q @ k.transpose(-2, -1)).softmax(-1) @ v, random(1, 3, 13, 13)),
    "two addends": Constant(lambda q, k, v, m: (q @ k.transpose(-2, -1) + m + m[:, :1, :1]).softmax(-1) @ v, random(2, 3, 13, 13)),
    "computed bias": lambda q, k, v: written(q, k, v, q.mean(-1, keepdim=True) + k[:, :1, :, 0].unsqueeze(-2)),
    "float softmax": lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1, dtype=torch.float32).to(q.dtype) @ v,
    "bmm": lambda q, k, v: written(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2]),
    "baddbmm": Constant(baddbmm, random(6, 13, 13)),
    "bmm with mask": Constant(bmm_with_mask, random(2, 1, 1, 13)),
    "swin v2": Constant(
        lambda q, k, v, m: (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m + m).softmax(-1) @ v, random(3, 1, 1)
    ),
}


@pytest.mark.parametrize("core", WRITTEN_CORES.values(), ids=WRITTEN_CORES)
def test_written_out(core):
    after = check(Attention(core), (2, 13, 24))
    assert not any("softmax" in op for op in ops(after))


REFUSED_CORES = {
    "users": (lambda q, k, v: (w := (q @ k.transpose(-2, -1)).softmax(-1)) @ v + w.mean(), "users"),
    "scores read": (lambda q, k, v: (w := q @ k.transpose(-2, -1)).softmax(-1) @ v + w.mean(), "users"),
    "relu": (lambda q, k, v: (q @ k.transpose(-2, -1)).relu().softmax(-1) @ v, "relu"),
    "masked_fill": (Constant(lambda q, k, v, m: (q @ k.transpose(-2, -1)).masked_fill(m, -1e4).softmax(-1) @ v, HALF), "between product and softmax"),
    "dimension": (lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-2) @ v, "not the last"),
    "three addends": (
        Constant(lambda q, k, v, m: (q @ k.transpose(-2, -1) + m + m[:1] + m[:, :1] * q.mean()).softmax(-1) @ v, random(13, 13)),
        "addends",
    ),
    "scaled addend": (Constant(lambda q, k, v, m: ((q @ k.transpose(-2, -1) + m) * 0.5).softmax(-1) @ v, random(13, 13)), "scaled"),
    "heads broadcast": (lambda q, k, v: (q @ k[:, :1].transpose(-2, -1)).softmax(-1) @ v, "broadcast"),
    "gqa": (lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True), "broadcast"),
    "gate of keys": (Constant(lambda q, k, v, m: (q @ k.transpose(-2, -1) * m).softmax(-1) @ v, random(13)), "multiplied"),
    "computed mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=q @ k.transpose(-2, -1)), "computed"),
    "hidden row": (
        Constant(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), torch.eye(13, dtype=torch.bool) & HALF),
        "entirely",
    ),
}


@pytest.mark.parametrize(("core", "reason"), REFUSED_CORES.values(), ids=REFUSED_CORES)
def test_refused(core, reason):
    refused(Attention(core), (2, 13, 24), reason=reason)


def test_other_softmaxes_are_no_attention():
    class Pool(nn.Module):
        def forward(self, x):
            return x.mean(-1, keepdim=True).transpose(1, 2).softmax(-1) @ x, x.softmax(-1)

    _, after, count, _ = fused(Pool(), (2, 7, 5))
    assert count == 0
    assert after.meta["rejects"] == []


@pytest.mark.parametrize("core", [written, SDPA_CORES["plain"]])
def test_dynamic_shapes_are_refused(core):
    model = Attention(core)
    arguments = read_arguments([torchkiln.Input(min_shape=(1, 13, 24), opt_shape=(2, 13, 24), max_shape=(4, 13, 24))], None, torch.device("cpu"), 0)
    program = capture(model.eval(), arguments)
    lower(program)
    assert fuse_attention(program.graph_module) == 0
    assert "dynamic" in program.graph_module.meta["rejects"][0][1]


def test_torchvision_multihead_attention():
    after = check(nn.TransformerEncoderLayer(24, 3, 32, batch_first=True), (2, 13, 24))
    assert "aten.scaled_dot_product_attention.default" not in ops(after)


@pytest.mark.parametrize("precision", [None, torch.float16])
@pytest.mark.parametrize("shift", [0, 2])
def test_torchvision_swin_block(shift, precision):
    from torchvision.models.swin_transformer import SwinTransformerBlock

    torch.manual_seed(0)
    block = SwinTransformerBlock(24, 3, [4, 4], [shift, shift])
    after = check(block, (2, 8, 12, 24), precision=precision, tolerance=3e-3 if precision else 2e-5)
    node = next(node for node in after.graph.nodes if node.target is torch.ops.torchkiln.attention.default)
    assert tuple(node.args[3].meta["val"].shape) == (1, 3, 16, 16)
    assert (node.args[4] is not None) == bool(shift)
    if shift:
        assert tuple(node.args[4].meta["val"].shape) == (6, 1, 16, 16)


def test_swin_v2_block():
    from torchvision.models.swin_transformer import SwinTransformerBlockV2

    torch.manual_seed(0)
    check(SwinTransformerBlockV2(24, 3, [4, 4], [2, 2]), (2, 8, 8, 24))


def test_monai_swin_block():
    pytest.importorskip("monai")
    from monai.networks.nets.swin_unetr import BasicLayer

    torch.manual_seed(0)
    layer = BasicLayer(dim=12, depth=4, num_heads=3, window_size=(3, 3, 3), drop_path=[0.0] * 4)
    after = check(layer, (2, 12, 6, 6, 6), count=4)
    masks = [node.args[4] for node in after.graph.nodes if node.target is torch.ops.torchkiln.attention.default]
    assert [mask is not None for mask in masks] == [False, True, False, True]
    assert masks[1].target == masks[3].target  # stored once


@pytest.mark.parametrize("is_fused", [False, True])
def test_timm_attention(is_fused):
    attention = pytest.importorskip("timm.layers.attention").Attention(24, num_heads=3, qkv_bias=True)
    attention.fused_attn = is_fused
    check(attention, (2, 13, 24))


@pytest.mark.parametrize("is_fused", [False, True])
def test_timm_swin_block(is_fused):
    swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(0)
    block = swin.SwinTransformerBlock(24, (8, 8), num_heads=3, window_size=4, shift_size=2)
    block.attn.fused_attn = is_fused
    check(block, (2, 8, 8, 24))
