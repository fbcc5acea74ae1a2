"""Refit against a made library: see fake_tensorrt.py. Nothing here runs TensorRT."""

from __future__ import annotations

import json

import pytest
import torch

from torchkiln.backends.tensorrt.refit import refit_plan
from torchkiln.backends.tensorrt.runtime import load
from torchkiln.errors import BuildFailed, CorruptEngineFile, MissingPackage, TargetMismatch, UserError

from .fake_tensorrt import DEVICE, make_artifact

F32 = torch.float32


def weights(scale=3.0, dtype=F32):
    return {"scale": torch.tensor([scale], dtype=dtype), "shift": torch.randn(5).to(dtype)}


def make(old, dtype=F32, **metadata):
    return make_artifact("scale", [("x", dtype, (3, 5))], [("y", dtype, (3, 5))], weights=old, **metadata)


def check(artifact, new, dtype=F32):
    x = torch.randn(3, 5).to(dtype)
    torch.testing.assert_close(load(artifact, DEVICE, None)([x])[0], x * new["scale"] + new["shift"])


@pytest.mark.parametrize("dtype", [F32, torch.float16, torch.bfloat16])
def test_a_refittable_plan_gets_new_weights_and_stays_refittable(make_machine, dtype):
    make_machine()
    artifact = make(weights(dtype=dtype), dtype, refittable=True)
    for scale in (5.0, -2.0):
        new = weights(scale, dtype)
        before = artifact.payload
        artifact = refit_plan(artifact, new, DEVICE)
        assert artifact.payload != before
        check(artifact, new, dtype)


def test_some_weights_of_a_refittable_plan(make_machine):
    make_machine()
    old = weights()
    new = {"shift": torch.randn(5, 2)[:, 0]}  # strided
    check(refit_plan(make(old, refittable=True), new, DEVICE), {**old, **new})


def test_an_older_library_has_no_flag_for_it(make_machine, monkeypatch):
    machine = make_machine()
    monkeypatch.setattr(machine.module, "SerializationFlag", object())
    artifact = refit_plan(make(weights(), refittable=True), weights(5.0), DEVICE)
    assert not json.loads(artifact.payload)["refittable"]


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_a_weightless_plan_is_filled_at_load_and_takes_new_weights(make_machine, dtype):
    machine = make_machine()
    old = weights(dtype=dtype)
    artifact = make(old, dtype, weightless=True)
    artifact.tensors["constant_0"] = torch.ones(2)  # not a weight
    check(artifact, old, dtype)
    assert machine.module.calls == ["deserialize", "create_execution_context"]
    new = weights(7.0, dtype)
    refitted = refit_plan(artifact, new, DEVICE)
    assert refitted.payload == artifact.payload
    assert set(refitted.tensors) == {"scale", "shift", "constant_0"}
    check(refitted, new, dtype)
    check(artifact, old, dtype)


def test_a_weightless_plan_whose_stored_weights_do_not_fit(make_machine):
    make_machine()
    for change in ({"scale": None}, {"shift": torch.randn(6)}, {"shift": torch.randn(5).half()}):
        artifact = make(weights(), weightless=True)
        for name, value in change.items():
            del artifact.tensors[name]
            if value is not None:
                artifact.tensors[name] = value
        with pytest.raises(CorruptEngineFile, match=f"stored weights do not fit the plan: refit: .*{next(iter(change))}"):
            load(artifact, DEVICE, None)


def test_a_plan_that_takes_no_new_weights(make_machine):
    make_machine()
    with pytest.raises(UserError, match="immutable_weights=False"):
        refit_plan(make(weights()), weights(), DEVICE)


def test_weights_that_do_not_fit_are_named(make_machine):
    make_machine()
    plan, weightless = make(weights(), refittable=True), make(weights(), weightless=True)
    good = weights()
    with pytest.raises(UserError, match=r"no weights bias\. It has: scale, shift"):
        refit_plan(plan, {**good, "bias": torch.ones(1)}, DEVICE)
    with pytest.raises(UserError, match=r"weight shift: expected 5 elements of torch.float32, got shape \(4,\) of torch.float32"):
        refit_plan(plan, {**good, "shift": torch.ones(4)}, DEVICE)
    with pytest.raises(UserError, match=r"weight shift: expected 5 elements of torch.float32, got shape \(5,\) of torch.float16"):
        refit_plan(plan, {**good, "shift": torch.ones(5).half()}, DEVICE)
    with pytest.raises(UserError, match=r"weight shift: expected shape \(5,\), got \(5, 1\)"):
        refit_plan(weightless, {**good, "shift": torch.ones(5, 1)}, DEVICE)
    with pytest.raises(UserError, match="the weights scale are missing"):
        refit_plan(weightless, {"shift": good["shift"]}, DEVICE)


@pytest.mark.parametrize(
    ("refused", "message"),
    [("set_named_weights", "refused weight scale"), ("refit", "could not refit the plan: no memory"), ("serialize", "serialize")],
)
def test_what_the_library_refuses(make_machine, refused, message):
    machine = make_machine()
    machine.module.refuse = {refused}
    with pytest.raises(BuildFailed, match=message):
        refit_plan(make(weights(), refittable=True), weights(), DEVICE)


def test_a_lean_runtime_without_refit(make_machine):
    machine = make_machine()
    machine.flavor = "tensorrt_lean"
    del machine.module.Refitter
    artifact = make(weights(), weightless=True, version_compatible=True)
    with pytest.raises(MissingPackage, match=r"refit: tensorrt_lean .* install the full library"):
        load(artifact, DEVICE, None)


def test_refit_needs_the_gpu():
    with pytest.raises(TargetMismatch, match="expected a CUDA device"):
        refit_plan(make(weights(), refittable=True), weights(), torch.device("cpu"))
