"""The bytes of a plan: what is written is read back, and nothing else is taken for a plan."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from torchkiln.backends.cuda.plan import (
    PLAN_VERSION,
    Bundle,
    Code,
    KernelStep,
    Plan,
    Step,
    StepInfo,
    Tensor,
    TorchStep,
    decode_argument,
    decode_bundle,
    encode_argument,
    encode_bundle,
)
from torchkiln.backends.cuda.recipe import Ref, TensorSpec, channels_last_strides
from torchkiln.errors import BuildFailed, CorruptEngineFile

HALF = TensorSpec((2, 3, 4, 5), channels_last_strides((2, 3, 4, 5)), torch.float16)
FLAT = TensorSpec.contiguous((120,), torch.float32)


def bundle() -> Bundle:
    plan = Plan(
        inputs=(HALF,),
        outputs=(FLAT,),
        output_tensors=(2,),
        tensors=[Tensor("input", 0, 0, HALF), Tensor("arena", 0, 512, HALF), Tensor("output", 0, 0, FLAT), Tensor("constant", 1, 7, FLAT)],
        steps=[
            Step(KernelStep(1, (132, 2, 1), (0, 1, 3)), 0),
            Step(
                TorchStep("aten.clamp.out", (Ref("1", (120,), (1,), 3), float("-inf"), [None, True]), (("dtype", torch.float32),), (2, -1), True),
                1,
                1,
                (0,),
            ),
        ],
        infos=[
            StepInfo("stem: conv+relu", "conv", "conv_gemm", {"BM": 64, "pipelined": True}, (2, 3, 4, 5), "float16", 480, 9600, 3.25, "tf32"),
            StepInfo("clamp", "aten.clamp.default", "torch", {}, (120,), "float32", 960, 0, None),
        ],
        constants=["weight", "weight.packed0"],
        arena_bytes=1024,
        tensor_bytes=2048,
        counters=6,
        streams=2,
        measured=((1, 20.5), (2, 19)),
    )
    codes = [Code(b"\x7fELF first", "k", 128, 0, False, True), Code(b"\x00second", "k2", 256, 90000, True, False)]
    return Bundle([plan, plan], codes, {"compute_capability": [9, 0], "gpu": "made up"}, (1, 8), (True,), [("pool", "too large")])


def parts(payload: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", payload[:8])
    return json.loads(payload[8 : 8 + size]), payload[8 + size :]


def joined(header: object, blobs: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + blobs


def test_round_trip():
    # args are decoded as tuples at the top and as lists inside, as operators take them
    assert decode_bundle(encode_bundle(bundle())) == bundle()


def test_the_same_plan_has_the_same_bytes():
    payload = encode_bundle(bundle())
    assert encode_bundle(decode_bundle(payload)) == payload


def test_cut_anywhere():
    payload = encode_bundle(bundle())
    for size in range(len(payload)):
        with pytest.raises(CorruptEngineFile, match="cuda plan"):
            decode_bundle(payload[:size])


def test_another_version():
    header, blobs = parts(encode_bundle(bundle()))
    header["version"] = PLAN_VERSION + 1
    with pytest.raises(CorruptEngineFile, match=f"version {PLAN_VERSION + 1}, this torchkiln reads {PLAN_VERSION}: build the engine again"):
        decode_bundle(joined(header, blobs))


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(header):
        for key in path:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("codes", 0, "all_shared", "no"),
        _set("codes", 0, "overlaps", 1),
        _set("codes", 0, "threads", "128"),
        _set("codes", 0, "threads", 0),
        _set("codes", 0, "threads", 4096),
        _set("codes", 0, "shared_bytes", -1),
        _set("codes", 0, "name", 5),
        _set("plans", None),
        _set("plans", 0, "tensors", [["elsewhere", 0, 0, [1], [1], "float16"]]),
        _set("plans", 0, "tensors", 0, 5, "float17"),
        _set("plans", 0, "inputs", 0, [1, 2]),
        _set("plans", 0, "steps", 0, 0, ["kernel", 1]),
        _set("plans", 0, "steps", 0, 0, 0, "sideways"),
        _set("plans", 0, "steps", 0, 0, 2, [1, 1]),
        _set("plans", 0, "infos", 0, "speed", 9),
        *[_set("plans", 0, "streams", streams) for streams in (0, 1, 5, 2.0, True, None)],
        *[_set("plans", 0, "steps", 1, 2, stream) for stream in (-1, 2, 1.0, True, "1")],
        *[_set("plans", 0, "steps", 1, 3, waits) for waits in ([1], [-1], [0.0], [False], [[0]], 0)],
        _set("plans", 0, "steps", 1, 2, 0),  # waits for a step of its own stream
        _set("plans", 0, "steps", 1, 0, 5, False),  # allocates on a side stream
        *[_set("plans", 0, "measured", measured) for measured in (3, [3], [[1]], [["1", 2.0]], [[1, "2"]], [[1, None]])],
        _set("codes", 0, "size", 10**9),
        _set("codes", 0, "registers", 7),
        _set("rejects", [["where"]]),
    ],
)
def test_malformed(change):
    header, blobs = parts(encode_bundle(bundle()))
    change(header)
    with pytest.raises(CorruptEngineFile, match="cuda plan"):
        decode_bundle(joined(header, blobs))


@pytest.mark.parametrize("name", ["version", "target", "batch_sizes", "dynamic_outputs", "rejects", "codes", "plans"])
def test_missing(name):
    header, blobs = parts(encode_bundle(bundle()))
    del header[name]
    with pytest.raises(CorruptEngineFile, match=f"cuda plan.*{name}"):
        decode_bundle(joined(header, blobs))


@pytest.mark.parametrize("header", [[], 3, "version", None, {}])
def test_a_header_of_another_kind(header):
    with pytest.raises(CorruptEngineFile, match="not what torchkiln writes"):
        decode_bundle(joined(header, b""))


def test_a_header_that_is_no_json():
    with pytest.raises(CorruptEngineFile, match="not what torchkiln writes"):
        decode_bundle(struct.pack("<Q", 4) + b"\xff\xfe{}")


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "mean", float("inf"), float("-inf"), torch.bfloat16, [1, [Ref("2", (3,), (1,), 4), None]]])
def test_arguments(value):
    stored = json.loads(json.dumps(encode_argument(value)))
    got = decode_argument(stored)
    assert got == value
    assert type(got) is type(value)


def test_an_argument_that_cannot_be_kept():
    with pytest.raises(BuildFailed, match="type device cannot be kept"):
        encode_argument(torch.device("cpu"))
