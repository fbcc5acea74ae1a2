"""The whole way in one script: compile ResNet-34, check it, save it, load it in a fresh process, and benchmark it against its peers.

    python examples/demo.py [--report DIR] [--device cpu|cuda] [--quick]

``make demo`` runs it. The model has random (seeded) weights: speed and agreement with PyTorch do not depend on them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from rich.console import Console
from rich.table import Table

import torchkiln
from torchkiln.bench import BenchmarkModel, BenchmarkRequest, print_table, run_benchmark, write_report
from torchkiln.bench.report_markdown import speed_up_lines
from torchkiln.bench.result import Row
from torchkiln.cli.console import watch

SHAPE = (2, 3, 224, 224)

LOAD_AND_RUN = """
import sys, time, torch
start = time.perf_counter()
import torchkiln
engine = torchkiln.load(sys.argv[1], trusted=True)
loaded = time.perf_counter()
x, expected = torch.load(sys.argv[2], weights_only=True)
y = engine(x.to(engine.device)).cpu()
error = ((y.double() - expected.double()).norm() / expected.double().norm()).item()
print(f"loaded in {loaded - start:.2f} s without the model's source; relative error against PyTorch {error:.1e}")
"""


def main() -> None:
    options = read_options()
    console = Console()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    low = torch.float16 if device == "cuda" else torch.bfloat16
    torch.manual_seed(0)
    model = torchvision.models.resnet34(weights=None).eval().to(device)
    peers = "seed" if options.quick else ("seed", "eager-channels-last", "compile", "onnxruntime", "openvino")

    console.print(f"On two CPU cores this takes about {'one minute' if options.quick else 'three minutes; with --quick, one'}.")
    console.rule("1. compile")
    with watch("compiling resnet34"):
        engine = torchkiln.compile(model, inputs=[torchkiln.Input(SHAPE)], enabled_precisions={torch.float32, low})
    console.print(str(engine.report()), markup=False, highlight=False, soft_wrap=True)

    console.rule("2. save, and load in a fresh process")
    with tempfile.TemporaryDirectory() as folder:
        path, sample = Path(folder) / "resnet34.kiln", Path(folder) / "sample.pt"
        engine.save(path)
        x = torch.randn(SHAPE)
        with torch.inference_mode():
            torch.save((x, model(x.to(device)).cpu()), sample)
        console.print(f"saved {path.name}, {path.stat().st_size / 1e6:.1f} MB")
        subprocess.run([sys.executable, "-c", LOAD_AND_RUN, path, sample], check=True)

    console.rule("3. benchmark, every runner in turn in one process")
    request = BenchmarkRequest(
        # Without an engine, the benchmark builds one for each precision and one for both.
        models=[BenchmarkModel("resnet34", model, [torchkiln.Input(SHAPE)], engine=engine if options.quick else None)],
        precisions=(torch.float32, low),
        device=device,
        peers=peers,
        min_time_s=0.5 if options.quick else 2.0,
        progress=True,
    )
    result = run_benchmark(request)
    print_table(result, console)
    console.print(speed_ups(result.rows))

    folder = Path(options.report)
    write_report(result, folder)
    console.print(f"\nReport: {folder / 'report.md'} (tables), {folder}/*.png (charts), {folder / 'results.json'} (every figure)")


def speed_ups(rows: list[Row]) -> Table:
    """The table that articles close with: average time, iterations a second, and the engines' speed-ups."""
    header, lines = speed_up_lines(rows)
    table = Table(*header, title="Speed-ups, by average times", title_justify="left")
    for line in lines:
        table.add_row(*line)
    return table


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile ResNet-34, check it, save and load it, benchmark it.")
    parser.add_argument("--report", default="report", help="folder for the report (default: report)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--quick", action="store_true", help="fewer peers and shorter measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
