"""Each operator that stays whole at capture is one that every backend takes whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln.lower.decompose import KEPT_WHOLE, decomposition_table, kept_ops

IMAGE, SEQUENCE = (2, 4, 5, 7), (2, 3, 8)


CALLS = {
    "aten.linear.default": (lambda m, x: F.linear(x, m.weight), SEQUENCE),
    "aten.matmul.default": (lambda m, x: x @ x.transpose(1, 2), SEQUENCE),
    "aten.scaled_dot_product_attention.default": (lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]), SEQUENCE),
    "aten.silu.default": (lambda m, x: F.silu(x), SEQUENCE),
    "aten.hardswish.default": (lambda m, x: F.hardswish(x), SEQUENCE),
    "aten.hardsigmoid.default": (lambda m, x: F.hardsigmoid(x), SEQUENCE),
    "aten.mish.default": (lambda m, x: F.mish(x), SEQUENCE),
    "aten.softplus.default": (lambda m, x: F.softplus(x), SEQUENCE),
    "aten.prelu.default": (lambda m, x: F.prelu(x, m.channels), IMAGE),
    "aten.layer_norm.default": (lambda m, x: F.layer_norm(x, (8,), m.features, m.features), SEQUENCE),
    "aten.group_norm.default": (lambda m, x: F.group_norm(x, 2, m.channels, m.channels), IMAGE),
    "aten.instance_norm.default": (lambda m, x: F.instance_norm(x, weight=m.channels, bias=m.channels), IMAGE),
    "aten.rms_norm.default": (lambda m, x: F.rms_norm(x, (8,), m.features, 1e-6), SEQUENCE),
    "aten.softmax.int": (lambda m, x: F.softmax(x, -1), SEQUENCE),
    "aten.log_softmax.int": (lambda m, x: F.log_softmax(x, -1), SEQUENCE),
    "aten.logsumexp.default": (lambda m, x: torch.logsumexp(x, -1), SEQUENCE),
    "aten.upsample_nearest1d.vec": (lambda m, x: F.interpolate(x, scale_factor=2), SEQUENCE),
    "aten.upsample_nearest2d.vec": (lambda m, x: F.interpolate(x, scale_factor=2), IMAGE),
    "aten.upsample_nearest3d.vec": (lambda m, x: F.interpolate(x, scale_factor=2), (1, 2, 3, 4, 5)),
    "aten.upsample_linear1d.vec": (lambda m, x: F.interpolate(x, size=11, mode="linear"), SEQUENCE),
    "aten.upsample_bilinear2d.vec": (lambda m, x: F.interpolate(x, size=(9, 6), mode="bilinear"), IMAGE),
    "aten.upsample_trilinear3d.vec": (lambda m, x: F.interpolate(x, size=(4, 5, 7), mode="trilinear"), (1, 2, 3, 4, 5)),
    "aten.upsample_bicubic2d.vec": (lambda m, x: F.interpolate(x, size=(9, 6), mode="bicubic"), IMAGE),
    "aten.pad.default": (lambda m, x: F.pad(x, (1, 2, 2, 1), mode="reflect"), IMAGE),
    "aten.roll.default": (lambda m, x: torch.roll(x, (1, -2), (2, 3)), IMAGE),
    "aten.pixel_shuffle.default": (lambda m, x: F.pixel_shuffle(x, 2), IMAGE),
    "aten.max_pool1d.default": (lambda m, x: F.max_pool1d(x, 3, 2), SEQUENCE),
    "aten.max_pool2d.default": (lambda m, x: F.max_pool2d(x, 3, 2, 1), IMAGE),
    "aten.max_pool3d.default": (lambda m, x: F.max_pool3d(x, 2), (1, 2, 3, 4, 5)),
    "aten.adaptive_avg_pool2d.default": (lambda m, x: F.adaptive_avg_pool2d(x, (3, 2)), IMAGE),
}


def test_every_kept_operator_is_tried():
    assert set(CALLS) == set(KEPT_WHOLE)
    assert len(kept_ops()) == len(KEPT_WHOLE)
    assert not any(op in decomposition_table() for op in kept_ops())


class Calls(nn.Module):
    """Every call that takes one shape: exporting once is what takes the time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.names = [name for name, (_, wanted) in CALLS.items() if wanted == shape]
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.channels = nn.Parameter(torch.rand(4))
        self.features = nn.Parameter(torch.rand(8))

    def forward(self, x):
        return [CALLS[name][0](self, x) for name in self.names]


SHAPES = sorted({shape for _, shape in CALLS.values()})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stays_whole_at_capture(lowering, shape):
    model, x = Calls(shape), torch.randn(shape)
    graph_module = lowering.capture_dynamic_batch(model, x) if shape[0] > 1 else lowering.capture(model, x)
    ops = lowering.ops(graph_module)
    assert [name for name in model.names if ops[name.removeprefix("aten.")] != 1] == []
    lowering.check_equal(graph_module, model, torch.randn(3 if shape[0] > 1 else 1, *shape[1:]))


def test_the_rest_is_core_aten(lowering):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(inplace=True), nn.GLU(1), nn.Flatten(), nn.CELU()).eval()
    ops = lowering.ops(lowering.capture(model, torch.randn(2, 3, 5, 6)))
    assert "conv2d.padding" not in ops
    assert "relu_.default" not in ops
    assert "glu.default" not in ops
    assert ops["convolution.default"] == ops["relu.default"] == 1


def _check(names, got, expected):
    for name, a, b in zip(names, got, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_openvino_takes_it_whole(shape):
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(3)
    model, x = Calls(shape).eval(), torch.randn(shape)
    converted = openvino.convert_model(torch.export.export(model, (x,)))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        _check(model.names, list(compiled(x.numpy()).to_tuple()), model(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_onnx_takes_it_whole(shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(3)
    model, x = Calls(shape).eval(), torch.randn(shape)
    converted = torch.onnx.export(torch.export.export(model, (x,)), (), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(converted.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        _check(model.names, session.run(None, {session.get_inputs()[0].name: x.numpy()}), model(x))


@pytest.mark.slow
def test_inductor_takes_it_whole():
    torch.manual_seed(3)
    model, x = Calls(IMAGE).eval(), torch.randn(IMAGE)
    compiled = torch.compile(torch.export.export(model, (x,)).module(), fullgraph=True)
    with torch.no_grad():
        _check(model.names, [t.numpy() for t in compiled(x)], model(x))
