"""What a file may be, and what is said about one that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from torchkiln.capture.sources import load_model
from torchkiln.errors import ModelSourceError

from .one_node import int64, model_of, normal


def save(text: str, path: Path) -> Path:
    onnx.save(parser.parse_model(text), path)
    return path


HEAD = '<ir_version: 8, opset_import: ["" : 18]>'


def test_inputs_that_are_fixed_are_the_inputs_to_compile_for(tmp_path: Path) -> None:
    text = HEAD + "g (float[2, 3] input.1, int64[2] ids, float16 class) => (y) { a = Cast <to = 1> (ids) b = Cast <to = 1> (class) "
    model = parser.parse_model((text + "c = Add (a, b) y = Shape (c) }").replace("input.1", "x"))
    model.graph.input[0].name = "input.1"
    onnx.save(model, tmp_path / "m.onnx")
    loaded = load_model(str(tmp_path / "m.onnx"))
    assert [(i.name, i.opt_shape, i.dtype) for i in loaded.default_inputs or []] == [
        ("input_1", (2, 3), torch.float32),
        ("ids", (2,), torch.int64),
        ("class_", (), torch.float16),
    ]


def test_several_outputs_have_their_names(tmp_path: Path) -> None:
    path = save(HEAD + "g (float[n, 3] x) => (a, s) { a = Relu (x) s = Shape (x) }", tmp_path / "m.onnx")
    result = load_model(str(path)).model(torch.ones(4, 3))  # type: ignore[operator]
    assert list(result) == ["a", "s"]
    assert result["s"].tolist() == [4, 3]


def test_an_input_with_a_value_in_the_file_is_none(tmp_path: Path) -> None:
    model = model_of("Add", [normal(3), normal(3)], {1: normal(3)})
    model.graph.input.append(helper.make_tensor_value_info("in1", TensorProto.FLOAT, [3]))
    onnx.save(model, tmp_path / "m.onnx")
    assert [i.name for i in load_model(str(tmp_path / "m.onnx")).default_inputs or []] == ["in0"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18, "own" : 1]> g (float[n, 3] x) => (y) { y = own.twice <by = 3.0> (x) }'
    text += ' <domain: "own", opset_import: ["" : 18]> twice <by: float = 2.0> (a) => (b) {'
    text += " c = Constant <value_float: float = @by> () b = Mul (a, c) }"
    path = save(text, tmp_path / "m.onnx")
    assert load_model(str(path)).model(torch.ones(2, 3)).tolist() == [[3.0] * 3] * 2  # type: ignore[operator]


BRANCHES = """g (float[n, m] x) => (y) {
    two = Constant <value_int: int = 2> ()
    s = Shape <start: int = 1, end: int = 2> (x)
    is_two = Equal (s, two)
    y = If (is_two) <then_branch = a () => (p) { p = Neg (x) }, else_branch = b () => (q) { q = Relu (x) }>
}"""


def test_a_condition_on_a_shape_chooses_its_branch(tmp_path: Path) -> None:
    model = load_model(str(save(HEAD + BRANCHES, tmp_path / "m.onnx"))).model
    x = -torch.ones(3, 2)
    assert torch.equal(model(x), -x)  # type: ignore[operator]
    assert torch.equal(model(x[:, :1]), torch.zeros(3, 1))  # type: ignore[operator]
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))  # type: ignore[arg-type]
    assert torch.equal(program.module()(x[:1]), -x[:1])


def test_a_condition_on_data_is_refused(tmp_path: Path) -> None:
    text = BRANCHES.replace("Equal (s, two)", "Cast <to = 9> (f)").replace("s = Shape", "z = ReduceMax <keepdims = 0> (x) f = Floor (z) s = Shape")
    model = load_model(str(save(HEAD + text, tmp_path / "m.onnx"))).model
    with pytest.raises(ModelSourceError, match=r"If.*condition is computed from a tensor's data"):
        model(torch.ones(3, 2))  # type: ignore[operator]


def test_missing_operators_are_all_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["a"], name="first"),
        helper.make_node("Own", ["a"], ["b"], name="second", domain="mine"),
        helper.make_node("Own", ["b"], ["c"], domain="mine"),
        helper.make_node("RandomNormalLike", ["c"], ["y"], name="fourth"),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 3)]), tmp_path / "m.onnx")
    with pytest.raises(ModelSourceError) as caught:
        load_model(str(tmp_path / "m.onnx"))
    text = str(caught.value)
    assert "StringNormalizer (opset 18): node first" in text
    assert "mine.Own (opset 3): node second and 1 more" in text
    assert "RandomNormalLike (opset 18): node fourth: an engine has no random numbers" in text


def test_loops_are_refused_with_the_reason(tmp_path: Path) -> None:
    text = HEAD + "g (float[3] x) => (y) { n = Constant <value_int: int = 3> () t = Constant <value_int: int = 1> () c = Cast <to = 9> (t)"
    text += "y = Loop (n, c, x) <body = b (int64 i, bool d, float[3] v) => (e, w) { e = Identity (d) w = Relu (v) }> }"
    with pytest.raises(ModelSourceError, match=r"Loop \(opset 18\).*a loop whose length the data decides"):
        load_model(str(save(text, tmp_path / "m.onnx")))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    model = model_of("Add", [normal(30, 20), normal(20)], {1: normal(20)})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return tmp_path / "m.onnx"


def test_weights_in_a_file_beside_the_model(external: Path) -> None:
    assert torch.equal(load_model(str(external)).model(torch.zeros(30, 20))[0], torch.from_numpy(normal(20)))  # type: ignore[operator]


def test_weights_that_are_not_beside_the_model(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    with pytest.raises(ModelSourceError, match=r"weights.bin, which does not exist: copy that file"):
        load_model(str(external))


def test_weights_that_are_cut_off(external: Path) -> None:
    (external.parent / "weights.bin").write_bytes(b"1234")
    with pytest.raises(ModelSourceError, match=r"in1"):
        load_model(str(external))


def test_weights_outside_of_the_folder(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../../etc/passwd"
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelSourceError, match=r"in1|passwd"):
        load_model(str(external))


def damaged_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"123"


def unknown_name(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def unknown_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nothing"


def no_inputs(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(normal(3), "in0"))


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def no_opset(model: onnx.ModelProto) -> None:
    model.ClearField("opset_import")


def no_rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def strings(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [3])))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_weights, "'in1' is damaged"),
        (unknown_name, "reads 'nowhere', which nothing before it makes"),
        (unknown_output, "nothing makes the output 'nothing'"),
        (no_inputs, "it has no inputs"),
        (old, "opset 7: expected 9 to"),
        (future, "opset 99: expected 9 to"),
        (no_opset, "no operator set"),
        (no_rank, "input 'in0' has no shape"),
        (strings, "elements of type STRING"),
        (sequence, "is no tensor but a sequence_type"),
    ],
)
def test_files_that_cannot_be_loaded(damage: object, message: str, tmp_path: Path) -> None:
    model = model_of("Add", [normal(3), normal(3)], {1: normal(3)})
    damage(model)  # type: ignore[operator]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelSourceError, match=message):
        load_model(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("content", [b"", b"just some text\n", bytes(range(256)) * 9])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelSourceError, match="not an ONNX model"):
        load_model(str(tmp_path / "m.onnx"))


def test_a_file_cut_off_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = model_of("Add", [normal(30, 20), normal(20)], {1: normal(20)}).SerializeToString()
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        with pytest.raises(ModelSourceError):
            load_model(str(tmp_path / "m.onnx"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="no such file"):
        load_model(str(tmp_path / "none.onnx"))


def test_a_call_that_does_not_fit_says_what_the_file_declares(tmp_path: Path) -> None:
    onnx.save(model_of("Reshape", [normal(3, 5), int64(5, 3)], {1: int64(5, 3)}), tmp_path / "m.onnx")
    model = load_model(str(tmp_path / "m.onnx")).model
    for wrong in (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3), torch.zeros(4, 5)):
        with pytest.raises(ModelSourceError, match=r"'in0': expected torch.float32 of shape \[3, 5\]"):
            model(wrong)  # type: ignore[operator]


def test_an_operator_that_torch_cannot_run_names_its_node(tmp_path: Path) -> None:
    onnx.save(model_of("Reshape", [normal(3, 5), int64(4, 4)], {1: int64(4, 4)}), tmp_path / "m.onnx")
    with pytest.raises(ModelSourceError, match=r"the_node \(Reshape, opset 18\): PyTorch cannot run it on float32\[3, 5\], \[4, 4\]"):
        load_model(str(tmp_path / "m.onnx")).model(torch.zeros(3, 5))  # type: ignore[operator]


def test_names_that_are_no_attributes(tmp_path: Path) -> None:
    model = model_of("Sum", [normal(40), normal(40), normal(40), normal(40)], {1: normal(40), 2: normal(40), 3: normal(40)})
    for weight, name in zip(model.graph.initializer, ("forward", "a.b", "a.b.c"), strict=True):
        position = list(model.graph.node[0].input).index(weight.name)
        weight.name = model.graph.node[0].input[position] = name
    onnx.save(model, tmp_path / "m.onnx")
    loaded = load_model(str(tmp_path / "m.onnx")).model
    assert np.allclose(loaded(torch.zeros(40)), 3 * normal(40))  # type: ignore[operator]
    assert set(loaded.state_dict()) == {"forward_", "a.b", "a.b_.c"}
