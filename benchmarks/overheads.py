"""What torchkiln costs around the model: import, build, load and call overhead, for ResNet-50 on the CPU.

    python benchmarks/overheads.py        -> benchmarks/results/cpu-overheads.json

Each figure comes with how it was taken. Import and load are taken in fresh processes, the lowest of three.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import torchkiln
from torchkiln.bench.environment import describe_environment

RESULT = Path(__file__).parent / "results/cpu-overheads.json"

IMPORT = "import torch, time; t = time.perf_counter(); import torchkiln; torchkiln.load; print(time.perf_counter() - t)"
LOAD = """
import sys, time, torch, torchkiln
x = torch.randn(1, 3, 224, 224)
t = time.perf_counter()
engine = torchkiln.load(sys.argv[1])
loaded = time.perf_counter() - t
engine(x)
print(loaded, time.perf_counter() - t)
"""


def main() -> None:
    model = torchvision.models.resnet50(weights=None).eval()
    start = time.perf_counter()
    engine = torchkiln.compile(model, [torchkiln.Input((1, 3, 224, 224))], enabled_precisions={torch.float32, torch.bfloat16})
    build_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.kiln"
        engine.save(path)
        size_bytes = path.stat().st_size
        loads = [tuple(map(float, run(LOAD, str(path)).split())) for _ in range(3)]
    figures = {
        "environment": describe_environment(torch.device("cpu"), torch.get_num_threads()),
        "command": "python benchmarks/overheads.py",
        "model": "torchvision resnet50, 1x3x224x224, fp32 and bf16 allowed",
        "kept": f"{engine.report().backend} {engine.report().precision}",
        "relative_error": engine.report().parity.relative_error,
        "import_s": min(float(run(IMPORT)) for _ in range(3)),
        "build_s": build_s,
        "file_bytes": size_bytes,
        "load_s": min(load for load, _ in loads),
        "load_and_first_call_s": min(first for _, first in loads),
        "call_overhead_us": call_overhead_us(),
    }
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "environment"}, indent=1))


def run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def call_overhead_us() -> dict[str, float]:
    """A model so small that the call is nearly all overhead: the engine's call, against OpenVINO's own on an InferRequest with its tensors bound."""
    small = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU()).eval()
    x = torch.randn(1, 16)
    engine = torchkiln.compile(small, [x], backend="openvino")
    runner = engine.runners[0]
    request = _bound_request(engine, x)
    engine_us, own_us = median_us(lambda: engine(x)), median_us(request)
    return {
        "engine_us": engine_us,
        "openvino_infer_us": own_us,
        "overhead_us": engine_us - own_us,
        "of_that_above_the_runner_us": engine_us - median_us(lambda: runner([x])),
    }


def _bound_request(engine: torchkiln.Engine, x: torch.Tensor) -> Callable[[], object]:
    from torchkiln.backends.openvino.library import import_openvino
    from torchkiln.backends.openvino.runtime import compile_ir

    artifact = engine.contents.segments[0].artifact
    request = compile_ir(artifact, "fp32", None, {}).create_infer_request()
    held = import_openvino().Tensor(x.numpy(), shared_memory=True)
    request.set_input_tensor(0, held)
    return lambda held=held: request.infer(share_outputs=True)


def median_us(call: Callable[[], object], count: int = 20_000) -> float:
    samples = []
    for _ in range(count):
        start = time.perf_counter_ns()
        call()
        samples.append(time.perf_counter_ns() - start)
    return statistics.median(samples) / 1e3


if __name__ == "__main__":
    main()
