"""The runtime against a made library and a made GPU: see fake_tensorrt.py. Nothing here runs TensorRT."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from torchkiln.backends.call_plan import CallPlan
from torchkiln.backends.tensorrt import gpu as gpu_module
from torchkiln.backends.tensorrt import open_plan
from torchkiln.backends.tensorrt.execution_context import ExecutionContext
from torchkiln.backends.tensorrt.gpu import Gpu, find_gpu
from torchkiln.backends.tensorrt.runtime import PlanRunner, load
from torchkiln.errors import CorruptEngineFile, InputMismatch, MissingPackage, TargetMismatch, UserError

from .fake_tensorrt import DEVICE, CudaGraphStrategy, EngineValidity, FakeGpu, make_artifact

F32 = torch.float32


def static_artifact(**kwargs):
    return make_artifact("double_and_sum", [("x", F32, (3, 5))], [("a", F32, (3, 5)), ("b", F32, (3,))], **kwargs)


def dynamic_artifact(profiles=None, **kwargs):
    profiles = profiles or [{"x": ((1, 5), (4, 5))}, {"x": ((2, 3), (9, 7))}]
    return make_artifact("double_and_sum", [("x", F32, (-1, -1))], [("a", F32, (-1, -1)), ("b", F32, (-1,))], profiles, **kwargs)


def full(artifact):
    """As built by TensorRT itself."""
    artifact.metadata.update(library="tensorrt", version="11.4.0")
    return artifact


def check(runner, x):
    doubled, total = runner([x])
    torch.testing.assert_close(doubled, x * 2)
    torch.testing.assert_close(total, x.sum(-1))
    return doubled, total


# Which plans load


def test_the_device_must_be_a_gpu_that_is_there(monkeypatch):
    with pytest.raises(TargetMismatch, match="expected a CUDA device, got cpu"):
        load(static_artifact(), torch.device("cpu"), None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetMismatch, match="no GPU"):
        find_gpu(DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TargetMismatch, match="has 1 GPU"):
        find_gpu(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Fake RTX 5090")
    found = find_gpu(torch.device("cuda"))
    assert (found.target, found.name, found.device) == ("sm_120", "Fake RTX 5090", torch.device("cuda", 0))


@pytest.mark.cuda
def test_a_real_gpu():
    gpu = find_gpu(torch.device("cuda"))
    stream = gpu.new_stream()
    with torch.cuda.stream(stream):
        assert gpu.current_stream() == stream
    assert not gpu.is_capturing()
    assert gpu.empty((2, 3), torch.float16).device == gpu.device
    assert gpu.target == "sm_{}{}".format(*torch.cuda.get_device_capability(gpu.device))


def test_active_changes_the_device_only_when_it_is_another(monkeypatch):
    entered = []

    class Entered:
        def __init__(self, index):
            entered.append(index)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(gpu_module.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_module.torch.cuda, "device", Entered)
    for index, expected in ((0, []), (1, [1])):
        gpu = Gpu.__new__(Gpu)
        gpu._index = index
        with gpu.active():
            assert entered == expected


def test_another_gpu_is_refused_before_the_library_sees_the_plan(make_machine):
    machine = make_machine()
    machine.gpu.target = "sm_90"
    with pytest.raises(TargetMismatch, match=r"built for sm_86, sm_89; .* is Fake RTX 4090 \(sm_90\).*--target sm_90"):
        load(static_artifact(targets=("sm_86", "sm_89")), DEVICE, None)
    assert machine.asked == []


def test_a_hardware_compatible_plan_runs_on_later_gpus(make_machine):
    machine = make_machine("tensorrt")
    artifact = full(static_artifact(targets=("sm_80+",)))
    for target in ("sm_80", "sm_90", "sm_120"):
        machine.gpu.target = target
        check(load(artifact, DEVICE, None), torch.randn(3, 5))
    machine.gpu.target = "sm_75"
    with pytest.raises(TargetMismatch, match=r"built for sm_80\+"):
        load(artifact, DEVICE, None)


def test_a_missing_library_names_the_extra(make_machine, monkeypatch):
    make_machine()

    def missing(flavor, *, version_compatible):
        raise MissingPackage("pip install torchkiln[tensorrt]")

    monkeypatch.setattr(open_plan, "import_runtime", missing)
    with pytest.raises(MissingPackage, match=r"built by tensorrt_rtx 1.7.1: pip install torchkiln\[tensorrt\]"):
        load(static_artifact(), DEVICE, None)


def test_an_invalid_plan_gives_the_library_reasons(make_machine):
    machine = make_machine()
    machine.module.validity = (EngineValidity.INVALID, 1 | 4)
    with pytest.raises(TargetMismatch, match=r"VERSION_MISMATCH, OLD_CUDA_DRIVER.*update the NVIDIA driver"):
        load(static_artifact(), DEVICE, None)
    machine.module.validity = (EngineValidity.INVALID, 0)
    with pytest.raises(TargetMismatch, match="no reason given"):
        load(static_artifact(), DEVICE, None)
    assert machine.module.calls == []
    machine.module.validity = (EngineValidity.SUBOPTIMAL, 2)
    check(load(static_artifact(), DEVICE, None), torch.randn(3, 5))


def test_a_plan_of_another_version_is_refused_unless_it_is_version_compatible(make_machine):
    machine = make_machine("tensorrt", "11.5.0.9")
    with pytest.raises(TargetMismatch, match=r"built by tensorrt 11.4.0, this is tensorrt 11.5.0.9.*Install tensorrt==11.4.0"):
        load(full(static_artifact()), DEVICE, None)
    assert machine.module.calls == []
    check(load(full(static_artifact(version_compatible=True)), DEVICE, None), torch.randn(3, 5))
    assert machine.asked == [("tensorrt", False), ("tensorrt", True)]


def test_a_plan_that_does_not_deserialize_gives_the_library_messages(make_machine):
    machine = make_machine("tensorrt")
    machine.module.refuse = {"deserialize"}
    with pytest.raises(TargetMismatch, match=r"cannot load a plan built by tensorrt 11.4.0 .*: the plan is of version 99") as error:
        load(full(static_artifact()), DEVICE, None)
    assert "EXCLUDE_LEAN_RUNTIME" not in str(error.value)
    with pytest.raises(TargetMismatch, match="EXCLUDE_LEAN_RUNTIME"):
        load(full(static_artifact(version_compatible=True)), DEVICE, None)


@pytest.mark.parametrize("key", ["targets", "library", "version", "inputs", "outputs", "call_plan"])
def test_metadata_that_lacks_something(make_machine, key):
    make_machine()
    artifact = static_artifact()
    del artifact.metadata[key]
    with pytest.raises(CorruptEngineFile):
        load(artifact, DEVICE, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "z"}, "the plan has"),
        ({"dtype": "fp16"}, "x: the file lists fp16"),
        ({"shape": [3, 6]}, r"\[3, 6\], the plan has fp32 \[3, 5\]"),
    ],
)
def test_a_plan_that_is_not_what_the_file_says(make_machine, change, message):
    make_machine()
    artifact = static_artifact()
    artifact.metadata["inputs"][0].update(change)
    with pytest.raises(CorruptEngineFile, match=message):
        load(artifact, DEVICE, None)


def test_a_shape_tensor_is_refused(make_machine):
    make_machine()
    with pytest.raises(TargetMismatch, match="x holds a shape"):
        load(static_artifact(host=["x"]), DEVICE, None)


def test_a_call_plan_that_does_not_fit(make_machine):
    make_machine()
    artifact = static_artifact()
    artifact.metadata["call_plan"] = CallPlan(2, (0, 1), (("result", 0),)).as_json()
    with pytest.raises(CorruptEngineFile, match="expected 2 inputs"):
        load(artifact, DEVICE, None)


def test_the_real_library_refuses_what_is_no_plan(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(open_plan, "find_gpu", lambda device: FakeGpu())
    artifact = static_artifact()
    artifact.payload = b"no plan" * 100
    with pytest.raises(TargetMismatch, match=r"tensorrt_rtx .* says that the plan is not valid here: MALFORMED_ENGINE"):
        load(artifact, DEVICE, None)


# Calls


@pytest.mark.parametrize("flavor", ["tensorrt_rtx", "tensorrt"])
def test_static_shapes(make_machine, flavor):
    machine = make_machine(flavor)
    runner = load(static_artifact() if flavor == "tensorrt_rtx" else full(static_artifact()), DEVICE, None)
    first = check(runner, torch.randn(3, 5))
    kept = [value.clone() for value in first]
    check(runner, torch.randn(3, 5))
    for value, copy in zip(first, kept, strict=True):
        torch.testing.assert_close(value, copy)  # the caller's own: the second call did not write them
    calls = machine.module.contexts[0].calls
    assert [c[0] for c in calls] == ["execute", "execute"]
    with pytest.raises(InputMismatch, match=r"x \(4, 5\).*0: x \(3, 5\)"):
        runner([torch.randn(4, 5)])
    check(runner, torch.randn(3, 5))
    assert len(machine.module.contexts) == 1


def test_strides_alignment_and_gradients(make_machine):
    make_machine()
    runner = load(static_artifact(), DEVICE, None)
    check(runner, torch.randn(5, 3).t())
    odd = torch.randn(16)[1:].view(3, 5)
    assert odd.is_contiguous()
    check(runner, odd)
    outputs = runner([torch.randn(3, 5, requires_grad=True)])
    assert not any(value.requires_grad for value in outputs)


def test_profiles_and_shapes_are_set_only_when_they_change(make_machine):
    machine = make_machine()
    runner = load(dynamic_artifact(), DEVICE, None)
    for shape in ((3, 5), (3, 5), (1, 5), (9, 7), (9, 7), (4, 5)):
        check(runner, torch.randn(shape))
    calls = [c for c in machine.module.contexts[0].calls if c[0] != "execute"]
    assert calls == [
        ("shape", "x", (3, 5)),
        ("shape", "x", (1, 5)),
        ("profile", 1, 1001),
        ("shape", "x", (9, 7)),
        ("profile", 0, 1001),  # (4, 5) is in both: the first is taken
        ("shape", "x", (4, 5)),
    ]


def test_shapes_outside_every_profile(make_machine):
    machine = make_machine()
    runner = load(dynamic_artifact(), DEVICE, None)
    check(runner, torch.randn(2, 5))
    for x in (torch.randn(5, 5, 5), torch.randn(10, 5), torch.randn(1, 4)):
        with pytest.raises(InputMismatch, match=r"Profiles: 0: x \(1, 5\) to \(4, 5\); 1: x \(2, 3\) to \(9, 7\)"):
            runner([x])
    check(runner, torch.randn(2, 5))
    assert len(machine.module.contexts) == 1


def test_only_the_input_whose_shape_changed_is_set(make_machine):
    machine = make_machine()
    inputs = [("x", torch.float16, (-1,)), ("y", torch.float16, (-1,))]
    artifact = make_artifact("outer", inputs, [("z", torch.float16, (-1, -1))], [{"x": ((1,), (9,)), "y": ((0,), (9,))}])
    runner = load(artifact, DEVICE, None)
    for n, m in ((3, 4), (3, 7), (5, 7)):
        x, y = torch.randn(n).half(), torch.randn(m).half()
        torch.testing.assert_close(runner([x, y])[0], x[:, None] - y[None, :])
    assert [c[1:] for c in machine.module.contexts[0].calls if c[0] == "shape"] == [("x", (3,)), ("y", (4,)), ("y", (7,)), ("x", (5,))]


def test_a_change_of_profile_sets_every_shape_again(make_machine):
    machine = make_machine()
    inputs = [("x", F32, (-1,)), ("y", F32, (-1,))]
    profiles = [{"x": ((1,), (4,)), "y": ((1,), (9,))}, {"x": ((5,), (9,)), "y": ((1,), (9,))}]
    runner = load(make_artifact("outer", inputs, [("z", F32, (-1, -1))], profiles), DEVICE, None)
    y = torch.randn(3)
    for n in (4, 5):
        x = torch.randn(n)
        torch.testing.assert_close(runner([x, y])[0], x[:, None] - y[None, :])
    assert [c[1:] for c in machine.module.contexts[0].calls if c[0] == "shape"] == [("x", (4,)), ("y", (3,)), ("x", (5,)), ("y", (3,))]


def test_tensors_without_elements_have_an_address(make_machine):
    make_machine()
    inputs = [("x", F32, (-1,)), ("y", F32, (-1,))]
    runner = load(make_artifact("outer", inputs, [("z", F32, (-1, -1))], [{"x": ((1,), (9,)), "y": ((0,), (9,))}]), DEVICE, None)
    assert runner([torch.randn(3), torch.randn(0)])[0].shape == (3, 0)


def test_inputs_that_the_plan_does_not_take(make_machine):
    make_machine()
    runner = load(static_artifact(), DEVICE, None)
    with pytest.raises(CorruptEngineFile, match="takes 1 inputs, the engine passes 2"):
        runner([torch.randn(3, 5)] * 2)
    with pytest.raises(CorruptEngineFile, match=r"takes torch.float32, the engine passes torch.float64"):
        runner([torch.randn(3, 5).double()])
    with pytest.raises(InputMismatch, match="got meta"):
        runner([torch.empty(3, 5, device="meta")])


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("execute", "could not enqueue the call: the launch failed"),
        ("profile", "refused optimization profile 1"),
        ("shape", r"refused shape \(9, 7\)"),
        ("data_dependent", "depends on the data"),
        ("create_execution_context", "could not make an execution context"),
    ],
)
def test_what_the_library_refuses_is_an_error_and_the_next_call_works(make_machine, refused, message):
    machine = make_machine()
    runner = load(dynamic_artifact(), DEVICE, None)
    machine.module.refuse = {refused}
    with pytest.raises(RuntimeError, match=message):
        runner([torch.randn(9, 7)])
    machine.module.refuse = set()
    check(runner, torch.randn(9, 7))
    gc.collect()
    assert runner.context_count == 0
    # The one that failed is not used again.
    assert len(machine.module.contexts) == (1 if refused == "create_execution_context" else 2)


def test_insufficient_shapes_are_an_error(make_machine, monkeypatch):
    machine = make_machine()
    runner = load(dynamic_artifact(), DEVICE, None)
    check(runner, torch.randn(2, 5))
    monkeypatch.setattr(machine.module.contexts[0], "infer_shapes", lambda: ["x"])
    with pytest.raises(RuntimeError, match="it lacks x"):
        runner([torch.randn(3, 5)])


def test_a_refused_address_is_an_error(make_machine, monkeypatch):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    check(runner, torch.randn(3, 5))
    monkeypatch.setattr(machine.module.contexts[0], "set_tensor_address", lambda name, address: False)
    with pytest.raises(RuntimeError, match="refused the address of x"):
        runner([torch.randn(3, 5)])


def test_a_call_plan_around_the_plan(make_machine):
    make_machine()
    artifact = static_artifact()
    artifact.tensors["constant_0"] = torch.arange(4)
    artifact.metadata["call_plan"] = CallPlan(2, (1,), (("result", 1), ("constant", 0), ("input", 0))).as_json()
    runner = load(artifact, DEVICE, None)
    unused, x = torch.randn(2), torch.randn(3, 5)
    total, constant, passed = runner([unused, x])
    torch.testing.assert_close(total, x.sum(-1))
    torch.testing.assert_close(constant, torch.arange(4))
    torch.testing.assert_close(passed, unused)
    assert "of its own" in runner.capture_blocker


# Streams and threads


def test_a_stream_of_the_caller_is_used_as_it_is(make_machine):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    machine.gpu.use(7)
    check(runner, torch.randn(3, 5))
    check(runner, torch.randn(3, 5))
    assert machine.module.contexts[0].calls == [("execute", 7), ("execute", 7)]
    assert machine.gpu.log == [("record", 7), ("record", 7)]


def test_the_default_stream_is_joined_before_and_after(make_machine):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    for _ in range(2):
        check(runner, torch.randn(3, 5))
    assert machine.module.contexts[0].calls == [("execute", 1001)] * 2
    assert machine.gpu.log == [("wait_stream", 1001, 0), ("record", 1001), ("wait_stream", 0, 1001)] * 2


def test_a_change_of_stream_waits_for_the_call_before(make_machine):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    for handle in (7, 8, 8):
        machine.gpu.use(handle)
        check(runner, torch.randn(3, 5))
    assert machine.gpu.log == [("record", 7), ("wait_event", 8, 7), ("record", 8), ("record", 8)]


def test_threads_have_contexts_of_their_own_and_pass_them_on(make_machine):
    machine = make_machine()
    runner = load(dynamic_artifact(), DEVICE, None)
    errors = []
    barrier = threading.Barrier(4)

    def work(index):
        try:
            machine.gpu.use(index + 1)
            barrier.wait()
            for step in range(10):
                check(runner, torch.randn(1 + (index + step) % 4, 5))
            barrier.wait()  # all are alive until all are done
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    for _ in range(2):
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        assert errors == []
        assert len(machine.module.contexts) == 4
        assert runner.context_count == 4
    for context in machine.module.contexts:
        assert len([c for c in context.calls if c[0] == "execute"]) == 20


def test_contexts_wait_for_the_gpu_before_they_go(make_machine):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    machine.gpu.use(7)
    check(runner, torch.randn(3, 5))
    del runner
    gc.collect()
    assert machine.gpu.log[-1] == ("synchronize", 7)
    ExecutionContext(object(), None, FakeGpu(), None).__del__()  # never used: nothing to wait for


# CUDA graphs


def test_who_captures(make_machine):
    make_machine()
    assert "of its own" in load(static_artifact(), DEVICE, None).capture_blocker
    machine = make_machine("tensorrt")
    assert load(full(static_artifact()), DEVICE, None).capture_blocker == ""
    assert "shapes vary" in load(full(dynamic_artifact()), DEVICE, None).capture_blocker
    assert all(context.config is None for context in machine.module.contexts)


def test_rtx_captures_its_own_and_refuses_to_be_captured(make_machine):
    machine = make_machine()
    runner = load(static_artifact(), DEVICE, None)
    check(runner, torch.randn(3, 5))
    assert machine.module.contexts[0].config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    machine.gpu.capturing = True
    with pytest.raises(UserError, match="call it outside"):
        runner([torch.randn(3, 5)])


def test_a_captured_context_is_never_used_again(make_machine):
    machine = make_machine("tensorrt")
    runner = load(full(static_artifact()), DEVICE, None)
    assert isinstance(runner, PlanRunner)
    machine.gpu.use(5)
    machine.gpu.capturing = True
    with pytest.raises(UserError, match="call once with these shapes before capturing"):
        runner([torch.randn(3, 5)])
    machine.gpu.capturing = False
    check(runner, torch.randn(3, 5))
    before = list(machine.gpu.log)
    machine.gpu.capturing = True
    check(runner, torch.randn(3, 5))
    machine.gpu.capturing = False
    assert machine.gpu.log == before  # no events inside the capture
    check(runner, torch.randn(3, 5))
    captured, fresh = machine.module.contexts
    assert (len(captured.calls), len(fresh.calls)) == (2, 1)
    assert runner.context_count == 1
