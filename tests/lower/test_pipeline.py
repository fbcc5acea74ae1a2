import pytest
import torch
from torch import nn

from torchkiln.engine.structure import Structure
from torchkiln.errors import CompilerBug
from torchkiln.inputs import Input
from torchkiln.lower.convert_input_dtype import convert_input_dtype
from torchkiln.lower.convert_output_dtype import convert_output_dtype
from torchkiln.lower.pipeline import PASSES, lower
from torchkiln.program import Program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).mean((2, 3))
        return {"logits": self.head(x), "label": self.head(x).argmax(-1)}


@pytest.fixture
def program(lowering):
    model = lowering.randomize(Net())
    x = torch.randn(4, 3, 7, 9)
    graph_module = lowering.capture_dynamic_batch(model, x)
    arguments, _ = Structure.of(((x,), {}))
    outputs, _ = Structure.of(model(x))
    shape = Input(min_shape=(1, 3, 7, 9), opt_shape=(4, 3, 7, 9), max_shape=(64, 3, 7, 9), name="x")
    return model, Program(graph_module, (shape,), arguments, outputs, ("logits", "label"), (x,))


def test_lower(program, lowering):
    model, captured = program
    result = lower(captured)
    assert result.program is captured
    assert [p.name for p in result.passes_report] == [p.__name__ for p in PASSES]
    rewrites = {p.name: p.rewrites for p in result.passes_report}
    assert rewrites["fold_batch_norm"] == rewrites["decompose_batch_norm"] == 1
    assert all(p.time_ms >= 0 for p in result.passes_report)
    ops = lowering.ops(captured.graph_module)
    assert ops == {
        "convolution.default": 1,
        "relu.default": 1,
        "mul.Tensor": 1,
        "add.Tensor": 1,
        "mean.dim": 1,
        "linear.default": 1,
        "argmax.default": 1,
    }
    for batch in (1, 3):
        lowering.check_equal(captured.graph_module, model, torch.randn(batch, 3, 7, 9))


def test_lowering_again_changes_nothing(program, lowering):
    _, captured = program
    lower(captured)
    ops = lowering.ops(captured.graph_module)
    again = lower(captured)
    assert sum(p.rewrites for p in again.passes_report) == 0
    assert lowering.ops(captured.graph_module) == ops


def test_dump(program, lowering, tmp_path, monkeypatch):
    _, captured = program
    monkeypatch.setenv("TORCHKILN_DUMP", str(tmp_path / "dump"))
    lower(captured)
    files = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert files == ["00_captured.py", *(f"{i:02d}_{p.__name__}.py" for i, p in enumerate(PASSES, 1))]
    folded = (tmp_path / "dump" / files[[p.__name__ for p in PASSES].index("fold_batch_norm") + 1]).read_text()
    assert folded.startswith("# fold_batch_norm: 1 rewrites in ")
    assert "torch.ops.aten.convolution.default" in folded
    assert "f32[" in folded
    lower(captured)
    assert len(list((tmp_path / "dump" / "run_1").iterdir())) == len(files)


def test_a_pass_that_spoils_the_graph_is_a_bug(program):
    _, captured = program

    def spoil_tensor(graph_module):
        name = next(n.target for n in graph_module.graph.nodes if n.op == "get_attr")
        delattr(graph_module, name)
        return 1

    with pytest.raises(CompilerBug, match="spoil_tensor"):
        lower(captured, (spoil_tensor,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_convert_output_dtype(program, lowering, dtype):
    model, captured = program
    x = torch.randn(3, 3, 7, 9)
    assert convert_output_dtype(captured, dtype) == 1
    lowering.check_graph(captured.graph_module)
    logits, label = captured.graph_module(x)
    assert logits.dtype == dtype
    assert label.dtype == torch.int64
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(x)["logits"], rtol=1e-3, atol=1e-3)
    assert convert_output_dtype(captured, dtype) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float64])
def test_convert_input_dtype(program, lowering, dtype):
    model, captured = program
    assert convert_input_dtype(captured, 0, torch.float32) == 0
    assert convert_input_dtype(captured, 0, dtype) == 1
    assert captured.graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].dtype == dtype
    lowering.check_graph(captured.graph_module)
    x = (torch.rand(3, 3, 7, 9) * 4).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(captured.graph_module(x)[0], model(x.float())["logits"])
