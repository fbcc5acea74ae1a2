"""What an engine call costs over the bare replay of its CUDA graph. Needs a CUDA GPU.

    python benchmarks/host_overhead.py        -> benchmarks/results/cuda-host-overhead.json

Ways of calling: with fresh inputs and outputs; with the graph's own (`input buffers`, `static outputs`); `copies`: with fresh ones that are copied in
and out rather than read and written where they are.

Times are medians in microseconds of single calls, each between two synchronisations and in turns with the bare replay: `wall` until the GPU is done,
`issue` until the call returns. `parts` are times until the part returns, one after another with the GPU idle: what a call is made of.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import torchkiln
from torchkiln.bench.environment import describe_environment

RESULT = Path(__file__).parent / "results/cuda-host-overhead.json"
TARGET_US = 15


class Small(torch.nn.Module):
    """A graph of two kernels: next to nothing but the call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


class Several(torch.nn.Module):
    """Three inputs, three outputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + y, y * z, (x - z).relu()


class Deep(torch.nn.Module):
    """A hundred kernels on an image: long enough for the GPU to hide what the CPU does after the launch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(50)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, nargs="*", default=[], help="engine files to measure besides")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    models: dict[str, tuple[torch.nn.Module, list[tuple[int, ...]]]] = {
        "one linear, 8x64": (Small(), [(8, 64)]),
        "three inputs, three outputs, 8x64": (Several(), [(8, 64)] * 3),
        "50 convolutions, 1x3x224x224": (Deep(), [(1, 3, 224, 224)]),
    }
    results = []
    for name, (model, shapes) in models.items():
        model = model.eval().to(device, torch.float16)
        inputs = [torchkiln.Input(shape, dtype=torch.float16) for shape in shapes]
        engine = torchkiln.compile(model, inputs, enabled_precisions={torch.float16}, backend="torch", device=device)
        assert isinstance(engine, torchkiln.Engine)
        results.append({"name": name, **measure(engine, options.calls)})
    for path in options.engine:
        results.append({"name": path.name, **measure(torchkiln.load(path, device), options.calls)})
    for result in results:
        print(json.dumps(result, indent=1))
    figures = {
        "environment": describe_environment(device, torch.get_num_threads()),
        "command": "python benchmarks/host_overhead.py",
        "target_us": TARGET_US,
        "results": results,
    }
    options.output.write_text(json.dumps(figures, indent=1) + "\n")


def measure(engine: torchkiln.Engine, calls: int) -> dict[str, Any]:
    """The engine's call at its opt shapes in every way it can be made, beside the bare replay."""
    if engine.cuda_graph_note:
        return {"skipped": engine.cuda_graph_note}
    tensors = [spec.random(device=engine.device) for spec in engine.inputs]
    buffers = engine.input_buffers
    args, kwargs = _arguments(engine, tensors)
    own_args, own_kwargs = _arguments(engine, buffers)
    runner: Any = engine._run
    plan = runner._plans[tuple(tensor.shape for tensor in tensors)]
    captured = plan.captured
    pointers = captured.pointers
    # A second set, so that a call's inputs are not where the last call's were.
    others = [_arguments(engine, [tensor.clone() for tensor in tensors]), (args, kwargs)]

    def call_others() -> object:
        others.reverse()
        other_args, other_kwargs = others[0]
        return engine(*other_args, **other_kwargs)

    def prepare(static: bool, in_place: bool) -> None:
        engine.static_outputs = static
        captured.pointers = pointers
        captured.bind(captured.own)
        captured.graph.replay()  # the first launch after addresses were set is another matter
        captured.pointers = pointers if in_place else None

    #: Static outputs, in place, what is timed.
    ways: dict[str, tuple[bool, bool, Callable[[], object]]] = {
        "bare replay": (False, True, captured.graph.replay),
        "call": (False, True, call_others),
        "call, copies": (False, False, call_others),
        "call, input buffers": (False, True, lambda: engine(*own_args, **own_kwargs)),
        "call, static outputs": (True, True, call_others),
        "call, static outputs, copies": (True, False, call_others),
        "call, input buffers, static outputs": (True, True, lambda: engine(*own_args, **own_kwargs)),
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for index in range(calls + 50):
        for name, (static, in_place, call) in ways.items():
            prepare(static, in_place)
            sample = _time(call)
            if index >= 50:
                samples[name].append(sample)
    prepare(False, True)
    bare = [statistics.median(times) for times in zip(*samples["bare replay"], strict=True)]
    table = {}
    for name, pairs in samples.items():
        issue, wall = (statistics.median(times) for times in zip(*pairs, strict=True))
        table[name] = {"issue_us": round(issue, 2), "wall_us": round(wall, 2), "wall_over_bare_us": round(wall - bare[1], 2)}
    return {"copied": captured.note, "ways": table, "parts_us": _parts(engine, runner, plan, tensors, (args, kwargs), calls)}


def _parts(engine: torchkiln.Engine, runner: Any, plan: Any, tensors: Sequence[torch.Tensor], call: Any, calls: int) -> dict[str, float]:
    stream = torch.cuda.current_stream()
    index = engine.device.index
    captured = plan.captured
    # Only what may be moved is: alternately to other memory and back.
    own, elsewhere = captured.own, list(captured.own)
    held = []
    for place in (*captured.movable_inputs, *[len(captured.inputs) + number for number in captured.movable_outputs]):
        held.append(torch.empty_like((*captured.inputs, *captured.tensors)[place]))
        elsewhere[place] = held[-1].data_ptr()
    turns = [own, elsewhere]

    def set_addresses() -> None:
        turns.reverse()
        captured.bind(turns[0])

    parts: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "flatten": lambda: engine._flatten(call),
        "check": lambda: engine._check(tensors),
        "current device": torch._C._cuda_getDevice,
        "is capturing": torch._C._cuda_isCurrentStreamCapturing,
        "current stream": lambda: torch._C._cuda_getCurrentRawStream(index),
        "set addresses": set_addresses,
        "allocate outputs": lambda: [torch.empty_like(tensor) for tensor in captured.tensors],
        "copy inputs": lambda: plan.load(tensors),
        "replay": captured.graph.replay,
        "copy outputs": plan.fresh_outputs,
        "record event": lambda: runner._done.record(stream),
    }
    with torch.no_grad():
        times = {name: round(statistics.median(_time(part)[0] for _ in range(calls)), 2) for name, part in parts.items()}
    captured.bind(own)
    return times


def _time(call: Callable[[], object]) -> tuple[float, float]:
    """Microseconds until ``call`` returns, and until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    kept = call()
    issued = time.perf_counter_ns()
    torch.cuda.synchronize()
    done = time.perf_counter_ns()
    del kept
    return (issued - start) / 1e3, (done - start) / 1e3


def _arguments(engine: torchkiln.Engine, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = engine.contents.args_structure.unflatten(tensors)
    return args, kwargs


if __name__ == "__main__":
    main()
