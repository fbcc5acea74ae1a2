"""PyTorch models through each of torch's ONNX exporters and back: the same numbers, at batch sizes that were not exported."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import torchkiln
from torchkiln.capture.sources import load_model


class Encoder(nn.Module):
    """Token ids, a mask, two outputs; the position table is cut to the length that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(37, 16), nn.Parameter(torch.randn(1, 20, 16))
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.layer((self.embed(ids) + self.place[:, : ids.shape[1]]) * mask.unsqueeze(-1))
        return self.head(hidden), hidden.mean(1)


def vision_transformer() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)
    nn.init.normal_(model.heads.head.weight)  # zero as made
    return model


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [3, 3], num_classes=7)


def segmenter() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.GroupNorm(3, 6),
        nn.PReLU(6),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(6, 2, 2, 2),
        nn.GELU(),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (torchvision.models.resnet18, 64),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 64),
    "vision_transformer": (vision_transformer, 32),
    "swin": (swin, 48),
    "segmenter": (segmenter, 33),
}
#: Model, torch's newer exporter or its older one, opset.
CASES = [
    ("resnet18", True, 18),
    ("resnet18", False, 13),
    ("mobilenet_v3_small", False, 17),
    ("vision_transformer", True, 18),
    ("vision_transformer", False, 14),
    ("swin", True, 18),
    ("swin", False, 13),
    ("segmenter", True, 20),
    ("segmenter", False, 17),
]


def export(model: nn.Module, args: tuple[torch.Tensor, ...], path: Path, dynamo: bool, opset: int, names: list[str]) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {n: {0: torch.export.Dim("batch", min=1, max=64)} for n in names}
            torch.onnx.export(
                model, args, path, input_names=names, opset_version=opset, dynamic_shapes=tuple(dims.values()), external_data=False, verbose=False
            )
        else:
            axes = {n: {0: "batch"} for n in names}
            torch.onnx.export(model, args, path, input_names=names, opset_version=opset, dynamic_axes=axes, dynamo=False)


@pytest.mark.parametrize(("name", "dynamo", "opset"), CASES)
def test_images(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, size = MODELS[name]
    model = make().eval()
    path = tmp_path / "m.onnx"
    export(model, (torch.randn(2, 3, size, size),), path, dynamo, opset, ["x"])
    loaded = load_model(str(path))
    assert loaded.default_inputs is None
    assert loaded.shape_hint == f"--shape x:batchx3x{size}x{size}"
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(loaded.model(x), expected, rtol=1e-5, atol=1e-5)  # type: ignore[operator]
        # A dimension that varies stays one from the input to the output.
        program = torch.export.export(loaded.model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC(min=1, max=8)},))  # type: ignore[arg-type]
        for batch in (1, 3):
            torch.testing.assert_close(program.module()(x[:batch]), expected[:batch], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dynamo", "opset"), [(True, 20), (False, 17)])
def test_an_engine_of_a_model_with_two_inputs_and_outputs(dynamo: bool, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    path = tmp_path / "m.onnx"
    args = (torch.randint(0, 37, (2, 7)), torch.ones(2, 7))
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # one fused operator, which the older exporter does not know
    with torch.no_grad():
        export(model, args, path, dynamo, opset, ["ids", "mask"])
    loaded = load_model(str(path))
    assert loaded.input_dtypes == {"ids": torch.int64, "mask": torch.float32}
    ids = torchkiln.Input(min_shape=(1, 7), opt_shape=(2, 7), max_shape=(5, 7), dtype=torch.int64, tensor_domain=(0, 37))
    mask = torchkiln.Input(min_shape=(1, 7), opt_shape=(2, 7), max_shape=(5, 7))
    engine = torchkiln.compile(loaded.model, [ids, mask], backend="openvino")  # type: ignore[arg-type]
    ids_now, mask_now = torch.randint(0, 37, (5, 7)), torch.rand(5, 7)
    with torch.no_grad():
        expected = model(ids_now, mask_now)
    given = list(engine(ids_now, mask_now).values())  # type: ignore[operator]
    for mine, wanted in zip(given, expected, strict=True):
        assert float((mine - wanted).norm() / wanted.norm()) <= 1e-5


def test_weights_have_their_names_from_the_file(tmp_path: Path) -> None:
    model = torchvision.models.resnet18().eval()
    path = tmp_path / "m.onnx"
    export(model, (torch.randn(2, 3, 32, 32),), path, True, 18, ["x"])
    loaded = load_model(str(path)).model
    assert torch.equal(loaded.get_parameter("fc.weight"), model.fc.weight)  # type: ignore[union-attr]


def test_sequences_and_recurrent_layers(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTM(5, 4, 2, bidirectional=True), nn.GRU(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, *rest = self.gru(self.lstm(x)[0])[0].split(2)
            return torch.cat([*rest, first])

    torch.manual_seed(0)
    model, x, path = Net().eval(), torch.randn(6, 3, 5), tmp_path / "m.onnx"
    export(model, (x,), path, False, 17, ["x"])
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(path)).model(torch.cat([x, x])[:6]), model(x), rtol=1e-5, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_half_precision_file_converted_to_a_wider_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """As the reference of the parity check is made: a copy in a wider type, whose casts to half precision follow."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(40, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.softmax(self.linear(x).float(), -1).half() @ torch.ones(30, 40, dtype=torch.float16))

    torch.manual_seed(0)
    model, path = Net().half().eval(), tmp_path / "m.onnx"
    export(model, (torch.randn(2, 40).half(),), path, True, 18, ["x"])
    loaded = load_model(str(path)).model
    x = torch.randn(3, 40).half()
    wide = copy.deepcopy(loaded).to(dtype)  # type: ignore[union-attr]
    with torch.no_grad():
        expected = wide(x.to(dtype))  # type: ignore[operator]
        assert expected.dtype is dtype
        torch.testing.assert_close(loaded(x), model(x), rtol=2e-3, atol=2e-3)  # type: ignore[operator]
        torch.testing.assert_close(expected, model(x).to(dtype), rtol=2e-3, atol=2e-3)
