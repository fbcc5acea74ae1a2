"""sliding_window_inference gives what MONAI's function of the same arguments gives: values, shapes, dtypes, types, and the predictor's calls."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchkiln import sliding_window_inference

monai = pytest.importorskip("monai.inferers")

torch.manual_seed(0)
NETS = {n: conv(2, 3, 3, padding=1).eval().requires_grad_(False) for n, conv in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))}


def compare(inputs, *args, **kwargs):
    expected = monai.sliding_window_inference(inputs.clone(), *args, **kwargs)
    found = sliding_window_inference(inputs, *args, **kwargs)
    _compare(expected, found)
    return found


def _compare(expected, found):
    assert type(expected) is type(found)
    if isinstance(expected, torch.Tensor):
        assert (expected.shape, expected.dtype, expected.device) == (found.shape, found.dtype, found.device)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, dict):
        assert list(expected) == list(found)
        for key in expected:
            _compare(expected[key], found[key])
    else:
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            _compare(one, other)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "roi_size", "batch", "overlap"),
    [
        ((1, 2, 50, 37), (16, 16), 4, 0.25),
        ((3, 2, 30, 27), (16, 11), 5, 0.6),
        ((2, 2, 50), 16, 3, 0.5),
        ((2, 2, 17, 15, 12), (12, 13, 8), 3, (0.5, 0.25, 0.7)),
        ((1, 2, 21, 7, 12), (16, 13, 20), 3, (0.5, 0.25, 0.7)),
        ((2, 2, 21, 17, 12), (16, -1, None), 4, 0.3),
        ((1, 2, 9, 40), (9, 8), 100, 0.9),
        ((1, 2, 33, 40), (16, 16), 1, 0.0),
    ],
)
def test_sizes_and_batches(shape, roi_size, batch, overlap, mode):
    compare(torch.randn(shape), roi_size, batch, NETS[len(shape) - 2], overlap, mode)


def test_four_dimensions():
    compare(torch.randn(1, 2, 6, 5, 7, 6), (4, 4, 3, 4), 3, lambda x: x * 2, 0.5, "gaussian")


def test_the_signature_is_monais():
    ours, theirs = (inspect.signature(f).parameters for f in (sliding_window_inference, monai.sliding_window_inference))
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "replicate", "circular"])
def test_padding(padding_mode):
    cval = 1.5 if padding_mode == "constant" else 0.0
    compare(torch.randn(2, 2, 20, 18), (31, 16), 2, NETS[2], 0.25, "gaussian", 0.2, padding_mode, cval)


def test_sigma_scale_for_each_dimension():
    compare(torch.randn(1, 2, 30, 31), (16, 12), 2, NETS[2], 0.5, "gaussian", (0.1, 0.4))


@pytest.mark.parametrize("shape", [(16, 12), (1, 1, 16, 12)])
def test_roi_weight_map(shape):
    weight = torch.rand(shape) + 0.1
    for given in (weight, weight.numpy()):
        compare(torch.randn(1, 2, 30, 31), (16, 12), 2, NETS[2], 0.5, "gaussian", roi_weight_map=given)


def test_several_outputs_at_other_resolutions():
    x = torch.randn(1, 2, 34, 40)

    def pyramid(w):
        return NETS[2](w), F.avg_pool2d(w, 2), F.avg_pool2d(w, 4), F.interpolate(w, scale_factor=2.0)

    found = compare(x, 16, 3, lambda w: pyramid(w)[:3], 0.5, "gaussian")
    assert [tuple(y.shape) for y in found] == [(1, 3, 34, 40), (1, 2, 17, 20), (1, 2, 8, 10)]
    compare(x, 16, 3, lambda w: {"b": pyramid(w)[3], "a": pyramid(w)[0]}, 0.5, "gaussian")
    compare(x, 16, 3, lambda w: [pyramid(w)[0]], 0.5)
    compare(x, 16, 3, lambda w: {"only": pyramid(w)[1]}, 0.5)
    compare(torch.randn(1, 2, 10, 32), 16, 3, lambda w: pyramid(w)[:2], 0.5, "constant")


def test_counts_of_an_output_are_not_another_predictors():
    """A weight is scaled from that of the output before: 16 to 4 is not 16 to 8 to 4."""
    x = torch.randn(1, 1, 34, 40)
    compare(x, 16, 3, lambda w: F.avg_pool2d(w, 4), 0.5, "gaussian")
    compare(x, 16, 3, lambda w: (w, F.avg_pool2d(w, 2), F.avg_pool2d(w, 4)), 0.5, "gaussian")


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("dim", [0, -1])
def test_buffers_coordinates_and_arguments(steps, dim):
    seen = []

    def net(windows, slices, scale, offset=0.0):
        seen.append([[(int(s.start or 0), int(s.stop or 0)) for s in window] for window in slices])
        return NETS[2](windows) * scale + offset

    arguments = ((16, 12), 3, net, 0.4, "gaussian", 0.125, "constant", 0.0, None, None, False, None, None, steps, dim, True, 2.0)
    compare(torch.randn(2, 2, 40, 31), *arguments, offset=1.0)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_of_buffered_outputs_the_first_is_kept_and_that_is_said():
    with pytest.warns(UserWarning, match="2 outputs only the first"):
        compare(torch.randn(1, 2, 40, 31), 16, 3, lambda w: (w * 2, w), buffer_steps=1)


@pytest.mark.parametrize("weight", [lambda m, w: m, lambda m, w: (m * (1 + w.mean().abs()))[None, None]])
def test_process_fn(weight):
    calls = []

    def process(outputs, windows, importance):
        calls.append((tuple(windows.shape), tuple(importance.shape)))
        return tuple(y * 2 for y in outputs), weight(importance, windows)

    compare(torch.randn(2, 2, 30, 31), 16, 5, NETS[2], 0.5, "gaussian", process_fn=process)
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    compare(torch.randn(1, 2, 32, 32), 16, 4, lambda w: (w, F.avg_pool2d(w, 2)), 0.5, "gaussian", process_fn=lambda y, w, m: (y, m))


def test_process_fn_may_write_to_its_map():
    x = torch.randn(1, 2, 40, 31)
    expected = sliding_window_inference(x, 16, 4, NETS[2], 0.5, "gaussian")
    weight = torch.rand(16, 16) + 0.5
    before = weight.clone()
    for given in (None, weight):
        # MONAI writes to the caller's own.
        theirs, ours = (
            f(x, 16, 4, NETS[2], 0.5, "gaussian", roi_weight_map=own, process_fn=lambda y, w, m: (y, m.mul_(1.5)))
            for f, own in ((monai.sliding_window_inference, None if given is None else given.clone()), (sliding_window_inference, given))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert weight.equal(before)
    assert sliding_window_inference(x, 16, 4, NETS[2], 0.5, "gaussian").equal(expected)


def test_condition():
    x = torch.randn(2, 2, 20, 37)
    compare(x, (24, 16), 3, lambda w, condition: w * 2 + condition, 0.5, condition=torch.randn_like(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float16, 1e-2), (torch.bfloat16, 1e-1), (torch.complex64, 1e-5)])
def test_dtypes(dtype, tolerance):
    """Narrow dtypes are summed in float32 here, and in themselves by MONAI: the difference is MONAI's."""
    x = torch.randn(1, 1, 30, 30, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    exact = monai.sliding_window_inference(x, 16, 3, lambda w: w * 2, 0.5, "gaussian")
    theirs, ours = (f(x.to(dtype), 16, 3, lambda w: w * 2, 0.5, "gaussian") for f in (monai.sliding_window_inference, sliding_window_inference))
    assert ours.dtype is theirs.dtype is dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max() + 1e-6


def test_meta_tensors_keep_their_meta_data():
    data = pytest.importorskip("monai.data")
    x = data.MetaTensor(torch.randn(1, 2, 30, 30), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    expected, found = (f(x, 16, 3, NETS[2]) for f in (monai.sliding_window_inference, sliding_window_inference))
    assert type(found) is data.MetaTensor
    assert found.affine.equal(expected.affine)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())


def test_monais_inferer_can_be_replaced(monkeypatch):
    inferer = monai.SlidingWindowInferer((16, 12), 3, 0.4, "gaussian")
    x = torch.randn(1, 2, 40, 31)
    expected = inferer(x, NETS[2])
    monkeypatch.setattr("monai.inferers.inferer.sliding_window_inference", sliding_window_inference)
    torch.testing.assert_close(inferer(x, NETS[2]), expected)
