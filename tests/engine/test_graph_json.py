"""graph_json: a graph read back computes what the graph that was written computes; what a file may not hold is refused."""

from __future__ import annotations

import cmath
import json
import operator

import pytest
import torch
from torch.fx import Graph

from torchkiln.engine.graph_json import decode_graph, encode_graph
from torchkiln.engine.op_table import find_target, target_name
from torchkiln.engine.strict_json import dump_json, load_json
from torchkiln.errors import CompilerBug, CorruptEngineFile, TargetMismatch, UserError

from .tiny_engine import CPU, aten, graph_module

TINY = torch.library.Library("kilntest", "DEF")
TINY.define("twice(Tensor x, str note='') -> Tensor")
TINY.define("read_rows(Tensor x, str file_name) -> Tensor")
TINY.impl("twice", lambda x, note="": x * 2, "CompositeExplicitAutograd")
TINY.impl("read_rows", lambda x, file_name: x, "CompositeExplicitAutograd")


def round_trip(module, device=CPU):
    encoded, tensors = encode_graph(module, device)
    stored = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return decode_graph(load_json(dump_json(encoded, "test"), "test"), stored, device)


def exported(model, *inputs, dynamic_shapes=None):
    """The graph of an exported model, in the form of program.py."""
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic_shapes).run_decompositions()
    module = program.module()
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            module.graph.erase_node(node)
    graph = Graph()
    output = graph.graph_copy(module.graph, {})
    graph.output(tuple(output) if isinstance(output, (tuple, list)) else (output,))
    return torch.fx.GraphModule(module, graph)


def assert_same(module, *inputs):
    with torch.no_grad():
        expected, got = module(*inputs), round_trip(module)(*inputs)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=0, equal_nan=True)
        if isinstance(e, torch.Tensor):
            assert g.stride() == e.stride()


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
        self.norm = torch.nn.LayerNorm(5)
        self.linear = torch.nn.Linear(5, 7, dtype=torch.float64)

    def forward(self, x):
        y = torch.nn.functional.gelu(self.conv(x)).mean((2, 3))
        mask = torch.full((x.shape[0], 5), float("-inf")).tril(1)
        return self.linear(self.norm(y).double()), mask.softmax(-1), x.shape[0] * 2, torch.nonzero(x > 1.0)


@pytest.mark.parametrize("batch", [2, 5, 7])
def test_exported_network(batch):
    torch.manual_seed(batch)
    dynamic = ({0: torch.export.Dim.DYNAMIC(min=2, max=9)},)
    assert_same(exported(Net(), torch.randn(3, 3, 13, 11), dynamic_shapes=dynamic), torch.randn(batch, 3, 13, 11))


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.randn(4))

    def forward(self, x):
        def halve(y):
            return torch.cond(y.max() > 10, lambda z: z / 4, lambda z: z / 2, (y,))

        return torch.cond(x.sum() > 0, halve, lambda y: y * self.scale, (x,))


@pytest.mark.parametrize("factor", [1.0, -1.0, 100.0])
def test_nested_graphs(factor):
    assert_same(exported(Branching(), torch.randn(3, 4)), torch.rand(3, 4) * factor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5, 7, 2).to(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(6, 4)[::2],
        torch.randn(1, 5).expand(3, 5),
        torch.randn(3, 4, dtype=torch.complex128),
        torch.randn(3, 4, dtype=torch.complex64).t(),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.randint(0, 9, (5,), dtype=torch.int16),
        torch.tensor([True, False]),
        torch.randn(5).bfloat16(),
    ],
    ids=["channels_last", "transposed", "strided", "expanded", "complex128", "complex", "conjugate", "scalar", "empty", "int16", "bool", "bfloat16"],
)
def test_tensors(tensor):
    module = graph_module({"w": tensor}, lambda graph, n: [graph.call_function(aten.alias.default, (n["w"],))], inputs=())
    (got,) = round_trip(module)()
    assert got.dtype == tensor.dtype
    assert torch.equal(got, tensor.resolve_conj())
    if tensor.is_contiguous() or tensor.dim() == 4:
        assert got.stride() == tensor.stride()


def test_a_tensor_read_under_two_names_is_stored_once():
    shared = torch.randn(5)
    module = graph_module({"a": shared, "b": shared}, lambda graph, n: [n["a"], n["b"]], inputs=())
    assert len(encode_graph(module, CPU)[1]) == 1
    assert all(torch.equal(value, shared) for value in round_trip(module)())


ARGUMENTS = [
    0,
    -(2**63),
    2**63,
    True,
    None,
    1.5,
    float("inf"),
    -float("inf"),
    complex(1, -2),
    complex(0, float("inf")),
    "text with 'quotes' and {braces}",
    [1, [2.5, None]],
    (1, (2, [3])),
    slice(None, 4, 2),
    torch.float8_e4m3fn,
    torch.bool,
    torch.strided,
    torch.sparse_coo,
    torch.channels_last_3d,
    torch.preserve_format,
    torch.device("cuda:3"),
    aten.add.Tensor,
]


@pytest.mark.parametrize("argument", ARGUMENTS, ids=map(repr, ARGUMENTS))
def test_arguments(argument):
    module = graph_module({}, lambda graph, n: [graph.call_function(operator.add, (n["x"], argument))])
    node = next(n for n in round_trip(module).graph.nodes if n.op == "call_function")
    assert node.args[1] == argument
    assert type(node.args[1]) is type(argument) or isinstance(argument, (list, tuple))


def test_not_a_number():
    module = graph_module({}, lambda graph, n: [graph.call_function(operator.add, (n["x"], complex(float("nan"), 1)))])
    assert cmath.isnan(next(n for n in round_trip(module).graph.nodes if n.op == "call_function").args[1])


@pytest.mark.parametrize("argument", [object(), {1, 2}, torch.randn(2), 2**80, print, b"bytes"], ids=lambda a: type(a).__name__)
def test_arguments_that_are_not_data(argument):
    graph = Graph()
    node = graph.call_function(operator.add, (graph.placeholder("x"), 1))
    graph.output((node,))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    node.args = (node.args[0], argument)
    with pytest.raises(UserError, match="node add"):
        encode_graph(module, CPU)


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", "meta"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), ("cuda", "meta")])
def test_devices_follow_the_engine(device, expected):
    """An engine built for cuda:0 makes its tensors on the device it is loaded on; a device that is another than the engine's stays."""
    module = graph_module({}, lambda graph, n: [graph.call_function(aten.zeros.default, ([2],), {"device": torch.device(device)})], inputs=())
    encoded, tensors = encode_graph(module, torch.device("cuda:0"))
    loaded = decode_graph(encoded, tensors, torch.device("meta"))
    assert next(n for n in loaded.graph.nodes if n.op == "call_function").kwargs["device"] == torch.device(expected)


def test_tensors_follow_the_engine():
    module = graph_module({"w": torch.randn(3)}, lambda graph, n: [n["w"]], inputs=())
    encoded, tensors = encode_graph(module, CPU)
    assert decode_graph(encoded, tensors, torch.device("meta"))()[0].device.type == "meta"
    encoded, tensors = encode_graph(module, torch.device("cuda:0"))  # a constant that the CUDA model keeps on the CPU
    assert decode_graph(encoded, tensors, torch.device("meta"))()[0].device.type == "cpu"


def test_names_that_are_python_words():
    graph = Graph()
    x = graph.placeholder("x")
    node = graph.create_node("call_function", aten.relu.default, (x,), name="lambda_")
    graph.output((node,))
    encoded, tensors = encode_graph(torch.fx.GraphModule(torch.nn.Module(), graph), CPU)
    text = json.dumps(encoded).replace('"lambda_"', '"lambda"').replace('"x"', '"class"')
    assert torch.equal(decode_graph(json.loads(text), tensors, CPU)(-torch.ones(2))[0], torch.zeros(2))


def test_custom_operators():
    module = graph_module({}, lambda graph, n: [graph.call_function(torch.ops.kilntest.twice.default, (n["x"],), {"note": "a"})])
    x = torch.randn(3)
    assert torch.equal(round_trip(module)(x)[0], x * 2)
    encoded, tensors = encode_graph(module, CPU)
    text = json.dumps(encoded).replace("kilntest", "nosuchlibrary")
    with pytest.raises(TargetMismatch, match=r"nosuchlibrary\.twice\.default.*import the library"):
        decode_graph(json.loads(text), tensors, CPU)


@pytest.mark.parametrize(
    "target", [aten.from_file.default, torch.ops.kilntest.read_rows.default, torch.ops.aten._print.default, torch.ops.prim.device.default]
)
def test_operators_that_reach_outside(target):
    with pytest.raises(UserError, match="an engine cannot hold it"):
        target_name(target)
    name = f"{target._schema.name.replace('::', '.')}.{target._schema.overload_name or 'default'}"
    with pytest.raises(CorruptEngineFile, match="not written by torchkiln"):
        find_target(name)


def test_targets_round_trip():
    for target in (aten.add.Tensor, aten.relu.default, aten.sym_size.int, operator.floordiv, torch.sym_max, torch.ops.higher_order.cond, round):
        assert find_target(target_name(target)) is target
    for target in (print, torch.relu, lambda x: x, torch.ops.higher_order.flex_attention):
        with pytest.raises(UserError, match="expected an operator"):
            target_name(target)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([{"node": "x"}], {}),
        ([{"node": "x"}, "a"], {}),
        ([{"node": "x"}, None], {}),
        ([{"node": "x"}, [1, 2]], {}),
        ([{"node": "x"}, {"node": "x"}, 1], {}),
        ([{"node": "x"}, {"node": "x"}], {"beta": 1}),
        ([{"node": "x"}, {"node": "x"}], {"self": {"node": "x"}}),
        ([{"node": "x"}, {"node": "x"}], {"alpha": "1"}),
        ([{"node": "y"}, {"node": "x"}], {}),
        ([{"node": "x", "tuple": []}, {"node": "x"}], {}),
        ([{"dtype": "object"}, {"node": "x"}], {}),
        ([{"device": "warp"}, {"node": "x"}], {}),
        ([{"complex": [1]}, {"node": "x"}], {}),
    ],
)
def test_calls_that_do_not_fit_their_schema(args, kwargs):
    call = {"op": "call", "name": "y", "target": "aten.add.Tensor", "args": args, "kwargs": kwargs}
    nodes = [{"op": "input", "name": "x"}, call, {"op": "output", "args": [{"tuple": [{"node": "y"}]}]}]
    with pytest.raises(CorruptEngineFile, match="graph node 1"):
        decode_graph({"nodes": nodes, "tensors": {}}, {}, CPU)


def test_strict_json():
    value = {"a": [1, 2.5, None, True, float("inf"), -float("inf")], "b": {"$float": "x", "c": "é"}, "n": float("nan")}
    text = dump_json(value, "test")
    assert json.loads(text, parse_constant=pytest.fail)
    loaded = load_json(text, "test")
    assert loaded.pop("n") != value.pop("n")
    assert loaded == value
    for bad in (b"{", b"[1] 2", b"\xff", b"[NaN]", b"[" * 100_000):
        with pytest.raises(CorruptEngineFile, match="test"):
            load_json(bad, "test")
    with pytest.raises(CompilerBug, match="test"):
        dump_json({"dtype": torch.float16}, "test")
