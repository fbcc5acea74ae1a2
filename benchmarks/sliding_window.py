"""torchkiln's sliding windows beside MONAI's, in turns in one process, with the same predictor.

python benchmarks/sliding_window.py [--device cuda] [--turns 7] [--replicas 2]

First with a predictor that costs next to nothing, so that what is measured is the cutting and blending of windows; then with a small network.
Milliseconds a volume, the lowest and the median of the turns, and the largest difference between the two results. Needs MONAI.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torchkiln


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    roi_size: tuple[int, ...]
    batch: int
    overlap: float
    mode: str
    channels: int

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, windows {'x'.join(map(str, self.roi_size))} by {self.batch}, overlap {self.overlap}, {self.mode}"


CASES = [
    Case((1, 1, 1024, 1024), (128, 128), 16, 0.5, "gaussian", 2),
    Case((1, 1, 192, 192, 160), (64, 64, 64), 4, 0.5, "gaussian", 3),
    Case((1, 1, 192, 192, 160), (96, 96, 96), 4, 0.25, "constant", 3),
]


def make_net(case: Case) -> nn.Module:
    conv = nn.Conv3d if len(case.roi_size) == 3 else nn.Conv2d
    torch.manual_seed(0)
    return nn.Sequential(conv(1, 8, 3, padding=1), nn.ReLU(), conv(8, case.channels, 3, padding=1)).eval().requires_grad_(False)


def time_ms(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def measure(case: Case, name: str, runners: dict[str, Callable[[], torch.Tensor]], turns: int, device: str) -> None:
    results = [run() for run in runners.values()]  # warm-up
    difference = max(float((result - results[0]).abs().max()) for result in results)
    times: dict[str, list[float]] = {runner: [] for runner in runners}
    for _ in range(turns):
        for runner, run in runners.items():
            times[runner].append(time_ms(run, device))
    figures = "; ".join(f"{runner} {min(taken):.2f} ms (median {statistics.median(taken):.2f})" for runner, taken in times.items())
    print(f"{case}; {name}: {figures}; largest difference {difference:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--replicas", type=int, default=0, help="measure a pool of so many replicas too (on GPUs, one each)")
    options = parser.parse_args()
    from monai.inferers import sliding_window_inference as monai

    ours = torchkiln.sliding_window_inference
    for case in CASES:
        volume = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(options.device)
        how = (case.roi_size, case.batch)
        blend = {"overlap": case.overlap, "mode": case.mode}
        net = make_net(case).to(options.device)
        window = torchkiln.Input((case.batch, 1, *case.roi_size))
        engine = torchkiln.compile(net, inputs=[window], backend="auto" if options.device == "cuda" else "openvino")
        devices = [f"cuda:{index}" for index in range(options.replicas)] if options.device == "cuda" else ["cpu"] * options.replicas

        def cheap(windows: torch.Tensor, channels: int = case.channels) -> torch.Tensor:
            return windows.repeat(1, channels, *[1] * (windows.dim() - 2))

        def two(predictor: Any, reference: Any, volume: torch.Tensor = volume, how: Any = how, blend: Any = blend) -> dict[str, Callable[[], Any]]:
            return {"MONAI": lambda: monai(volume, *how, reference, **blend), "torchkiln": lambda: ours(volume, *how, predictor, **blend)}

        with torch.no_grad():
            measure(case, "copies", two(cheap, cheap), options.turns, options.device)
            measure(case, "network in PyTorch", two(net, net), options.turns, options.device)
            measure(case, "engine, MONAI with PyTorch", two(engine, net), options.turns, options.device)
            if options.replicas:
                with torchkiln.replicate(engine, devices) as pool:
                    measure(case, f"{options.replicas} replicas, MONAI with PyTorch", two(pool, net), options.turns, options.device)


if __name__ == "__main__":
    main()
