"""Nearest and linear resampling against torch, on the CPU: every operator, overload and way to give sizes, up and down, in any layout."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.interpret import check, interpret
from tests.backends.cuda.run_plan import build_plan, run
from torch import nn

from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.tactics.upsample import Upsample

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3, FLOAT: 1e-6}
OPS = {
    "nearest": ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    "exact": ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    "linear": ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
}
#: Sizes before, sizes after, for one, two and three dimensions: up, down, both, by ratios that do not divide, to and from one.
SIZES = {
    1: [((9,), (23,)), ((23,), (9,)), ((1,), (7,)), ((6,), (1,))],
    2: [((4, 7), (9, 16)), ((9, 16), (4, 7)), ((3, 9), (6, 5)), ((1, 1), (3, 5)), ((9, 1), (1, 4)), ((4, 6), (4, 13))],
    3: [((2, 3, 4), (3, 5, 7)), ((4, 5, 3), (3, 2, 5)), ((1, 3, 2), (2, 4, 3))],
}


def spec(shape, dtype, last=False):
    return TensorSpec(tuple(shape), channels_last_strides(shape), dtype) if last else TensorSpec.contiguous(shape, dtype)


def resize(kind, x, size=None, scales=None, *, corners=False, overload="vec", last=False, dtype=None, capability=80, strides=None):
    """A problem of resampling ``x`` to ``size`` or by ``scales``, one for each dimension (for the default overload both may be given)."""
    spatial = len(x.shape) - 2
    name = OPS[kind][spatial - 1]
    attributes = {"align_corners": corners} if kind == "linear" else {}
    if overload == "vec":
        attributes |= {"output_size": None if size is None else list(size), "scale_factors": None if scales is None else list(scales)}
    else:
        names = ("scales",) if spatial == 1 else ("scales_d", "scales_h", "scales_w")[3 - spatial :]
        attributes |= {"output_size": list(size)} | dict(zip(names, scales or [None] * spatial, strict=True))
    target = getattr(getattr(torch.ops.aten, name), overload)
    arguments = [attributes[a.name] for a in target._schema.arguments[1:]]
    shape = tuple(target(torch.empty(x.shape, device="meta"), *arguments).shape)
    y = spec(shape, dtype or x.dtype, last) if strides is None else TensorSpec(shape, strides, dtype or x.dtype)
    return Problem(f"aten.{name}.{overload}", (x,), (y,), attributes, capability=capability)


def every(problem, tolerance, level=0):
    assert Upsample().reject(problem) == ""
    configs = Upsample().configs(problem, level)
    for config in configs:
        check(Upsample(), problem, config, tolerance)
    return configs


def result(problem, x):
    """What the first guess gives for ``x``."""
    y = torch.full(problem.outputs[0].shape, float("nan"))
    interpret(Upsample().recipe(problem, Upsample().configs(problem, 0)[0]), {"x0": x, "y0": y})
    return y


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kind", "corners"), [("nearest", False), ("exact", False), ("linear", False), ("linear", True)])
@pytest.mark.parametrize(("before", "after"), [pair for pairs in SIZES.values() for pair in pairs])
def test_sizes(before, after, kind, corners, last):
    overload = "default" if last else "vec"
    every(resize(kind, spec((2, 2, *before), FLOAT, last), after, corners=corners, last=last, overload=overload), 1e-6)


@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.7, 2.3), (0.6, 0.45), (1.3, 0.7)])
@pytest.mark.parametrize(("kind", "corners"), [("nearest", False), ("exact", False), ("linear", False), ("linear", True)])
def test_scales(kind, corners, scales):
    """Factors given count, and not the ratio of the sizes."""
    x = spec((1, 3, 7, 11), FLOAT, True)
    every(resize(kind, x, None, scales, corners=corners, last=True), 1e-6)
    size = [int(before * scale) for before, scale in zip((7, 11), scales, strict=True)]
    every(resize(kind, x, size, scales, corners=corners, last=True, overload="default"), 1e-6)
    every(resize(kind, spec((1, 3, 17), FLOAT), None, scales[:1], corners=corners), 1e-6)
    every(resize(kind, spec((1, 1, 4, 5, 3), FLOAT), None, (scales[0], *scales), corners=corners), 1e-6)


@pytest.mark.parametrize("kind", ["nearest", "exact", "linear"])
@pytest.mark.parametrize("written", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("read", [HALF, BFLOAT, FLOAT])
def test_dtypes(read, written, kind):
    """The result may be written in another float dtype than the input's."""
    for last in (False, True):
        every(resize(kind, spec((1, 6, 3, 7), read, last), (5, 13), last=last, dtype=written), TOLERANCE[written])


@pytest.mark.parametrize("channels", [1, 8, 21])
@pytest.mark.parametrize(("read_last", "write_last"), [(False, False), (False, True), (True, False), (True, True)])
def test_layouts(read_last, write_last, channels):
    x = spec((1, channels, 5, 6), HALF, read_last)
    every(resize("linear", x, (7, 17), last=write_last), 1e-3)


def test_strides_with_gaps():
    x = TensorSpec((2, 5, 4, 6), (900, 1, 170, 7), HALF)
    every(resize("linear", x, (9, 11), strides=(3000, 1, 300, 20)), 1e-3)
    every(resize("linear", x, (9, 11), strides=(9000, 1500, 150, 3)), 1e-3)
    every(resize("nearest", TensorSpec((2, 5, 4, 6), (1, 2, 60, 10), FLOAT), (9, 11), strides=(1, 2, 40, 500)), 1e-6)


@pytest.mark.parametrize("write_last", [False, True])
@pytest.mark.parametrize(("before", "after"), [((2, 4), (5, 11)), ((7, 9), (3, 4))])
def test_every_config(before, after, write_last):
    configs = every(resize("linear", spec((1, 18, *before), FLOAT, True), after, last=write_last), 1e-6, level=5)
    assert len({(config["flat"], config["channels"] > 1, config["rows"] > 1) for config in configs}) == 4


@pytest.mark.parametrize("scale", [1.1, 1.37, 2.0, 2.9, 0.31, 0.77, 7.3])
def test_nearest_takes_what_torch_takes(scale):
    """Bit for bit, over a row long enough for the rounding of the factor to matter."""
    x = torch.randn(1, 1, 1, 1500)
    for kind, mode in (("nearest", "nearest"), ("exact", "nearest-exact")):
        expected = F.interpolate(x, scale_factor=(1.0, scale), mode=mode)
        assert torch.equal(result(resize(kind, TensorSpec.of(x), None, (1.0, scale)), x), expected)


@pytest.mark.parametrize(("kind", "mode"), [("nearest", "nearest"), ("exact", "nearest-exact"), ("linear", "")])
def test_factors_that_change_no_size(kind, mode):
    for spatial, own in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        x = torch.randn(1, 2, *[3] * spatial)
        scales = (1.2,) * spatial
        assert torch.equal(result(resize(kind, TensorSpec.of(x), None, scales), x), F.interpolate(x, scale_factor=scales, mode=mode or own))
    x = torch.randn(1, 2, 3, 4)
    if kind != "linear":
        assert torch.equal(result(resize(kind, TensorSpec.of(x), None, (1.2, 2.0)), x), F.interpolate(x, scale_factor=(1.2, 2.0), mode=mode))


def test_a_factor_counts_where_another_size_changes():
    """On the GPU; torch on the CPU copies along this axis. Position 1 of 3 is (1 + 0.5) / 1.2 - 0.5 = 0.75."""
    x = torch.arange(3.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 4).contiguous()
    y = result(resize("linear", TensorSpec.of(x), None, (1.2, 2.0)), x)
    torch.testing.assert_close(y[0, 0], torch.tensor([0.0, 0.75, 2.5 / 1.2 - 0.5]).reshape(3, 1).expand(3, 8))


def test_nan_spreads_as_far_as_in_torch():
    x = torch.randn(1, 2, 5, 6)
    x[0, 1, 2, 3] = float("nan")
    y = result(resize("linear", TensorSpec.of(x), (13, 11)), x)
    torch.testing.assert_close(y, F.interpolate(x, size=(13, 11), mode="bilinear"), equal_nan=True)


def test_rejects():
    assert Upsample().reject(resize("nearest", spec((1, 3, 8, 8), torch.uint8), (9, 9))) == "dtype torch.uint8"
    assert Upsample().reject(resize("nearest", spec((1, 3, 65536, 16384), HALF), (9, 9))) == "a tensor of 2**31 elements or more"


class Resized(nn.Module):
    """Resized between two convolutions, joined with what was not, and at the end."""

    def __init__(self, between, last):
        super().__init__()
        self.a, self.b, self.between, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), between, last

    def forward(self, x):
        y = F.relu(self.a(x))
        z = F.interpolate(F.interpolate(y, **self.between), size=y.shape[2:], mode="nearest")
        return F.interpolate(self.b(torch.cat([y, z], 1)[:, 4:12]), **self.last)


MODELS = {
    "bilinear": ({"scale_factor": 0.5, "mode": "bilinear"}, {"size": (31, 26), "mode": "bilinear"}),
    "corners": ({"size": (3, 4), "mode": "bilinear", "align_corners": True}, {"scale_factor": 2.3, "mode": "bilinear", "align_corners": True}),
    "nearest": ({"scale_factor": 1.7}, {"scale_factor": (2, 3)}),
}


@pytest.mark.parametrize("precision", [None, HALF])
@pytest.mark.parametrize("name", MODELS)
def test_plans(name, precision):
    torch.manual_seed(0)
    shape = (2, 3, 9, 7)
    before = lowered(Resized(*MODELS[name]), [shape], precision)
    graph_module = specialize(copy.deepcopy(before), [shape])
    fuse(graph_module)
    plan, loaded, operations = build_plan(graph_module)
    assert [info.tactic for info in plan.infos if "upsample" in info.op] == ["upsample"] * 3
    half, joined, last = [o for o in operations if "upsample" in o.problem.op]
    assert half.problem.outputs[0].is_channels_last
    assert (joined.outputs[0].offset, joined.outputs[0].spec.strides[1:]) == (8, (1, 7 * 16, 16))  # where the concatenation has it
    assert last.problem.outputs[0] == TensorSpec.contiguous(last.problem.outputs[0].shape, FLOAT)
    x = torch.randn(shape)
    with torch.no_grad():
        (expected,) = before(x)
    (got,) = run(loaded, [x])
    assert (got.shape, got.dtype, got.is_contiguous()) == (expected.shape, expected.dtype, True)
    assert (got - expected).norm() / expected.norm() <= (1e-5 if precision is None else 2e-3)


def _cases():
    problems = [
        resize("linear", spec((1, 21, 64, 64), HALF, True), (512, 512), last=True, capability=90),
        resize("linear", spec((1, 21, 64, 64), HALF, True), (512, 512), dtype=FLOAT, capability=90),
        resize("nearest", spec((8, 256, 20, 20), HALF, True), None, (2.0, 2.0), last=True, capability=90),
        resize("linear", spec((1, 256, 1, 1), HALF, True), (64, 64), last=True, capability=90),
        resize("linear", spec((1, 3, 640, 480), FLOAT), (224, 224), corners=True, capability=90),
        resize("linear", spec((1, 32, 24, 24, 24), BFLOAT, True), None, (2.0, 2.0, 2.0), last=True, capability=90),
        resize("exact", spec((4, 64, 100), HALF), None, (1.7,), capability=90),
    ]
    return [(Upsample(), problem, Upsample().configs(problem, 0)[0]) for problem in problems]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
