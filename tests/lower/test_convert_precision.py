import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.pipeline import PASSES

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 5e-3, BRAIN: 4e-2}
both = pytest.mark.parametrize("dtype", [HALF, BRAIN])


class Module(nn.Module):
    def __init__(self, function, **tensors) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return self.function(self, x)


def _lowered(lowering, model, *args, dynamic=False):
    graph_module = lowering.capture_dynamic_batch(model, *args) if dynamic else lowering.capture(model, *args)
    for run in PASSES:
        run(graph_module)
    return graph_module


def _converted(lowering, model, x, dtype, dynamic=False):
    graph_module = _lowered(lowering, model, x, dynamic=dynamic)
    convert_precision(graph_module, dtype)
    return graph_module


def _dtypes(graph_module, op):
    """The dtypes of the results of an operator's calls."""
    values = [v for n in graph_module.graph.nodes if str(n.target) == f"aten.{op}" for v in tree_leaves(n.meta["val"])]
    return {v.dtype for v in values}


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.SiLU(), nn.MaxPool2d(2)
        )
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x):
        return F.softmax(self.head(self.norm(self.body(x)).mean((2, 3))), -1)


@both
def test_convolutions_low_norms_and_softmax_wide(lowering, dtype):
    model = lowering.randomize(ConvNet())
    graph_module = _converted(lowering, model, torch.randn(2, 3, 11, 13), dtype, dynamic=True)
    for op in ("convolution.default", "relu.default", "silu.default", "max_pool2d.default", "linear.default"):
        assert _dtypes(graph_module, op) == {dtype}
    for op in ("group_norm.default", "mean.dim", "softmax.int"):
        assert _dtypes(graph_module, op) == {FLOAT}
    for batch in (1, 3):
        lowering.check_equal(graph_module, model, torch.randn(batch, 3, 11, 13), tolerance=TOLERANCE[dtype])


@both
def test_weights_are_stored_low_once(lowering, dtype):
    model = lowering.randomize(ConvNet())
    before = _lowered(lowering, model, torch.randn(2, 3, 11, 13))
    graph_module = copy.deepcopy(before)
    convert_precision(graph_module, dtype)
    assert {tuple(b.shape) for b in graph_module.buffers() if b.dtype == FLOAT} == {(8,)}  # the group norm's
    assert {b.dtype for b in graph_module.buffers()} == {dtype, FLOAT}
    assert sum(b.numel() for b in graph_module.buffers()) == sum(b.numel() for b in before.buffers())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


@both
def test_transformer(lowering, dtype):
    model = nn.Sequential(Block(), Block()).eval()
    graph_module = _converted(lowering, model, torch.randn(2, 7, 12), dtype, dynamic=True)
    assert _dtypes(graph_module, "scaled_dot_product_attention.default") == {dtype}
    assert _dtypes(graph_module, "add.Tensor") == {dtype}
    assert _dtypes(graph_module, "layer_norm.default") == {FLOAT}
    for batch in (1, 5):
        lowering.check_equal(graph_module, model, torch.randn(batch, 7, 12), tolerance=TOLERANCE[dtype])


@both
def test_casts_are_made_once(lowering, dtype):
    model = Module(lambda m, x: (x @ m.a) + (x @ m.a).softmax(-1) + (x @ m.b).softmax(-1), a=torch.randn(5, 5), b=torch.randn(5, 5))
    graph_module = _converted(lowering, model, torch.randn(3, 5), dtype)
    casts = [n for n in graph_module.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    keys = [(n.args[0], n.kwargs["dtype"]) for n in casts]
    assert len(keys) == len(set(keys))
    assert keys[0][0].op == "placeholder"
    lowering.check_equal(graph_module, model, torch.randn(3, 5), tolerance=TOLERANCE[dtype])


def test_islands_pass_values_without_rounding(lowering):
    """exp(12) overflows fp16; between the exponential and the sum no cast may stand."""
    model = Module(lambda m, x: x.exp().sum(-1).log())
    graph_module = _converted(lowering, model, torch.randn(3, 700), HALF)
    casts = [n for n in graph_module.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    assert casts == []
    lowering.check_equal(graph_module, model, torch.randn(3, 700) + 12, tolerance=1e-6)


OVERFLOWING = {
    "sum": lambda m, x: (x * 100).sum(-1),
    "mean of squares": lambda m, x: x * torch.rsqrt((x * 100).pow(2).mean(-1, keepdim=True) + 1e-6),
    "variance": lambda m, x: (x * 300).var(-1),
    "cumulative sum": lambda m, x: (x.abs() * 100).cumsum(-1) / 1e6,
    "norm": lambda m, x: F.normalize(x * 200, dim=-1),
    "power": lambda m, x: (x * 50).pow(4).log1p(),
    "softmax by hand": lambda m, x: (x + 12).exp() / (x + 12).exp().sum(-1, keepdim=True),
    "reciprocal": lambda m, x: (x * 1e-3).pow(2).add(1e-7).reciprocal().sqrt(),
    "quotient": lambda m, x: (x * 30) / (x * 1e-2 + 0.1).abs().add(1e-3).pow(2).sqrt(),
    "large factor": lambda m, x: x * 3e6 / 1e7,
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_what_would_overflow_fp16_does_not(lowering, name):
    model = Module(OVERFLOWING[name])
    graph_module = _converted(lowering, model, torch.randn(3, 701), HALF)
    x = torch.randn(3, 701)
    assert all(out.isfinite().all() for out in graph_module(x))
    lowering.check_equal(graph_module, model, x, tolerance=5e-3)


def test_small_epsilon_survives_fp16(lowering):
    """An all-zero row divided by its norm clamped to 1e-12 is zero, not NaN."""
    model = Module(lambda m, x: F.normalize(x.relu(), dim=-1, eps=1e-12))
    graph_module = _converted(lowering, model, torch.randn(3, 7), HALF)
    x = torch.randn(3, 7)
    x[1] = 0
    lowering.check_equal(graph_module, model, x, tolerance=2e-3)


def _mask(row_masked_whole, value):
    mask = torch.zeros(6, 6)
    mask[:, 4:] = value
    mask[row_masked_whole] = value
    return mask


MASKED = {
    "added constant": lambda m, x: F.softmax(x @ x.transpose(1, 2) + m.mask, -1) @ x,
    "attention mask": lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=m.mask),
    "fill": lambda m, x: F.softmax((x @ x.transpose(1, 2)).masked_fill(m.mask < 0, -1e9), -1) @ x,
    "where": lambda m, x: F.softmax(torch.where(m.mask < 0, torch.finfo(FLOAT).min, x @ x.transpose(1, 2)), -1) @ x,
    "computed from integers": lambda m, x: F.softmax(x @ x.transpose(1, 2) + (1 - m.keep[: x.shape[0]].float()) * -1e9, -1) @ x,
    "computed from integers, given to attention": lambda m, x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=((1 - m.keep[: x.shape[0]].float()) * torch.finfo(FLOAT).min).expand(-1, 6, -1)
    ),
}


@both
@pytest.mark.parametrize("value", [-1e9, torch.finfo(FLOAT).min])
@pytest.mark.parametrize("name", MASKED)
def test_masked_rows(lowering, name, value, dtype):
    """A row masked whole by a finite number is uniform in the model. In low precision it must be so too, not NaN.

    One exception, documented: fp16 attention kernels add their mask to float32 scores, which its largest number does not swallow.
    Such a row is finite, but not uniform.
    """
    keep = (torch.rand(8, 1, 6) > 0.5).long()
    keep[0] = 0
    model = Module(MASKED[name], mask=_mask(2, value), keep=keep)
    graph_module = _converted(lowering, model, torch.randn(4, 6, 8), dtype, dynamic=True)
    x = torch.randn(3, 6, 8)
    (got,) = graph_module(x)
    assert got.isfinite().all()
    if dtype == HALF and "attention" in name:
        lowering.check_graph(graph_module)
        whole = (slice(None), [0, 1, 3, 4, 5]) if name == "attention mask" else slice(1, None)
        torch.testing.assert_close(got[whole], model(x)[whole], rtol=1e-2, atol=5e-3)
        return
    lowering.check_equal(graph_module, model, x, tolerance=TOLERANCE[dtype])


@both
def test_real_infinities_stay_infinities(lowering, dtype):
    """Rows masked whole with -inf are NaN under softmax and zero under attention, in the model and here."""
    model = Module(
        lambda m, x: (F.softmax(x @ x.transpose(1, 2) + m.mask, -1), F.scaled_dot_product_attention(x, x, x, attn_mask=m.mask)),
        mask=_mask(2, -torch.inf),
    )
    graph_module = _converted(lowering, model, torch.randn(3, 6, 8), dtype)
    lowering.check_equal(graph_module, model, torch.randn(3, 6, 8), tolerance=TOLERANCE[dtype])


def test_mask_computed_from_an_integer_input(lowering):
    """A mask computed at run time and given to attention is clamped at run time."""

    class Masked(nn.Module):
        def forward(self, x, keep):
            mask = (1 - keep[:, None, :].float()) * torch.finfo(FLOAT).min
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask.expand(-1, x.shape[1], -1))

    keep = (torch.rand(3, 6) > 0.5).long()
    keep[1] = 0
    graph_module = _lowered(lowering, Masked(), torch.randn(3, 6, 8), keep, dynamic=True)
    convert_precision(graph_module, BRAIN)
    lowering.check_equal(graph_module, Masked(), torch.randn(3, 6, 8), keep, tolerance=TOLERANCE[BRAIN])


@both
@pytest.mark.parametrize("value", [-1e9, torch.finfo(FLOAT).min])
def test_a_mask_that_the_caller_passes(lowering, value, dtype):
    class Masked(nn.Module):
        def forward(self, x, mask):
            mask = mask[:, None].expand(-1, x.shape[1], -1)
            return F.softmax(x @ x.transpose(1, 2) / 2 + mask, -1) @ x, F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    mask = torch.where(torch.rand(3, 6) > 0.5, 0.0, value)
    mask[1] = value
    graph_module = _lowered(lowering, Masked(), torch.randn(4, 6, 8), torch.zeros(4, 6), dynamic=True)
    convert_precision(graph_module, dtype)
    lowering.check_graph(graph_module)
    x = torch.randn(3, 6, 8)
    by_hand, attended = graph_module(x, mask)
    expected = Masked()(x, mask)
    torch.testing.assert_close(by_hand, expected[0], rtol=5e-2, atol=4e-2)
    assert attended.isfinite().all()
    torch.testing.assert_close(attended[::2], expected[1][::2], rtol=5e-2, atol=4e-2)


def test_an_activation_is_no_mask_because_its_size_reaches_a_softmax(lowering):
    model = Module(lambda m, x: F.softmax((x @ m.w).view(x.shape[0], -1), -1), w=torch.randn(5, 5))
    graph_module = _converted(lowering, model, torch.randn(4, 3, 5), HALF, dynamic=True)
    assert lowering.ops(graph_module)["clamp.default"] == 0
    lowering.check_equal(graph_module, model, torch.randn(3, 3, 5), tolerance=5e-3)


@both
def test_positions_keep_their_digits(lowering, dtype):
    """arange, integers and explicit casts stay float32 until they meet an activation: position 1999 is no bf16 number."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, steps):
            angle = (torch.arange(x.shape[1], dtype=FLOAT) + 1990)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
            phase = steps.float()[:, None, None] * 0.37
            return self.linear(x) + torch.cat([angle.sin(), angle.cos()], -1) + phase.sin()

    model = Positions().eval()
    args = torch.randn(3, 9, 8), torch.tensor([1, 700, 1999])
    graph_module = _lowered(lowering, model, *args)
    convert_precision(graph_module, dtype)
    assert _dtypes(graph_module, "sin.default") == {FLOAT}
    lowering.check_equal(graph_module, model, *args, tolerance=TOLERANCE[dtype])


@both
def test_time_steps_of_a_diffusion_model(lowering, dtype):
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, t):
            angle = t[:, None] * torch.exp(-torch.arange(4) / 2.0)
            return x + self.linear(torch.cat([angle.sin(), angle.cos()], -1))

    model = Timed().eval()
    graph_module = _lowered(lowering, model, torch.randn(2, 8), torch.rand(2) * 1000, dynamic=True)
    convert_precision(graph_module, dtype)
    lowering.check_equal(graph_module, model, torch.randn(3, 8), torch.tensor([999.0, 501.0, 3.0]), tolerance=TOLERANCE[dtype])


def test_a_class_token_does_not_widen_the_activations(lowering):
    """Constants lean nowhere: a concatenation of an expanded constant and an activation is low."""
    model = Module(
        lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x @ m.w], 1) + m.positions,
        token=torch.randn(1, 1, 5),
        w=torch.randn(5, 5),
        positions=torch.randn(1, 8, 5),
    )
    graph_module = _converted(lowering, model, torch.randn(2, 7, 5), HALF, dynamic=True)
    assert _dtypes(graph_module, "cat.default") == _dtypes(graph_module, "add.Tensor") == {HALF}
    lowering.check_equal(graph_module, model, torch.randn(3, 7, 5), tolerance=5e-3)


class OtherDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.precise = nn.Linear(5, 5).double()
        self.single = nn.Linear(5, 5)

    def forward(self, x, ids):
        table = torch.view_as_complex(torch.stack([x, x], -1))
        return self.precise(x.double()), ids * 2, ids > 1, table.abs(), self.single(x), x.argmax(-1)


@both
def test_other_dtypes_are_left_alone(lowering, dtype):
    model, args = OtherDtypes().eval(), (torch.randn(3, 5), torch.arange(4))
    graph_module = _lowered(lowering, model, *args)
    convert_precision(graph_module, dtype)
    outputs = graph_module(*args)
    assert [o.dtype for o in outputs] == [torch.float64, torch.int64, torch.bool, FLOAT, FLOAT, torch.int64]
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], model(*args)[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(outputs[3], model(*args)[3], rtol=1e-2, atol=0)
    assert _dtypes(graph_module, "linear.default") == {torch.float64, dtype}
    lowering.check_graph(graph_module)


def test_a_half_model_is_left_alone(lowering):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(BRAIN)
    x = torch.randn(3, 5, dtype=BRAIN)
    graph_module = _lowered(lowering, model, x)
    before = lowering.ops(graph_module)
    assert convert_precision(graph_module, HALF) == 0
    assert lowering.ops(graph_module) == before
    lowering.check_equal(graph_module, model, x, tolerance=0)


@both
def test_several_results_and_integer_results(lowering, dtype):
    model = Module(
        lambda m, x: (x @ m.w).topk(3)[0].sum() + torch.stack((x @ m.w).split((2, 3), -1)[0].max(0)[0].unbind()).sum(), w=torch.randn(5, 5)
    )
    graph_module = _converted(lowering, model, torch.randn(4, 5), dtype)
    lowering.check_equal(graph_module, model, torch.randn(4, 5), tolerance=TOLERANCE[dtype])


@both
def test_a_stated_dtype_is_kept(lowering, dtype):
    model = Module(lambda m, x: F.softmax(x @ m.w, -1, dtype=FLOAT) + torch.full_like(x, 2.0, dtype=FLOAT), w=torch.randn(5, 5))
    graph_module = _converted(lowering, model, torch.randn(4, 5), dtype)
    assert _dtypes(graph_module, "softmax.int") == _dtypes(graph_module, "full_like.default") | {FLOAT} == {FLOAT}
    lowering.check_equal(graph_module, model, torch.randn(4, 5), tolerance=TOLERANCE[dtype])


def test_refuses_other_precisions(lowering):
    with pytest.raises(ValueError, match="float64"):
        convert_precision(lowering.capture(nn.ReLU(), torch.randn(2)), torch.float64)


def test_branches_of_higher_order_operators_stay_float32(lowering):
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x.exp(), lambda x: x.sin(), (x @ x,)) @ x

    graph_module = _lowered(lowering, Branch(), torch.randn(4, 4))
    assert convert_precision(graph_module, BRAIN) >= 2
    for sign in (1, -1):
        x = torch.rand(4, 4) * sign
        with torch.no_grad():
            torch.testing.assert_close(graph_module(x)[0], Branch()(x), rtol=5e-2, atol=5e-2)
