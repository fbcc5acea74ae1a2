"""sliding_window_inference by itself: engines and pools, batches, memory, progress, errors."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchkiln
from torchkiln import errors, sliding_window_inference
from torchkiln.engine.engine import Engine
from torchkiln.pool.replica import Replica
from torchkiln.progress import report_progress
from torchkiln.sliding_window import inference, run_box, stitch
from torchkiln.sliding_window import predictor as predictor_module


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def fixed(net):
    """An engine that takes four windows, no more and no fewer."""
    return torchkiln.compile(net, [torch.randn(4, 1, 8, 8, 8)], backend="torch", verify=False)


@pytest.fixture(scope="module")
def ranged(net):
    """An engine that takes two to six windows."""
    shapes = {f"{name}_shape": (size, 1, 8, 8, 8) for name, size in (("min", 2), ("opt", 4), ("max", 6))}
    return torchkiln.compile(net, [torchkiln.Input(**shapes)], backend="torch", verify=False)


@pytest.fixture(scope="module")
def pool(ranged):
    with torchkiln.replicate(ranged, ["cpu", "cpu"]) as pool:
        yield pool


@pytest.fixture(scope="module")
def volume():
    return torch.randn(2, 1, 19, 14, 21, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(net, volume):
    return sliding_window_inference(volume, 8, 4, net, 0.5, "gaussian")


class Counting(nn.Module):
    """Notes the batch sizes it is called with."""

    def __init__(self, net):
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, windows):
        self.sizes.append(len(windows))
        return self.net(windows)


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_engines_get_batches_they_take(fixed, ranged, volume, expected, batch):
    for engine in (fixed, ranged):
        torch.testing.assert_close(sliding_window_inference(volume, 8, batch, engine, 0.5, "gaussian"), expected, rtol=1e-5, atol=1e-6)


def test_batch_plans(fixed, ranged, pool, net, monkeypatch):
    def plan(predictor, size, most=99):
        return predictor_module.plan_batches(predictor, size, most)

    assert plan(net, 5).rows(2) == 2
    assert [plan(fixed, size).size for size in (1, 4, 9)] == [4, 4, 4]
    assert plan(fixed, 9).rows(1) == 4
    assert [plan(ranged, size).size for size in (1, 4, 9)] == [2, 4, 6]
    assert [plan(ranged, 5).rows(count) for count in (1, 3, 5)] == [2, 3, 5]
    assert plan(pool, 9).size == 6
    assert [plan(ranged, 6, most).size for most in (1, 3, 9)] == [2, 3, 6]
    assert plan(fixed, 4, 1).size == 4
    monkeypatch.setattr(Engine, "device", property(lambda self: torch.device("cuda", 0)))
    assert [plan(ranged, 6, most).size for most in (1, 3, 5)] == [4, 4, 5]  # of 4 there is a CUDA graph
    assert [plan(ranged, 3, most).size for most in (1, 3, 5)] == [2, 3, 3]
    assert plan(ranged, 6, 5).rows(1) == 5


def test_the_last_batch_of_a_compiled_module_is_filled_up(net, volume, expected):
    counting = Counting(net)
    counting._orig_mod = net  # what torch.compile's modules have
    found = sliding_window_inference(volume, 8, 5, counting, 0.5, "gaussian")
    assert set(counting.sizes) == {5}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_coordinates_and_windows_are_filled_up_alike(fixed, volume):
    seen = []

    def predictor(windows, slices):
        seen.append((windows.clone(), slices))
        return windows

    predictor._orig_mod = None
    x = volume[:1]
    found = sliding_window_inference(x, 8, 7, predictor, 0.25, with_coord=True)
    torch.testing.assert_close(found, x)
    for windows, slices in seen:
        assert len(windows) == len(slices) == 7
        for window, place in zip(windows, slices, strict=True):
            assert window[None].equal(x[tuple(place)])


def test_a_pool_gives_what_one_engine_gives(pool, ranged, volume, expected):
    one = sliding_window_inference(volume[:1], 8, 4, ranged, 0.5, "gaussian")
    for images, reference in ((volume, expected), (volume[:1], one)):
        torch.testing.assert_close(sliding_window_inference(images, 8, 4, pool, 0.5, "gaussian"), reference, rtol=0, atol=1e-6)
    buffered = sliding_window_inference(volume, 8, 4, pool, 0.5, "gaussian", buffer_steps=2, buffer_dim=0)
    torch.testing.assert_close(buffered, expected, rtol=0, atol=1e-6)
    weighted = sliding_window_inference(volume, 8, 4, pool, 0.5, "gaussian", process_fn=lambda outputs, windows, weight: (outputs, weight * 2))
    torch.testing.assert_close(weighted, expected, rtol=0, atol=1e-6)


def test_each_replica_touches_its_slab_and_the_halo_alone(pool, volume, monkeypatch):
    regions = []
    gather = run_box.Gather

    def noting(source, places, roi_size):
        regions.append(tuple(source.shape))
        return gather(source, places, roi_size)

    monkeypatch.setattr(run_box, "Gather", noting)
    sliding_window_inference(volume[:1], 8, 4, pool, 0.5)
    # Windows of 8 begin at 0, 4, 8, 12, 13 in the last dimension of 21: two for one replica, three for the other.
    assert sorted(regions) == [(1, 1, 19, 14, 12), (1, 1, 19, 14, 13)]
    regions.clear()
    sliding_window_inference(volume, 8, 4, pool, 0.5)
    assert regions == [(1, 1, 19, 14, 21)] * 2  # an image each: no halo


@pytest.mark.parametrize("limit", [6_000, 60_000])
def test_too_little_memory_is_slower_and_right(net, pool, volume, expected, monkeypatch, limit):
    monkeypatch.setattr(run_box, "usable_bytes", lambda device: limit)
    monkeypatch.setattr(stitch, "usable_bytes", lambda device: limit)
    for predictor in (net, pool):
        torch.testing.assert_close(sliding_window_inference(volume[1:], 8, 4, predictor, 0.5, "gaussian"), expected[1:], rtol=0, atol=1e-6)


def test_running_out_of_memory_halves_the_box_until_it_fits(net, volume, expected):
    counting = Counting(net)

    def greedy(windows):
        if len(windows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return counting(windows)

    torch.testing.assert_close(sliding_window_inference(volume, 8, 4, greedy, 0.5, "gaussian"), expected, rtol=0, atol=1e-6)
    assert set(counting.sizes) <= {1, 2}

    def hopeless(windows):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        sliding_window_inference(volume, 8, 4, hopeless)


def test_an_own_engine_is_given_windows_in_the_memory_of_its_graph(fixed, volume, expected, monkeypatch):
    memory = torch.full((4, 1, 8, 8, 8), torch.nan)
    static = []
    monkeypatch.setattr(predictor_module, "_graph_input", lambda engine: memory)
    setter = Engine.static_outputs.fset
    monkeypatch.setattr(Engine, "static_outputs", property(lambda self: bool(static and static[-1]), lambda self, value: static.append(value)))
    assert setter is not None
    with torchkiln.replicate(fixed, ["cpu"]) as own:
        found = sliding_window_inference(volume, 8, 4, own, 0.5, "gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert static == [True, False]
    assert not memory.isnan().any()
    memory.fill_(torch.nan)
    sliding_window_inference(volume, 8, 4, fixed, 0.5, "gaussian")  # somebody else may call this one
    assert memory.isnan().all()


def test_integers_come_back_as_float32_and_no_gradient_is_kept(net):
    x = torch.randint(0, 255, (1, 1, 12, 12), dtype=torch.uint8)
    found = sliding_window_inference(x, 8, 2, lambda w: w / 2, 0.5, "gaussian")
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, x / 2)
    weight = torch.ones((), requires_grad=True)
    assert not sliding_window_inference(torch.randn(1, 1, 12, 12), 8, 2, lambda w: w * weight).requires_grad


def test_inside_and_outside_inference_mode(net, pool, volume, expected):
    run_box.CACHE.clear()
    for predictor in (net, pool):
        with torch.inference_mode():
            inside = sliding_window_inference(volume * 1, 8, 4, predictor, 0.5, "gaussian")
        outside = sliding_window_inference(volume, 8, 4, predictor, 0.5, "gaussian")
        torch.testing.assert_close(inside, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(outside, expected, rtol=0, atol=1e-6)


def test_what_a_predictor_does_to_its_windows_does_not_reach_the_image():
    x = torch.randn(1, 1, 20, 20)
    before = x.clone()
    kept = []
    found = sliding_window_inference(x, 8, 1, lambda w: (kept.append(w), w.mul_(2))[1], 0.5)
    assert x.equal(before)
    torch.testing.assert_close(found, before * 2)
    assert len({w.data_ptr() for w in kept}) == len(kept)


def test_progress_is_reported_and_drawn(pool, net, volume, capsys):
    for predictor in (pool, net):
        seen = []
        with report_progress(lambda *what, seen=seen: seen.append(what)):
            sliding_window_inference(volume, 8, 4, predictor, 0.5, progress=True)
        total = 2 * 4 * 3 * 5
        assert {(phase, count) for phase, _, count in seen} == {("windows", total)}
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1][1] == total
        captured = capsys.readouterr()
        assert f"{total}/{total}" in captured.err
        assert not captured.out


BAD = {
    "inputs": ({"inputs": torch.randn(4, 4)}, r"inputs: .*\(4, 4\)"),
    "empty": ({"inputs": torch.randn(1, 0, 4, 4)}, r"inputs: "),
    "rank": ({"roi_size": (8, 8, 8)}, r"roi_size: .*channels last"),
    "fraction": ({"roi_size": (8, 8.5)}, "roi_size: expected whole"),
    "batch": ({"sw_batch_size": 0}, "sw_batch_size"),
    "predictor": ({"predictor": 3}, "predictor: "),
    "overlap": ({"overlap": 1.0}, "overlap: "),
    "overlaps": ({"overlap": (0.5,)}, "overlap: "),
    "mode": ({"mode": "linear"}, "mode: .*constant, gaussian"),
    "sigma": ({"mode": "gaussian", "sigma_scale": (0.1, 0.0)}, "sigma_scale: expected more than 0"),
    "padding": ({"padding_mode": "mirror"}, "padding_mode: "),
    "reflect": ({"roi_size": 60, "padding_mode": "reflect"}, "padding_mode: 'reflect' cannot add 20"),
    "cval": ({"roi_size": 30, "padding_mode": "reflect", "cval": 1.0}, "cval: "),
    "device": ({"device": "nowhere"}, "device: "),
    "buffer": ({"buffer_steps": 1, "buffer_dim": 2}, "buffer_dim: expected -2 to 1, got 2"),
    "map": ({"roi_weight_map": torch.ones(3, 3)}, "importance map: "),
    "condition": ({"condition": torch.ones(1, 1, 3, 3)}, "condition: "),
    "labels": ({"predictor": lambda w: w.argmax(1, keepdim=True)}, "torch.int64 cannot be blended"),
    "output": ({"predictor": lambda w: "text"}, "predictor: expected a tensor"),
    "features": ({"predictor": lambda w: w.mean((2, 3))}, "predictor: output 0: "),
    "windows": ({"predictor": lambda w: w[:1], "sw_batch_size": 2}, "predictor: output 0: "),
    "rounded": ({"predictor": lambda w: F.interpolate(w, 15), "roi_size": 11}, "dimension 0 .* is 15, of the inputs' 11: the window at 0 has 14"),
    "process": ({"process_fn": lambda outputs, windows, weight: (outputs, None)}, "process_fn: "),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_to_change(case):
    changes, message = BAD[case]
    arguments = {"inputs": torch.randn(1, 1, 20, 21), "roi_size": 8, "sw_batch_size": 2, "predictor": lambda w: w, **changes}
    with pytest.raises(errors.UserError, match=message):
        sliding_window_inference(**arguments)


def test_outputs_must_be_alike_in_all_batches():
    sizes = iter([1, 2, 2, 2, 2, 2, 2])
    with pytest.raises(errors.UserError, match="as in the first batch"):
        sliding_window_inference(torch.randn(1, 1, 20, 8), 8, 1, lambda w: w.expand(1, next(sizes), 8, 8))


def test_errors_of_engines_and_pools(fixed, pool, volume):
    with pytest.raises(errors.InputMismatch, match="dimension 2: expected 8, got 6"):
        sliding_window_inference(volume, 6, 4, fixed)
    with pytest.raises(errors.InputMismatch, match=r"replica [01] on cpu, images 0:1, voxels .*expected 8, got 6"):
        sliding_window_inference(volume, 6, 4, pool)

    def fail(outputs, windows, weight):
        raise RuntimeError("no map today")

    with pytest.raises(errors.ReplicaFailed, match=r"replica [01] on cpu, .*no map today") as caught:
        sliding_window_inference(volume, 8, 4, pool, process_fn=fail)
    assert isinstance(caught.value.__cause__, RuntimeError)
    labels = torch.ones(4, 1, 8, 8, 8, dtype=torch.int64)
    with pytest.raises(errors.UserError, match=r"replica [01] on cpu, .*torch.int64 cannot be blended"):
        sliding_window_inference(volume, 8, 4, pool, process_fn=lambda outputs, windows, weight: (labels[: len(windows)], weight))
    with pytest.raises(errors.UserError, match="sw_device: meta was asked for, but predictor runs on cpu"):
        sliding_window_inference(volume, 8, 4, pool, sw_device="meta")
    sliding_window_inference(volume[:1], 8, 4, pool)
    closed = torchkiln.replicate(fixed, ["cpu"])
    closed.close()
    with pytest.raises(errors.UserError, match="the pool is closed"):
        sliding_window_inference(volume, 8, 4, closed)


def test_nobody_waits_for_weights_of_a_box_that_never_ran(ranged, volume, monkeypatch):
    with torchkiln.replicate(ranged, ["cpu", "cpu"]) as own:

        def enter(ready):
            raise RuntimeError("device lost")

        monkeypatch.setattr(own.replicas[0], "entered", enter)  # the first box's
        with pytest.raises(errors.ReplicaFailed, match="device lost"):
            sliding_window_inference(volume, 8, 4, own, process_fn=lambda outputs, windows, weight: (outputs, weight))


def test_what_further_arguments_hold_is_brought_to_the_replicas(pool, volume, monkeypatch):
    """And is waited for, as the volume is."""
    waited, brought = [], []
    monkeypatch.setattr(inference, "ready_events", lambda value: waited.append(value) or {})
    bring = Replica.bring
    monkeypatch.setattr(Replica, "bring", lambda self, value: brought.append(value) or bring(self, value))
    scale = torch.ones(1)
    with pytest.raises(errors.InputMismatch, match="scale"):
        sliding_window_inference(volume, 8, 4, pool, scale=scale)
    assert waited[0][-1]["scale"] is scale
    assert any(isinstance(value, dict) and value["scale"] is scale for value in brought)


def test_only_to_a_gpu_the_image_is_copied_without_waiting(monkeypatch):
    class Copies(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.to:
                seen.append((kwargs or {}).get("non_blocking", False))
            return function(*args, **(kwargs or {}))

    seen: list[bool] = []
    with Copies():
        sliding_window_inference(torch.randn(1, 1, 12, 12), 8, 2, lambda w: w, sw_device="meta", device="meta")
    assert seen
    assert not any(seen)


def gpu_engine(net, batch=4):
    return torchkiln.compile(net.cuda(), [torch.randn(batch, 1, 8, 8, 8, device="cuda")], backend="torch", verify=False)


@pytest.mark.cuda
def test_on_a_gpu(net, volume, expected):
    engine = gpu_engine(net)
    net.cpu()
    for inputs, device in ((volume, None), (volume.cuda(), None), (volume.cuda(), "cpu"), (volume, "cuda")):
        found = sliding_window_inference(inputs, 8, 3, engine, 0.5, "gaussian", device=device)
        assert found.device.type == (device or inputs.device.type)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    on_cpu = sliding_window_inference(volume.cuda(), 8, 3, net, 0.5, "gaussian", sw_device="cpu", device="cpu")
    torch.testing.assert_close(on_cpu, expected, rtol=1e-5, atol=1e-5)
    engine.static_outputs = True
    found = sliding_window_inference(volume, 8, 4, engine, 0.5, "gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torchkiln.replicate(engine) as pool:
        torch.testing.assert_close(sliding_window_inference(volume, 8, 4, pool, 0.5, "gaussian"), expected, rtol=1e-4, atol=1e-4)
    with torchkiln.replicate(engine, ["cuda:0", "cuda:0"]) as pool:
        for process in (None, lambda outputs, windows, weight: (outputs, weight * 2)):
            found = sliding_window_inference(volume.cuda(), 8, 4, pool, 0.5, "gaussian", process_fn=process)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_nothing_waits_for_the_gpu_between_windows(net, volume):
    engine = gpu_engine(net)
    net.cpu()
    x = volume.cuda()
    sliding_window_inference(x, 8, 4, engine, 0.5, "gaussian")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sliding_window_inference(x, 8, 4, engine, 0.5, "gaussian")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_on_two_gpus(net, volume, expected):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    engine = gpu_engine(net)
    net.cpu()
    with torchkiln.replicate(engine, ["cuda:0", "cuda:1"]) as pool:
        for inputs in (volume, volume[:1], volume.cuda()):
            found = sliding_window_inference(inputs, 8, 4, pool, 0.5, "gaussian")
            assert found.device == inputs.device
            torch.testing.assert_close(found.cpu(), expected[: len(inputs)], rtol=1e-4, atol=1e-4)
