"""Structure: nested values to leaves and back, in memory and through JSON, and the errors of calls that do not fit."""

from __future__ import annotations

import json
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torchkiln.engine.structure import Structure
from torchkiln.engine.structure_nodes import Constant
from torchkiln.errors import CompilerBug, CorruptEngineFile, InputMismatch, UserError

Pair = namedtuple("Pair", "first second")
T = torch.ones(2, 3)


def through_json(structure):
    return Structure.from_json(json.loads(json.dumps(structure.as_json())))


constants = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5))
values = st.recursive(
    st.one_of(constants, st.builds(lambda n: torch.full((2,), float(n)), st.integers(0, 99))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(-3, 3)), inner, max_size=3),
        st.lists(st.tuples(st.text(max_size=3), inner), max_size=3).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, (dict, OrderedDict)):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and type(a).__name__ == type(b).__name__ and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(max_examples=150, deadline=None)
@given(values)
def test_round_trip(value):
    structure, leaves = Structure.of(value)
    assert structure.leaf_count == len(leaves) == len(structure.leaf_paths())
    assert same(structure.unflatten(leaves), value)
    loaded = through_json(structure)
    # A NaN is not equal to itself, so structures that hold one are compared by what they build.
    assert same(loaded.unflatten(leaves), value)
    assert all(a is b for a, b in zip(structure.flatten(value), leaves, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=3).map(tuple), st.dictionaries(st.sampled_from(["mask", "scale", "flag"]), values, max_size=3))
def test_call_round_trip(args, kwargs):
    structure, leaves = Structure.of((args, kwargs))
    assert all(a is b for a, b in zip(through_json(structure).flatten((args, dict(reversed(kwargs.items())))), leaves, strict=True))
    assert all(path.startswith(("args[", "kwargs[")) for path in structure.leaf_paths())


def test_leaf_paths():
    assert Structure.of(T)[0].leaf_paths() == [""]
    assert Structure.of({"out": (T, [T])})[0].leaf_paths() == ["['out'][0]", "['out'][1][0]"]
    assert Structure.of(((T, [T]), {"mask": {"m": T, 3: Pair(T, None)}}))[0].leaf_paths() == [
        "args[0]",
        "args[1][0]",
        "kwargs['mask']['m']",
        "kwargs['mask'][3].first",
    ]


def test_containers_of_a_loaded_structure():
    value = (torch.max(T, 1), Pair(T, 1), OrderedDict(b=T, a=T))
    structure, leaves = Structure.of(value)
    kept, loaded = structure.unflatten(leaves), through_json(structure).unflatten(leaves)
    assert isinstance(kept[0], torch.return_types.max)
    assert isinstance(kept[1], Pair)
    assert loaded[0].indices is value[0].indices
    assert (loaded[1].first, loaded[1].second, type(loaded[1]).__name__) == (T, 1, "Pair")
    assert type(loaded[2]) is OrderedDict
    assert list(loaded[2]) == ["b", "a"]


def test_other_mappings_are_kept_as_dict():
    structure, leaves = Structure.of(UserDict(logits=T))
    assert structure.unflatten(leaves) == {"logits": T}
    assert structure.flatten(UserDict(logits=T))[0] is T


@dataclass
class Box:
    x: torch.Tensor


@pytest.mark.parametrize(
    ("value", "path"), [((T, Box(T)), "[1]"), ({"a": [T, {1}]}, "['a'][1]"), ({(1, 2): T}, "value"), (T.numpy(), "value"), ([torch.float16], "[0]")]
)
def test_unknown_containers(value, path):
    with pytest.raises(UserError) as error:
        Structure.of(value)
    assert str(error.value).startswith(path)


def test_values_that_contain_themselves():
    value: list = []
    value.append(value)
    with pytest.raises(UserError, match="nested deeper"):
        Structure.of(value)


CALL = Structure.of(((T, [T, None, 1.5]), {"mask": T, "flag": True}))[0]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((T,), {"mask": T, "flag": True}, "missing args[1]"),
        ((T, [T, None, 1.5], T), {"mask": T, "flag": True}, "got 3 positional arguments where 2 are expected"),
        ((T, [T, None, 1.5]), {"flag": True}, "missing keyword 'mask'"),
        ((T, [T, None, 1.5]), {"mask": T, "flag": True, "msk": T}, "unexpected keyword 'msk'"),
        ((T, (T, None, 1.5)), {"mask": T, "flag": True}, "args[1]: expected [tensor, None, 1.5], got (tensor, None, 1.5)"),
        ((T, [T, None]), {"mask": T, "flag": True}, "args[1]: expected [tensor, None, 1.5], got [tensor, None]"),
        ((T, [T, T, 1.5]), {"mask": T, "flag": True}, "args[1][1]: expected None, got tensor"),
        ((T, [T, None, 2.5]), {"mask": T, "flag": True}, "args[1][2]: expected 1.5, got 2.5"),
        ((T, [T, None, 1.5]), {"mask": T, "flag": 1}, "kwargs['flag']: expected True, got 1"),
        ((T.numpy(), [T, None, 1.5]), {"mask": T, "flag": True}, "args[0]: expected tensor, got numpy.ndarray"),
    ],
)
def test_calls_that_do_not_fit(args, kwargs, message):
    with pytest.raises(InputMismatch) as error:
        CALL.flatten((args, kwargs), "engine")
    assert str(error.value).startswith(f"engine: {message}")
    assert "(tensor, [tensor, None, 1.5], mask=tensor, flag=True)" in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_positional_tensors(count):
    structure, _ = Structure.of(((T,) * count, {}))
    assert list(structure.flatten(((T,) * count, {}))) == [T] * count
    for args, kwargs in (((T,) * (count + 1), {}), ((T,) * count, {"x": T}), ((1,) * max(count, 1), {})):
        with pytest.raises(InputMismatch):
            structure.flatten((args, kwargs))


def test_numbers_computed_by_a_graph():
    size = ShapeEnv().create_unbacked_symint()
    structure, leaves = Structure.of({"x": T, "size": size})
    assert leaves[1] is size
    assert through_json(structure).unflatten([T, 7]) == {"x": T, "size": 7}
    assert list(structure.flatten({"x": T, "size": 7})) == [T, 7]
    with pytest.raises(InputMismatch, match=r"\['size'\]: expected int, got 7.5"):
        structure.flatten({"x": T, "size": 7.5})


def test_wrong_number_of_leaves():
    with pytest.raises(CompilerBug, match="expected 3 leaves, got 2"):
        CALL.unflatten([T, T])


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"leaf": "module"},
        {"constant": [1]},
        {"tuple": {}},
        {"dict": [["a", {"leaf": "tensor"}], ["a", {"leaf": "tensor"}]]},
        {"dict": [[None, {"leaf": "tensor"}]]},
        {"dict": [["a"]]},
        {"namedtuple": [["class", {"leaf": "tensor"}]], "name": "P"},
        {"namedtuple": [["a", {"leaf": "tensor"}]], "name": "P(object): pass"},
        {"namedtuple": [["_a", {"leaf": "tensor"}]], "name": "P"},
        {"namedtuple": [["a", {"leaf": "tensor"}]]},
        {"tuple": [], "list": []},
        {"type": "os.system"},
    ],
)
def test_json_that_is_no_structure(data):
    with pytest.raises(CorruptEngineFile):
        Structure.from_json(data)


def test_json_is_bounded():
    wide = {"tuple": [{"constant": None}] * 100_001}
    with pytest.raises(CorruptEngineFile, match="larger than"):
        Structure.from_json(wide)


def test_constants_compare_by_type():
    assert Constant(1).accepts(1)
    assert not Constant(1).accepts(True)
    assert not Constant(1).accepts(1.0)
    assert Constant(float("nan")).accepts(float("nan"))
