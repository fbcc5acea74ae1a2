"""Grouping of pointwise nodes, and the layouts of generated kernels."""

from __future__ import annotations

import random

import pytest
import torch

from torchkiln.backends.cuda.pointwise.expressions import pointwise_reject
from torchkiln.backends.cuda.pointwise.generate import pointwise_configs, pointwise_recipe
from torchkiln.backends.cuda.pointwise.regions import describe, find_regions, region_key, reorder
from torchkiln.backends.cuda.recipe import Kernel, Launch, Recipe, TensorSpec

from .interpret import interpret
from .pointwise_cases import agree, regions_of, run_function, run_region, trace

aten = torch.ops.aten
FLAT = {"form": "flat", "BLOCK": 64, "num_warps": 1}
TILE = {"form": "tile", "BLOCK_X": 16, "BLOCK_Y": 8, "num_warps": 1}


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def spec(tensor):
    return TensorSpec.of(tensor)


@pytest.mark.parametrize("other", [(7,), (5, 1, 1), (3, 1, 1, 1), (1, 5, 1, 7), (6, 1), (), (1, 1, 1, 1), (3, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_broadcast(other, layout):
    x = randn(3, 5, 6, 7).contiguous(memory_format=layout)
    agree(lambda x, y: torch.relu(x * y + 1), [x, randn(*other)], FLAT)
    agree(lambda x, y: y - x, [x, randn(*other)])


def strided(name):
    return {
        "sliced": randn(6, 10, 14)[1::2, :, ::2],
        "permuted": randn(14, 3, 10).permute(1, 2, 0)[:, :, ::2],
        "expanded": randn(10, 1).expand(3, 10, 7),
        "scalar": randn().expand(3, 10, 7),
        "reversed_order": randn(7, 10, 3).permute(2, 1, 0),
        "contiguous": randn(3, 10, 7),
    }[name]


@pytest.mark.parametrize("first", ["sliced", "permuted", "expanded", "scalar", "reversed_order", "contiguous"])
@pytest.mark.parametrize("second", ["sliced", "permuted", "reversed_order", "contiguous"])
@pytest.mark.parametrize("form", ["flat", "tile"])
def test_strides(first, second, form):
    """Inputs and outputs of any strides; a tile where there is a transposed input."""
    region = regions_of(lambda x, y: x + 2 * y, [randn(3, 10, 7), randn(3, 10, 7)])[0]
    x, y = strided(first), strided(second)
    for out in (torch.full((3, 10, 7), float("nan")), torch.full((7, 3, 20), float("nan")).permute(1, 2, 0)[:, ::2]):
        given = dict(zip([n.name for n in region.inputs], [x, y] if region.inputs[0].name.startswith("arg0") else [y, x], strict=True))
        configs = pointwise_configs(region, [spec(t) for t in given.values()], [spec(out)], 5)
        if form == "tile" and all(c["form"] == "flat" for c in configs):
            continue
        run_region(region, list(given.values()), [out], FLAT if form == "flat" else TILE)
        expected = given["arg0_1"] + 2 * given["arg1_1"]
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("shape", [(2, 3, 5, 11), (1, 3, 32, 40), (2, 33, 7, 7)], ids=str)
def test_layout_change(shape):
    """NCHW float32 to channels_last float16, in every configuration."""
    x = randn(*shape)
    region = regions_of(lambda x: (x - 0.5).half(), [x])[0]
    out = torch.full(shape, float("nan"), dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    configs = pointwise_configs(region, [spec(x)], [spec(out)], 5)
    assert configs[0]["form"] == ("flat" if shape[1] < 8 else "tile")
    assert {c["form"] for c in configs} == {"flat", "tile"}
    for config in configs:
        out.fill_(float("nan"))
        run_region(region, [x], [out], config)
        torch.testing.assert_close(out, (x - 0.5).half())


def test_window_partition():
    x = randn(1, 21, 28, 24)
    window = x.view(1, 3, 7, 4, 7, 24).permute(0, 1, 3, 2, 4, 5)
    region = regions_of(lambda x: x.clone(), [window])[0]
    out = torch.empty(window.shape)
    configs = pointwise_configs(region, [spec(window)], [spec(out)], 3)
    assert all(c["form"] == "flat" for c in configs)  # the rows stay whole
    for config in configs:
        out.fill_(float("nan"))
        run_region(region, [window], [out], config)
        assert torch.equal(out, window)


def test_same_layout_needs_no_division():
    x = torch.empty(2, 8, 5, 5, device="meta").to(memory_format=torch.channels_last)
    region = regions_of(torch.add, [randn(2, 8, 5, 5), randn(2, 8, 5, 5)])[0]
    launch = pointwise_recipe(region, [spec(x), spec(x)], [spec(x)], 90, FLAT).launches[0]
    assert isinstance(launch, Launch)
    assert "%" not in launch.kernel.source
    assert launch.kernel.constants[-1] == ("PDL", True)


def test_offsets():
    """A slice of the output's buffer, as cat writes it, and an input that starts inside its buffer."""
    buffer, target = randn(40), torch.zeros(4, 10)
    region = regions_of(lambda x: x * 2, [randn(4, 3)])[0]
    specs = [TensorSpec((4, 3), (5, 1), torch.float32)], [TensorSpec((4, 3), (10, 1), torch.float32)]
    recipe = pointwise_recipe(region, *specs, 80, FLAT, {"x0": 7, "y0": 2})
    interpret(recipe, {"x0": buffer, "y0": target})
    expected = torch.zeros(4, 10)
    expected[:, 2:5] = buffer.as_strided((4, 3), (5, 1), 7) * 2
    assert torch.equal(target, expected)


def test_no_dimension_and_no_element():
    agree(lambda x: x * 2 + 1, [randn()])
    region = regions_of(lambda x: x * 2, [randn(0, 3)])[0]
    assert pointwise_recipe(region, [spec(randn(0, 3))], [spec(randn(0, 3))], 80, FLAT) == Recipe(())


def test_large_tensors_have_64_bit_offsets():
    region = regions_of(lambda x: x * 2, [torch.empty(2**16, 2**15, dtype=torch.float16, device="meta")])[0]
    rows = TensorSpec(region.shape, (2**15, 1), torch.float16)
    assert "int64" in pointwise_recipe(region, [rows], [rows], 90, FLAT).launches[0].kernel.source
    sparse = TensorSpec((8, 8), (2**29, 1), torch.float16)
    region = regions_of(lambda x: x * 2, [randn(8, 8)])[0]
    dense = TensorSpec.contiguous((8, 8), torch.float16)
    assert "int64" in pointwise_recipe(region, [sparse], [dense], 90, FLAT).launches[0].kernel.source
    assert "int64" not in pointwise_recipe(region, [dense], [dense], 90, FLAT).launches[0].kernel.source


def test_several_outputs():
    def function(x, y):
        a = x + y
        b = a * 2
        return a, b.sigmoid(), (b > 0.1)

    assert len(regions_of(function, [randn(3, 5), randn(5)])) == 1
    agree(function, [randn(3, 5), randn(5)])
    agree(lambda x: (x + 1, torch.flip(x + 1, [0]) * (x + 1)), [randn(6, 5)])


def test_key_and_description():
    a = regions_of(lambda x, y: torch.relu(x * 2 + y), [randn(3, 5), randn(5)])[0]
    b = regions_of(lambda p, q: torch.relu(p * 2 + q), [randn(8, 3, 5), randn(5)])[0]
    c = regions_of(lambda p, q: torch.relu(p * 3 + q), [randn(3, 5), randn(5)])[0]
    d = regions_of(lambda p, q: torch.relu(p * 2 + q), [randn(3, 5).half(), randn(5)])[0]
    assert region_key(a) == region_key(b)
    assert len({region_key(r) for r in (a, c, d)}) == 3
    assert describe(a) == "mul+add+relu"


def test_a_path_through_other_nodes_splits_a_region():
    """x + 1 -> sum -> (x + 1) * sum: one kernel cannot do both sides of the sum."""
    regions = regions_of(lambda x: (x + 1) * (x + 1).sum(), [randn(3, 5)])
    graph_regions = regions_of(lambda x: (y := x + 1) * y.sum(), [randn(3, 5)])
    assert sorted(len(r.nodes) for r in graph_regions) == [1, 1]
    assert max(len(r.nodes) for r in regions) == 2  # the one that is not summed
    agree(lambda x: (y := x + 1) * y.sum() + y, [randn(3, 5)])


def test_no_cycle_between_regions():
    """Two regions that feed each other: a -> sum -> d, c -> sum -> b; {a, b} and {c, d} may not both be merged."""

    def function(x, y):
        a, c = x + 1, y * 2
        b, d = a - c.sum(), c - a.sum()
        return b.relu(), d.sigmoid()

    agree(function, [randn(3, 5), randn(3, 5)])

    def longer(x, y):
        a, c = x + 1, y * 2
        for _ in range(4):
            a, c = (a - c.sum(0)).relu() + a, c.sigmoid() * a.cumsum(1)
        return a, c

    agree(longer, [randn(3, 5), randn(3, 5)])


def test_random_graphs_stay_acyclic():
    chance = random.Random(0)

    def function(*inputs):
        values = list(inputs)
        for _ in range(40):
            a, b = chance.choice(values), chance.choice(values)
            values.append([lambda: a + b, lambda: torch.sigmoid(a), lambda: a.cumsum(0) * 0.3, lambda: torch.maximum(a, b)][chance.randrange(4)]())  # noqa: B023
        return values[-3:]

    for _ in range(5):
        graph = trace(function, [randn(2, 3), randn(2, 3)])
        regions = find_regions(graph, lambda node: False)
        reorder(graph, regions)  # lint() checks the order
        order = {n: i for i, n in enumerate(graph.nodes)}
        for region in regions:
            assert len(region.inputs) <= 12
            assert len(region.outputs) <= 4
            positions = [order[n] for n in region.nodes]
            assert positions == list(range(positions[0], positions[0] + len(positions)))


def test_broadcast_operand_joins():
    """A gate is computed again for every element, unless somebody else reads it."""

    def function(x, g):
        return x * torch.sigmoid(g)

    inputs = [randn(2, 5, 4, 3), randn(2, 5, 1, 1)]
    assert [describe(r) for r in regions_of(function, inputs)] == ["sigmoid+mul"]
    agree(function, inputs)
    assert len(regions_of(lambda x, g: (x * (s := torch.sigmoid(g)), s), inputs)) == 2
    agree(lambda x, g: (x * (s := torch.sigmoid(g)), s), inputs)
    agree(lambda x, g: (x * (s := torch.sigmoid(g)), x + s), inputs)


def test_constants_are_written_into_the_kernel():
    def function(x):
        return torch.where(x > 0, x, torch.full((), -2.0)) + torch.ones(3, 5)

    region = regions_of(function, [randn(3, 5)])[0]
    assert len(region.inputs) == 1
    agree(function, [randn(3, 5)])
    agree(lambda x: (torch.full((3, 5), 7, dtype=torch.int64), x + 1), [randn(3, 5)])
    agree(lambda x: torch.full((3, 5), float("-inf"), dtype=torch.float16).cumsum(0) + x, [randn(3, 5)])


def test_taken_nodes_are_left_alone():
    graph = trace(lambda x: torch.relu(x + 1) * 2, [randn(3, 5)])
    regions = find_regions(graph, lambda node: node.target is aten.relu.default)
    assert [describe(r) for r in regions] == ["add", "mul"]


def test_limits():
    def many(*inputs):
        return sum(inputs[1:], inputs[0])

    regions = regions_of(many, [randn(3, 5) for _ in range(20)])
    assert [len(r.inputs) for r in regions] == [12, 10] or all(len(r.inputs) <= 12 for r in regions)
    agree(many, [randn(3, 5) for _ in range(20)])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.sum(), "not pointwise"),
        (lambda x: x.pow(2.7), "exponent"),
        (lambda x: torch.fmod(x, 0.3), "float32"),
        (lambda x: torch.div(x, 0.3, rounding_mode="floor"), "float32"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x.view(15), "not pointwise"),
    ],
)
def test_rejects(function, reason):
    node = list(trace(function, [randn(3, 5)]).nodes)[1]
    assert reason in pointwise_reject(node)


def test_run_function_runs_kernels():
    """The harness itself: an output that no kernel writes stays unset."""
    assert run_function(lambda x: x + 1, [randn(3)])[0].isfinite().all()


def compile_kernels(capability: int) -> list[Kernel]:
    """Kernels that must compile for every architecture."""
    half, long = torch.float16, torch.int64
    cases = [
        (lambda x, b: torch.nn.functional.gelu(x.half() * 2 + b), [randn(2, 24, 7, 7), randn(7, dtype=half)]),
        (lambda x: torch.nn.functional.elu(torch.tanh(x)) + torch.nn.functional.softplus(x).erf().round(), [randn(3, 40)]),
        (lambda x: torch.nn.functional.mish(x.double()).log1p().expm1().sqrt() / 3, [randn(3, 40)]),
        (lambda x, y: torch.where(x > y, torch.remainder(x, y), torch.div(x, y, rounding_mode="floor")), [randn(9).to(long), randn(9).to(long)]),
        (lambda x, y: (~(x & y) | (x > y), x.half() * 0.3), [randn(9) > 0, randn(9) > 0]),
        (
            lambda x: x.cos().bfloat16().maximum(x.bfloat16()).clamp(-1, 1),
            [randn()],
        ),
        (lambda x: torch.full((3, 5), 1.5, dtype=half).sum() + x, [randn(3)]),
        (lambda x, s: x * torch.sigmoid(s) + x.square().sqrt() / x, [randn(2, 48, 8, 8, dtype=half), randn(2, 48, 1, 1, dtype=half)]),
        (lambda x, w: aten.prelu.default(x, w), [randn(2, 48, 8, 8, dtype=half), randn(48, dtype=half)]),
    ]
    kernels = []
    for function, inputs in cases:
        for region in regions_of(function, inputs):
            specs = [spec(n.meta["val"]) for n in region.inputs], [spec(n.meta["val"]) for n in region.outputs]
            for config in pointwise_configs(region, *specs, 1):
                kernels += [launch.kernel for launch in pointwise_recipe(region, *specs, capability, config).launches]
    region = regions_of(lambda x, b: torch.sigmoid(x - 0.5).half() * b, [randn(2, 3, 64, 80), randn(3, 1, 1)])[0]
    x, b, y = randn(2, 3, 64, 80), randn(3, 1, 1), randn(2, 3, 64, 80).half().contiguous(memory_format=torch.channels_last)
    for config in pointwise_configs(region, [spec(x), spec(b)], [spec(y)], 5):
        kernels += [launch.kernel for launch in pointwise_recipe(region, [spec(x), spec(b)], [spec(y)], capability, config).launches]
    return kernels
