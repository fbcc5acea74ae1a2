"""Models of nvidia-modelopt: its quantizers, and the operator that it exports where it has its CUDA extension."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.errors import UserError

X = torch.randn(33, 256, generator=torch.Generator().manual_seed(0))


class TensorQuantizer(nn.Module):
    """The attributes and the arithmetic of modelopt's class of this name, which torch.export cannot follow either."""

    def __init__(self, amax: torch.Tensor | None, **changes: object) -> None:
        super().__init__()
        self.num_bits, self.unsigned, self.narrow_range, self.block_sizes, self.fake_quant = 8, False, False, None, True
        self.pre_quant_scale, self.rotate_is_enabled, self.bias = None, False, None
        self._disabled, self._if_quant, self._if_calib = False, True, False
        if amax is not None:
            self.register_buffer("amax", amax)
        for name, value in changes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale
        if self._disabled:
            return x
        if self.amax.min() < 0:
            raise ValueError("negative amax")
        bound = 255 if self.unsigned else 127
        low = 0 if self.unsigned else -127 if self.narrow_range else -128
        return (x * (bound / self.amax)).round().clamp(low, bound) * self.amax / bound


TensorQuantizer.__module__ = "modelopt.torch.quantization.nn.modules.tensor_quantizer"


class QuantLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, **changes: object) -> None:
        super().__init__(inputs, outputs)
        self.input_quantizer = TensorQuantizer(torch.tensor(3.0), **changes)
        self.weight_quantizer = TensorQuantizer(self.weight.detach().abs().amax(1, keepdim=True), narrow_range=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


def network(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(QuantLinear(256, 128, **changes), nn.ReLU(), QuantLinear(128, 64, unsigned=True)).eval()


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("changes", [{}, {"narrow_range": True}, {"pre_quant_scale": torch.linspace(0.5, 2, 256)}], ids=["plain", "narrow", "scaled"])
def test_its_quantizers_are_int8(backend, changes):
    model = network(**changes)
    engine = torchkiln.compile(model, [X], enabled_precisions={torch.int8}, backend=backend)
    report = engine.report()
    assert report.precision == "int8+fp32"
    assert "int8: 2 of 2 layers" in report.notes
    assert report.parity.relative_error < 1e-5, "against modelopt's own arithmetic"
    assert not any("forward" in module.__dict__ for module in model.modules()), "the model is as it was"
    if backend == "openvino":
        assert engine.contents.segments[0].artifact.metadata["int8_layers"][0] >= 1


def test_a_forward_of_its_own_comes_back():
    from torchkiln.capture.modelopt_quantizers import plain_quantizers

    quantizer = network()[0].input_quantizer
    quantizer.forward = own = torch.neg
    with plain_quantizers(quantizer):
        assert quantizer.forward is not own
    assert quantizer.forward is own


def test_a_quantizer_that_is_off_rounds_nothing():
    report = torchkiln.compile(network(_disabled=True), [X], enabled_precisions={torch.int8}, backend="torch").report()
    assert any(note.startswith("int8: 1 of 2 layers") for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_bits": (4, 3)}, r"0\.input_quantizer: .* rounds to floating point \(fp8: 4 bits of exponent, 3 of mantissa\)"),
        ({"num_bits": (2, 1)}, r"fp4"),
        ({"num_bits": 4}, "rounds to 4 bits"),
        ({"block_sizes": {-1: 128}}, "has scales by blocks"),
        ({"_if_calib": True}, "is still calibrating"),
        ({"amax": torch.tensor(float("nan"))}, "a range that is no number"),
        ({"fake_quant": False}, "packed already"),
        ({"_disabled": True, "rotate_is_enabled": True}, "rotates its input"),
    ],
)
def test_what_is_not_int8_is_refused(changes, words):
    model = network()
    for name, value in changes.items():
        setattr(model[0].input_quantizer, name, value)
    from torchkiln.capture.modelopt_quantizers import plain_quantizers

    with pytest.raises(UserError, match=words), plain_quantizers(model):
        pass


class Exported(nn.Module):
    """A layer as ``torch.export`` has it under modelopt's export_torch_mode, by its operator."""

    def __init__(self, bits: int = 8, exponent: int = 0) -> None:
        super().__init__()
        self.bits, self.exponent = bits, exponent
        self.linear = nn.Linear(256, 8)
        self.register_buffer("amax", torch.tensor(2.5))
        self.register_buffer("amaxes", self.linear.weight.detach().abs().amax(1, keepdim=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantize = torch.ops.tensorrt.quantize_op
        x = quantize(x, self.amax, self.bits, self.exponent, False, False)
        return nn.functional.linear(x, quantize(self.linear.weight, self.amaxes, 8, 0, False, True), self.linear.bias)


@pytest.fixture(scope="module")
def operator():
    """modelopt's operator, by its schema, where modelopt itself has not registered it."""
    if hasattr(torch.ops.tensorrt, "quantize_op"):
        yield
        return
    library = torch.library.Library("tensorrt", "FRAGMENT")
    library.define("quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, bool narrow_range) -> Tensor")

    def quantize(x, amax, bits, exponent, unsigned, narrow):
        return (x * (127 / amax)).round().clamp(-127 if narrow else -128, 127) * amax / 127

    library.impl("quantize_op", quantize, "CompositeExplicitAutograd")
    yield
    library._destroy()


def test_its_operator_is_a_pair(operator):
    report = torchkiln.compile(Exported().eval(), [X], enabled_precisions={torch.int8}, backend="openvino").report()
    assert report.precision == "int8+fp32"
    assert "int8: 1 of 1 layers" in report.notes
    assert report.parity.relative_error < 1e-5


def test_its_operator_in_fp8_is_refused(operator):
    with pytest.raises(UserError, match=r"quantize_op.*expected integers of 8 bits.*got 8 bits, 4 of them exponent"):
        torchkiln.compile(Exported(8, 4).eval(), [X], backend="torch")


def test_a_model_of_modelopt_itself():
    quantization = pytest.importorskip("modelopt.torch.quantization")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.randn(2, 3, 8, 8)
    model = quantization.quantize(model, quantization.INT8_DEFAULT_CFG, lambda m: m(x))
    report = torchkiln.compile(model, [x], enabled_precisions={torch.int8}, backend="openvino").report()
    assert "int8: 2 of 2 layers" in report.notes
    assert report.parity.relative_error < 1e-4
