"""Run a suite of workloads through ``torchkiln bench``, one process each, and merge the results into one file.

    python benchmarks/run.py cpu                      -> benchmarks/results/cpu.json and cpu.md
    python benchmarks/run.py h200-first --out DIR     (on the GPU machine)

One process a workload: a compiler's caches and memory of one model do not weigh on the next. All runners of a workload are measured in turn
in that one process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from torchkiln.bench import merge_results, read_json, write_json
from torchkiln.bench.report_markdown import markdown_report
from torchkiln.bench.result import BenchmarkResult

HERE = Path(os.path.relpath(Path(__file__).parent))

#: Processes that build their peers at the same time with --jobs: more take turns on the CPU's cores, and the GPU waits for all.
AT_ONCE = 4


@dataclass
class Workload:
    """One model at one shape, and what differs from the suite's options."""

    model: str
    shape: str
    options: list[str] = field(default_factory=list)


_H200 = ("--device", "cuda", "--backend", "cuda")
#: For large batches, which run long kernels: few configurations, so that a suite stays within a quarter of an hour.
_LEVEL_2 = ["--optimization-level", "2"]

SUITES: dict[str, tuple[list[str], list[Workload]]] = {
    "cpu": (
        [
            *("--precision", "fp32,bf16", "--device", "cpu"),
            # All but compile-max-autotune, which takes minutes to build for each row.
            *("--peers", "eager,eager-channels-last,torchscript-traced,torchscript-scripted,compile,compile-reduce-overhead,onnxruntime,openvino"),
        ],
        [
            Workload("torchvision:resnet34", "2x3x224x224"),
            Workload("torchvision:resnet50", "1x3x224x224"),
            Workload("torchvision:efficientnet_b0", "1x3x224x224"),
            Workload("torchvision:vit_b_16", "1x3x224x224"),
            Workload("torchvision:deeplabv3_mobilenet_v3_large", "1x3x320x320"),
        ],
    ),
    "cpu-int8": (
        [*("--precision", "fp32,bf16,int8", "--device", "cpu", "--peers", "openvino,openvino-nncf,openvino-nncf-bf16")],
        [Workload("torchvision:resnet50", "1x3x224x224"), Workload(f"{HERE / 'models.py'}:bert_base", "1x128x768")],
    ),
    "h200": (
        [
            *("--precision", "fp16", *_H200, "--min-time", "0.6", "--rounds", "5"),
            *("--peers", "eager,cuda-graph-channels-last,torchscript-traced,compile-reduce-overhead"),
        ],
        [
            Workload("torchvision:resnet50", "1x3x224x224"),
            Workload("torchvision:vit_b_16", "1x3x224x224"),
            Workload("torchvision:efficientnet_b0", "1x3x224x224"),
            Workload("torchvision:vit_b_16", "64x3x224x224"),
        ],
    ),
    "h200-more": (
        [
            *("--precision", "fp16", *_H200, "--min-time", "0.4", "--rounds", "4"),
            *("--peers", "cuda-graph-channels-last,torchscript-traced,compile-reduce-overhead"),
        ],
        [
            Workload("torchvision:resnet34", "2x3x224x224"),
            Workload("torchvision:resnet101", "1x3x160x160"),
            Workload("torchvision:resnet101", "1x3x320x320"),
            Workload("torchvision:resnet101", "1x3x640x640"),
            Workload("torchvision:resnet50", "128x3x224x224", _LEVEL_2),
            Workload("torchvision:efficientnet_b0", "128x3x224x224", _LEVEL_2),
            Workload(f"{HERE / 'models.py'}:unet", "1x3x512x512"),
            Workload("torchvision:deeplabv3_resnet50", "1x3x512x512"),
            Workload(f"{HERE / 'models.py'}:swin_unetr", "8x1x96x96x96", _LEVEL_2),
            Workload(f"{HERE / 'models.py'}:swin_unetr", "1x1x96x96x96"),
        ],
    ),
    "h200-bf16": (
        [*("--precision", "bf16", *_H200, "--min-time", "0.5", "--rounds", "3"), *("--peers", "eager,compile-reduce-overhead")],
        [Workload("torchvision:resnet50", "1x3x224x224"), Workload("torchvision:vit_b_16", "1x3x224x224")],
    ),
    "h200-fp32": (
        [*("--precision", "fp32", "--no-tf32", *_H200, "--min-time", "0.5", "--rounds", "3"), *("--peers", "eager,compile-reduce-overhead")],
        [Workload("torchvision:resnet50", "1x3x224x224"), Workload("torchvision:vit_b_16", "1x3x224x224")],
    ),
    "h200-tf32": (
        [*("--precision", "fp32", "--tf32", *_H200, "--min-time", "0.5", "--rounds", "3"), *("--peers", "eager,compile-reduce-overhead")],
        [Workload("torchvision:resnet50", "1x3x224x224"), Workload("torchvision:vit_b_16", "1x3x224x224")],
    ),
    "h200-first": (
        [
            *("--precision", "fp16", "--device", "cuda", "--backend", "inductor"),
            *("--peers", "eager-channels-last,cuda-graph-channels-last,torchscript-traced,compile-reduce-overhead"),
        ],
        [
            Workload("torchvision:efficientnet_b0", "1x3x224x224"),
            Workload("torchvision:efficientnet_b0", "128x3x224x224"),
            Workload("torchvision:resnet50", "1x3x224x224"),
            Workload("torchvision:resnet50", "128x3x224x224"),
            Workload("torchvision:resnet34", "2x3x224x224"),
            Workload("torchvision:resnet101", "1x3x160x160"),
            Workload("torchvision:resnet101", "1x3x320x320"),
            Workload("torchvision:resnet101", "1x3x640x640"),
            Workload("torchvision:vit_b_16", "1x3x224x224"),
            Workload("torchvision:vit_b_16", "64x3x224x224"),
            Workload(f"{HERE / 'models.py'}:swin_unetr", "1x1x96x96x96"),
            Workload(f"{HERE / 'models.py'}:swin_unetr", "8x1x96x96x96"),
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a benchmark suite through torchkiln bench. Options not listed here go to torchkiln bench.")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON and Markdown")
    parser.add_argument("--only", default="", help="workloads whose model or shape contains this text")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no workload after this many seconds")
    parser.add_argument("--jobs", action="store_true", help="build the peers of four workloads at once; tune and measure in turns (in_turns.py)")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results of earlier runs on this machine to put in the same file")
    args, args.options = parser.parse_known_args()
    args.failed = False
    shared, workloads = SUITES[args.suite]
    args.out.mkdir(parents=True, exist_ok=True)
    results = [read_json(path) for path in args.merge]
    # Beside the result: a run that is stopped leaves what it has measured there, for --merge.
    parts = Path(tempfile.mkdtemp(prefix=f"parts-{args.suite}-", dir=args.out))
    results += (measure_in_turns if args.jobs else measure)(shared, workloads, args, parts)
    merged = merge_results(results)
    write_json(merged, args.out / f"{args.suite}.json")
    (args.out / f"{args.suite}.md").write_text(markdown_report(merged))
    shutil.rmtree(parts)
    print(f"{len(merged.rows)} rows in {args.out / (args.suite + '.json')}")
    sys.exit(1 if args.failed else 0)


def measure(shared: list[str], workloads: list[Workload], args: argparse.Namespace, parts: Path) -> list[BenchmarkResult]:
    """Run each workload in a process of its own; the results of those that finished."""
    start = time.monotonic()
    for number, workload in enumerate(workloads):
        if args.only not in f"{workload.model} {workload.shape}":
            continue
        if time.monotonic() - start > args.limit_s:
            print(f"not started, out of time: {workload.model} {workload.shape}", flush=True)
            args.failed = True
            continue
        print(f"[{time.monotonic() - start:6.0f} s] {workload.model} {workload.shape}", flush=True)
        command = [sys.executable, "-m", "torchkiln", "bench", workload.model, "--shape", workload.shape]
        command += [*shared, *workload.options, *args.options, "--json", os.path.relpath(parts / f"{number:02d}.json")]
        if subprocess.run(command, check=False).returncode:
            print(f"FAILED: {workload.model} {workload.shape}", flush=True)
            args.failed = True
    return [read_json(path) for path in sorted(parts.glob("*.json"))]


def measure_in_turns(shared: list[str], workloads: list[Workload], args: argparse.Namespace, parts: Path) -> list[BenchmarkResult]:
    """AT_ONCE workloads at a time, each in a process that waits for its turn; those that have not finished after ``--limit-s`` are stopped."""
    chosen = [w for w in workloads if args.only in f"{w.model} {w.shape}"]
    end = time.monotonic() + min(args.limit_s, 24 * 3600)
    for start in range(0, len(chosen), AT_ONCE):
        if time.monotonic() > end:
            print(f"not started, out of time: {', '.join(f'{w.model} {w.shape}' for w in chosen[start:])}", flush=True)
            args.failed = True
            break
        folder = parts / str(start)
        folder.mkdir()
        _measure_group(shared, chosen[start : start + AT_ONCE], args, folder, end)
    return [read_json(path) for path in sorted(parts.glob("*/*.json"), key=lambda path: (int(path.parent.name), path.name))]


def _measure_group(shared: list[str], workloads: list[Workload], args: argparse.Namespace, folder: Path, end: float) -> None:
    processes = []
    for number, workload in enumerate(workloads):
        command = [sys.executable, str(HERE / "in_turns.py"), str(folder), str(number), str(len(workloads)), "--", workload.model]
        command += ["--shape", workload.shape, "--max-build", "3600", *shared, *workload.options, *args.options]
        command += ["--json", os.path.relpath(folder / f"{number:02d}.json")]
        processes.append(subprocess.Popen(command))
    for workload, process in zip(workloads, processes, strict=True):
        try:
            failed = process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            failed = True
        if failed:
            print(f"FAILED or out of time: {workload.model} {workload.shape}", flush=True)
            args.failed = True


if __name__ == "__main__":
    main()
