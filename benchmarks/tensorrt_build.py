"""Build every family of torchvision's models, and MONAI's SwinUNETR, for GPUs that this machine need not have, and check each converted graph.

    python benchmarks/tensorrt_build.py                 -> benchmarks/results/tensorrt-build.json and tensorrt-build.md
    python benchmarks/tensorrt_build.py --only swin     (models whose name contains this text; the other rows of the file are kept)

One process a model. Nothing is run on a GPU: the ONNX graph that TensorRT builds from is run by ONNX Runtime on the CPU and compared with PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(os.path.relpath(Path(__file__).parent))
RESULT = HERE / "results/tensorrt-build.json"
TARGETS = ("sm_86", "sm_89", "sm_120")
IMAGE = "1x3x224x224"

#: MODEL -> the shape of its input.
MODELS = {
    "torchvision:alexnet": IMAGE,
    "torchvision:squeezenet1_1": IMAGE,
    "torchvision:vgg11_bn": IMAGE,
    "torchvision:resnet18": IMAGE,
    "torchvision:resnet50": IMAGE,
    "torchvision:densenet121": IMAGE,
    "torchvision:mobilenet_v2": IMAGE,
    "torchvision:mobilenet_v3_large": IMAGE,
    "torchvision:shufflenet_v2_x1_0": IMAGE,
    "torchvision:mnasnet1_0": IMAGE,
    "torchvision:efficientnet_b0": IMAGE,
    "torchvision:efficientnet_v2_s": IMAGE,
    "torchvision:regnet_y_400mf": IMAGE,
    "torchvision:resnext50_32x4d": IMAGE,
    "torchvision:wide_resnet50_2": IMAGE,
    "torchvision:convnext_tiny": IMAGE,
    "torchvision:swin_t": IMAGE,
    "torchvision:swin_v2_t": IMAGE,
    "torchvision:vit_b_16": IMAGE,
    "torchvision:maxvit_t": IMAGE,
    "torchvision:inception_v3": "1x3x299x299",
    "torchvision:googlenet": IMAGE,
    "torchvision:fcn_resnet50": "1x3x256x256",
    "torchvision:deeplabv3_resnet50": "1x3x256x256",
    "torchvision:deeplabv3_mobilenet_v3_large": "1x3x256x256",
    "torchvision:lraspp_mobilenet_v3_large": "1x3x256x256",
    f"{HERE / 'models.py'}:swin_unetr": "1x1x96x96x96",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name contains this text")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file; the Markdown goes beside it")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(build(arguments.worker, MODELS[arguments.worker])))
        return
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.only and arguments.out.exists() else []
    rows = {row["model"]: row for row in kept}
    for model in MODELS:
        if arguments.only in model:
            start = time.perf_counter()
            rows[model] = run_worker(model)
            print(f"{model}: {rows[model]['status']}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    result = {"environment": environment(), "command": "python benchmarks/tensorrt_build.py", "targets": list(TARGETS), "precision": "fp16"}
    result["rows"] = [rows[model] for model in MODELS if model in rows]
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def run_worker(model: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--worker", model], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"model": model, "shape": MODELS[model], "status": f"failed: {reason}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def build(model: str, shape: str) -> dict[str, Any]:
    """Compile one model for TARGETS in fp16, and say what came of it."""
    import torch

    import torchkiln
    from torchkiln.capture.sources import load_model

    loaded = load_model(model)
    sizes = tuple(int(size) for size in shape.split("x"))
    start = time.perf_counter()
    engine = torchkiln.compile(loaded.model, [torchkiln.Input(sizes)], backend="tensorrt", target=TARGETS, enabled_precisions={torch.float16})
    total_s = time.perf_counter() - start
    report, segments = engine.report(), engine.contents.segments
    plans = [s.artifact for s in segments if s.backend == "tensorrt"]
    return {
        "model": model,
        "shape": shape,
        "status": "built",
        "segments": {"tensorrt": len(plans), "torch": len(segments) - len(plans)},
        "ops": report.op_count,
        "torch_ops": report.torch_op_count,
        "rejects": sorted({f"{r.subject}: {r.reason}" for r in report.rejects}),
        "layers": sum(len(plan.metadata["layers"]) for plan in plans),
        "onnx_error": max(plan.metadata["onnx_error"] for plan in plans),
        "parity": report.parity.relative_error,
        "torch_fp16_error": torch_fp16_error(loaded.model, sizes),
        "total_s": total_s,
        "phases_s": report.phases_s,
        "engine_bytes": sum(len(plan.payload) for plan in plans),
        "notes": loaded.notes,
    }


def torch_fp16_error(model: Any, sizes: tuple[int, ...]) -> float | None:
    """What PyTorch's own ``model.half()`` on the CPU is off by: relative L2 error over all outputs against float32, on one seeded random input.

    None where it gives numbers that are not finite.
    """
    import torch

    from torchkiln.verify.reference import flat_tensors

    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        references = flat_tensors(model(x))
        outputs = flat_tensors(model.half()(x.half()))
    difference = sum(float((o.double() - r.double()).square().sum()) for o, r in zip(outputs, references, strict=True))
    error = float((difference / sum(float(r.double().square().sum()) for r in references)) ** 0.5)
    return error if error < float("inf") else None


def environment() -> dict[str, Any]:
    import torch

    from torchkiln.bench.environment import describe_environment
    from torchkiln.engine.versions import library_versions

    return {**describe_environment(torch.device("cpu"), torch.get_num_threads()), "libraries": library_versions()}


def markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""
    libraries = result["environment"]["libraries"]
    lines = [
        "# TensorRT engines built without a GPU",
        "",
        (
            f"For {', '.join(result['targets'])} in {result['precision']}, one plan for all, by TensorRT-RTX {libraries.get('tensorrt-rtx', '?')} "
            f"(torch {libraries['torch']}) on {result['environment']['cpu']['model']}, {result['environment']['cpu']['usable_cores']} cores. "
            "ONNX error: relative L2 error of the ONNX graph that TensorRT parsed, run by ONNX Runtime on the CPU, against PyTorch in fp32. "
            "PyTorch fp16: what model.half() in PyTorch on the same CPU is off by. Weights are random. No GPU ran these engines."
        ),
        "",
        f"    {result['command']}",
        "",
        "| model | input | segments | operators | left to PyTorch | ONNX error | PyTorch fp16 | build s | engine MB | reasons |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["status"] != "built":
            lines.append(f"| {row['model']} | {row['shape']} | {row['status']} |  |  |  |  |  |  |  |")
            continue
        segments = f"{row['segments']['tensorrt']}" + (f" + {row['segments']['torch']} torch" if row["segments"]["torch"] else "")
        cells = (
            row["model"],
            row["shape"],
            segments,
            row["ops"],
            row["torch_ops"],
            f"{row['onnx_error']:.1e}",
            "not finite" if row["torch_fp16_error"] is None else f"{row['torch_fp16_error']:.1e}",
            f"{row['total_s']:.1f}",
            f"{row['engine_bytes'] / 1e6:.1f}",
            "; ".join(row["rejects"]) or "-",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
