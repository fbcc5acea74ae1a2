"""A stand-in for the tensorrt and tensorrt_rtx modules, and for a GPU: it computes on the CPU, through the addresses it is given.

A plan is JSON (see ``make_plan``). What the real library leaves undefined is an error here: a context used by two threads at once, a shape outside
the profile, shapes not set again after a change of profile, an address that is null or not aligned.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import threading
import time
import types
from contextlib import nullcontext

import torch

from torchkiln.backends.call_plan import CallPlan
from torchkiln.backends.tensorrt.data_types import short_name
from torchkiln.engine.artifact import Artifact

#: The alignment of torch's memory on the CPU.
ALIGNMENT_BYTES = 64
#: Where plans are loaded: FakeGpu takes its place.
DEVICE = torch.device("cuda", 0)

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "FP8", "INT4"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
EngineInvalidityDiagnostics = enum.IntEnum("EngineInvalidityDiagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4})
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
SerializationFlag = enum.Enum("SerializationFlag", ["EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT"])

TORCH = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "FP8": torch.float8_e4m3fn,
}
NAMES = {dtype: name for name, dtype in TORCH.items()}

#: name -> (inputs and weights -> outputs, input shapes -> output shapes)
FUNCTIONS = {
    "double_and_sum": (lambda i, w: [i[0] * 2, i[0].sum(-1)], lambda s: [s[0], s[0][:-1]]),
    "scale": (lambda i, w: [i[0] * w["scale"] + w["shift"]], lambda s: [s[0]]),
    "outer": (lambda i, w: [i[0][:, None] - i[1][None, :]], lambda s: [(s[0][0], s[1][0])]),
}


def make_artifact(function, inputs, outputs, profiles=None, weights=None, library="tensorrt_rtx", version="1.7.1", targets=("sm_89",), **metadata):
    """An artifact whose plan is ``function``. Inputs and outputs: (name, dtype, shape with -1); profiles: [{name: (min, max)}]."""
    used = weights or {}
    plan = {
        "function": function,
        "inputs": [[n, NAMES[d], list(s)] for n, d, s in inputs],
        "outputs": [[n, NAMES[d], list(s)] for n, d, s in outputs],
        "profiles": [{n: [list(low), list(low), list(high)] for n, (low, high) in p.items()} for p in profiles or [{}]],
        "weights": {n: {"dtype": NAMES[t.dtype], "size": t.numel(), "values": t.double().tolist()} for n, t in used.items()},
        "refittable": metadata.get("refittable", False),
        "weightless": metadata.get("weightless", False),
        "host": metadata.pop("host", []),
    }
    call_plan = CallPlan(len(inputs), tuple(range(len(inputs))), tuple(("result", i) for i in range(len(outputs))))
    data = {
        "library": library,
        "version": version,
        "targets": list(targets),
        "call_plan": call_plan.as_json(),
        "inputs": [{"name": n, "dtype": short_name(d), "shape": list(s)} for n, d, s in inputs],
        "outputs": [{"name": n, "dtype": short_name(d), "shape": list(s)} for n, d, s in outputs],
        **metadata,
    }
    tensors = {}
    if plan["weightless"]:
        tensors = dict(used)
        for weight in plan["weights"].values():
            weight["values"] = None
    return Artifact(json.dumps(plan).encode(), tensors, data, native_code=True)


class FakeLibrary:
    """The module. ``calls`` has what was done in order; the flags make it refuse."""

    def __init__(self, flavor="tensorrt_rtx"):
        self.calls = []
        self.validity = (EngineValidity.VALID, 0)
        self.refuse = set()
        self.engines = []
        self.contexts = []
        self.blobs = []
        self.Runtime = lambda logger: FakeRuntime(self, logger)
        self.Refitter = lambda engine, logger: FakeRefitter(self, engine, logger)
        self.Weights = lambda dtype, address, count: (dtype, address, count)
        for kind in (DataType, TensorIOMode, TensorLocation, SerializationFlag):
            setattr(self, kind.__name__, kind)
        self.is_rtx = flavor == "tensorrt_rtx"
        if self.is_rtx:
            for kind in (EngineValidity, EngineInvalidityDiagnostics, CudaGraphStrategy):
                setattr(self, kind.__name__, kind)


class FakeRuntime:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger
        self.engine_host_code_allowed = False
        if module.is_rtx:
            self.get_engine_validity = lambda plan: module.validity

    def deserialize_cuda_engine(self, payload):
        self.module.calls.append("deserialize")
        if "deserialize" in self.module.refuse:
            self.logger.say("the plan is of version 99")
            return None
        engine = FakeEngine(self.module, json.loads(payload), self.logger)
        self.module.engines.append(engine)
        return engine


class FakeEngine:
    def __init__(self, module, plan, logger):
        self.module, self.plan, self.logger = module, plan, logger
        self.entries = {n: (d, tuple(s), TensorIOMode.INPUT) for n, d, s in plan["inputs"]}
        self.entries |= {n: (d, tuple(s), TensorIOMode.OUTPUT) for n, d, s in plan["outputs"]}
        # The engine's own order is not the file's.
        self.names = sorted(self.entries, reverse=True)
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(plan["profiles"])
        self.weights = {
            n: None if w["values"] is None else torch.tensor(w["values"], dtype=torch.float64).to(TORCH[w["dtype"]])
            for n, w in plan["weights"].items()
        }

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return self.entries[name][2]

    def get_tensor_dtype(self, name):
        return DataType[self.entries[name][0]]

    def get_tensor_shape(self, name):
        return self.entries[name][1]

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name in self.plan["host"] else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name, profile):
        return self.plan["profiles"][profile][name]

    def create_runtime_config(self):
        return FakeConfig(self.module)

    def create_execution_context(self, config=None):
        self.module.calls.append("create_execution_context")
        if "create_execution_context" in self.module.refuse:
            return None
        context = FakeContext(self, config)
        self.module.contexts.append(context)
        return context

    def create_serialization_config(self):
        flags = []
        return types.SimpleNamespace(flags=flags, set_flag=flags.append)

    def serialize_with_config(self, config):
        if "serialize" in self.module.refuse:
            return None
        weights = {n: {**w, "values": self.weights[n].double().tolist()} for n, w in self.plan["weights"].items()}
        keeps = SerializationFlag.INCLUDE_REFIT in config.flags
        return json.dumps({**self.plan, "weights": weights, "refittable": self.plan["refittable"] and keeps}).encode()


class FakeConfig:
    def __init__(self, module):
        self.module = module
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache = None

    def create_runtime_cache(self):
        return FakeCache(self.module)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return "set_runtime_cache" not in self.module.refuse


class FakeCache:
    def __init__(self, module):
        self.module, self.kernels = module, set()

    def deserialize(self, blob):
        self.module.blobs.append(blob)
        if not blob.startswith(b"kernels "):
            return False
        self.kernels = set(json.loads(blob[8:]))
        return True

    def serialize(self):
        return None if "serialize" in self.module.refuse else memoryview(b"kernels " + json.dumps(sorted(self.kernels)).encode())


class FakeContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.module = engine.module
        self.active_optimization_profile = 0
        self.shapes, self.addresses = {}, {}
        self.calls = []
        self.busy = threading.Lock()
        for name, _, shape in engine.plan["inputs"]:
            if -1 not in shape:
                self.shapes[name] = tuple(shape)

    def set_optimization_profile_async(self, profile, stream):
        self.calls.append(("profile", profile, stream))
        self.active_optimization_profile = profile
        self.shapes = {n: tuple(s) for n, _, s in self.engine.plan["inputs"] if -1 not in s}
        return "profile" not in self.module.refuse

    def set_input_shape(self, name, shape):
        self.calls.append(("shape", name, shape))
        low, _, high = self.engine.plan["profiles"][self.active_optimization_profile][name]
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return "shape" not in self.module.refuse

    def infer_shapes(self):
        return [name for name, _, _ in self.engine.plan["inputs"] if name not in self.shapes]

    def get_tensor_shape(self, name):
        names = [n for n, _, _ in self.engine.plan["outputs"]]
        if "data_dependent" in self.module.refuse:
            return (-1,)
        return self._output_shapes()[names.index(name)]

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        assert address % ALIGNMENT_BYTES == 0, name
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream):
        assert self.busy.acquire(blocking=False), "two threads use one context"
        try:
            if "execute" in self.module.refuse:
                self.engine.logger.say("the launch failed")
                return False
            assert all(self.addresses.get(name) for name in self.engine.entries)
            self.calls.append(("execute", stream))
            time.sleep(0.001)  # so that a second thread would come in between
            plan = self.engine.plan
            inputs = [_memory(self.addresses[n], self.shapes[n], TORCH[d]) for n, d, _ in plan["inputs"]]
            results = FUNCTIONS[plan["function"]][0](inputs, self.engine.weights)
            for (name, data_type, _), shape, result in zip(plan["outputs"], self._output_shapes(), results, strict=True):
                _memory(self.addresses[name], shape, TORCH[data_type]).copy_(result)
            if self.config is not None and self.config.cache is not None:
                self.config.cache.kernels.add(str(sorted(self.shapes.items())))
            return True
        finally:
            self.busy.release()

    def _output_shapes(self):
        shapes = [self.shapes[name] for name, _, _ in self.engine.plan["inputs"]]
        return [tuple(shape) for shape in FUNCTIONS[self.engine.plan["function"]][1](shapes)]


class FakeRefitter:
    def __init__(self, module, engine, logger):
        self.module, self.engine, self.logger = module, engine, logger
        self.given = {}

    def get_all_weights(self):
        return list(self.engine.weights) if self.engine.plan["refittable"] or self.engine.plan["weightless"] else []

    def get_weights_prototype(self, name):
        weight = self.engine.plan["weights"][name]
        return types.SimpleNamespace(dtype=DataType[weight["dtype"]], size=weight["size"])

    def set_named_weights(self, name, weights):
        self.given[name] = weights
        return "set_named_weights" not in self.module.refuse

    def get_missing_weights(self):
        return [name for name, value in self.engine.weights.items() if value is None and name not in self.given]

    def refit_cuda_engine(self):
        if "refit" in self.module.refuse:
            self.logger.say("no memory")
            return False
        for name, (dtype, address, count) in self.given.items():
            value = _memory(address, (count,), TORCH[dtype.name]).clone()
            self.engine.weights[name] = value.reshape(()) if count == 1 else value
        return True


def _memory(address, shape, dtype):
    """The memory at ``address`` as a tensor."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8).view(dtype).reshape(shape)


class FakeGpu:
    """A "GPU" whose memory is the CPU's and whose streams write down what they are told."""

    def __init__(self, target="sm_89"):
        self.device = torch.device("cpu")
        self.target, self.name = target, "Fake RTX 4090"
        self.log = []
        self.capturing = False
        self.new_streams = 0
        self.default = FakeStream(self, 0)
        self.local = threading.local()

    def active(self):
        return nullcontext()

    def current_stream(self):
        return getattr(self.local, "stream", self.default)

    def use(self, handle):
        self.local.stream = FakeStream(self, handle) if handle else self.default

    def new_stream(self):
        self.new_streams += 1
        return FakeStream(self, 1000 + self.new_streams)

    def new_event(self):
        return FakeEvent(self)

    def is_capturing(self):
        return self.capturing

    def empty(self, shape, dtype):
        # Not zeros: a call that does not write its outputs must show.
        return torch.empty(tuple(shape), dtype=torch.float32).fill_(77).to(dtype)


class FakeStream:
    def __init__(self, gpu, handle):
        self.gpu, self.cuda_stream = gpu, handle

    def __eq__(self, other):
        return isinstance(other, FakeStream) and self.cuda_stream == other.cuda_stream

    def __hash__(self):
        return hash(self.cuda_stream)

    def wait_stream(self, other):
        self.gpu.log.append(("wait_stream", self.cuda_stream, other.cuda_stream))

    def wait_event(self, event):
        self.gpu.log.append(("wait_event", self.cuda_stream, event.recorded_on))


class FakeEvent:
    def __init__(self, gpu):
        self.gpu, self.recorded_on = gpu, None

    def record(self, stream):
        self.recorded_on = stream.cuda_stream
        self.gpu.log.append(("record", stream.cuda_stream))

    def synchronize(self):
        self.gpu.log.append(("synchronize", self.recorded_on))
