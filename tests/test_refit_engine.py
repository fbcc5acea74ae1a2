"""torchkiln.refit: new weights into an engine. Plans are built for real; what needs a GPU while building is left out of the configuration."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.engine.contents import EngineContents
from torchkiln.errors import CorruptEngineFile, ParityFailed, TargetMismatch, UserError

pytest.importorskip("tensorrt_rtx")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.Linear(9, 5)

    def forward(self, image, scale):
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3))) * scale


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.2, 1.0)
    return model.eval()


IMAGE, SCALE = torch.randn(2, 3, 11, 13), torch.rand(2, 1)


@pytest.fixture
def build(monkeypatch):
    """Compile with weights stored apart; the flags that need a GPU are not set, so the plan holds its weights too."""
    monkeypatch.setattr("torchkiln.backends.tensorrt.configure._set_flags", lambda *arguments: None)

    def make(model: nn.Module, **options: object) -> torchkiln.Engine:
        options = {"strip_engine_weights": True, "target": "sm_86,sm_89", **options}
        return torchkiln.compile(model, [IMAGE, SCALE], backend="tensorrt", min_block_size=1, **options)

    return make


def stand_in_outputs(contents: EngineContents) -> torch.Tensor:
    (segment,) = contents.segments
    return segment.artifact.stand_in([IMAGE, SCALE])[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_new_engine_is_the_new_model(build, precision, tmp_path):
    old, new = net(1), net(2)
    engine = build(old, enabled_precisions={precision})
    before = copy.deepcopy(engine.contents.segments[0].artifact.metadata)
    refitted = torchkiln.refit(engine, new)
    tolerance = {"fp32": 1e-5, "fp16": 5e-3}[precision]
    torch.testing.assert_close(stand_in_outputs(refitted.contents), new(IMAGE, SCALE), rtol=tolerance, atol=tolerance)
    assert refitted.report().parity.verified
    assert any("refitted" in note for note in refitted.report().notes)
    fresh, old_segment = refitted.contents.segments[0], engine.contents.segments[0]
    assert fresh.artifact.payload == old_segment.artifact.payload
    assert fresh.artifact.metadata["graph_sha256"] == before["graph_sha256"]
    assert fresh.artifact.metadata["weights_sha256"] != before["weights_sha256"]
    assert old_segment.artifact.metadata == before, "the engine itself stays as it is"
    torch.testing.assert_close(stand_in_outputs(engine.contents), old(IMAGE, SCALE), rtol=tolerance, atol=tolerance)
    refitted.save(tmp_path / "m.kiln")
    again = torchkiln.refit(tmp_path / "m.kiln", old, trusted=True)
    assert again.contents.segments[0].artifact.metadata["weights_sha256"] == before["weights_sha256"]
    with pytest.raises(TargetMismatch):
        refitted(IMAGE, SCALE)


def test_weights_that_stay_are_left_alone(build):
    model = net(1)
    engine = build(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1
    old, new = (e.contents.segments[0].artifact for e in (engine, torchkiln.refit(engine, other)))
    changed = {name for name in new.tensors if new.tensors[name].data_ptr() != old.tensors[name].data_ptr()}
    assert len(changed) == 1
    assert new.metadata["weights_sha256"].keys() == old.metadata["weights_sha256"].keys()


def test_pytorch_segments_are_refitted_too(build):
    old, new = net(1), net(2)
    engine = build(old, torch_executed_ops={"aten.linear"})
    assert [s.backend for s in engine.contents.segments] == ["tensorrt", "torch", "tensorrt"]
    refitted = torchkiln.refit(engine, new)
    weight = refitted.contents.segments[1].artifact.tensors
    assert any(torch.equal(tensor, new.head.weight) for tensor in weight.values())
    assert refitted.report().parity.relative_error < 1e-5


class Other(Net):
    def forward(self, image, scale):
        return self.head(torch.sigmoid(self.norm(self.conv(image))).mean((2, 3))) * scale


def test_another_model_is_refused(build):
    engine = build(net(1))
    with pytest.raises(UserError, match="the model is not the one the engine was built from: its graph differs"):
        torchkiln.refit(engine, Other().eval())
    with pytest.raises(UserError, match="the model is not the one the engine was built from: its segments are"):
        torchkiln.refit(build(net(1), torch_executed_ops={"aten.linear"}), nn_without_linear())


def nn_without_linear() -> nn.Module:
    class Without(Net):
        def forward(self, image, scale):
            return torch.relu(self.norm(self.conv(image))).mean((2, 3)) * scale

    return Without().eval()


def test_engines_that_were_not_built_for_it(build):
    fixed = build(net(1), strip_engine_weights=False)
    with pytest.raises(
        UserError, match=r"segment_0 \(tensorrt\) cannot take new weights. Build it with backend='tensorrt' and immutable_weights=False"
    ):
        torchkiln.refit(fixed, net(2))
    cpu = torchkiln.compile(net(1), [IMAGE, SCALE], backend="openvino")
    with pytest.raises(UserError, match=r"segment_0 \(openvino\) cannot take new weights"):
        torchkiln.refit(cpu, net(2))
    several = build(net(1), target="sm_89")
    with pytest.raises(UserError, match="the engine holds several builds"):
        torchkiln.refit(type(several)([cpu.contents, several.contents], may_be_absent=True), net(2))


def test_a_refittable_plan_needs_its_gpu(build):
    engine = build(net(1), strip_engine_weights=False, immutable_weights=False)
    with pytest.raises(TargetMismatch):
        torchkiln.refit(engine, net(2))


@pytest.mark.parametrize("options", [{"output_dtype": torch.float16}, {}])
def test_the_tolerance_is_that_of_a_build(options):
    model = net(1) if options else net(1).bfloat16()
    images = [IMAGE.to(model.head.weight.dtype), SCALE.to(model.head.weight.dtype)]
    engine = torchkiln.compile(model, images, backend="torch", **options)
    assert torchkiln.refit(engine, model).report().parity.tolerance == engine.report().parity.tolerance


@pytest.mark.parametrize(
    "settings", [{"target": 5}, {"device": [1]}, {"enabled_precisions": [{}]}, {"seed": "abc"}, {"seed": 10**30}, {"unknown": 1}]
)
def test_settings_of_a_forged_file(settings):
    engine = torchkiln.compile(net(1), [IMAGE, SCALE], backend="torch")
    engine.contents.report.settings.update(settings)
    with pytest.raises(CorruptEngineFile, match="engine Net: the settings it was built with do not make sense: "):
        torchkiln.refit(engine, net(1))


def test_the_new_engine_is_checked(build, monkeypatch):
    engine = build(net(1))
    monkeypatch.setattr("torchkiln.refit_engine.tolerance_for", lambda *arguments: 1e-12)
    with pytest.raises(ParityFailed, match="against the new model"):
        torchkiln.refit(engine, net(2))
