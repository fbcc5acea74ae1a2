"""``torchkiln doctor``: what this machine has, which backends run here, and what to install for those that do not."""

from __future__ import annotations

from typing import Any

from .compile import Json
from .console import print_json, size_text, stdout, watch
from .debug import Debug


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Show what this machine has: devices, backends, why one is missing and what to install."""
    with watch("looking around"):
        from .machine import describe_machine

        machine = describe_machine()
    if as_json:
        print_json(machine)
    else:
        _show(machine)


def _show(machine: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console, cpu, torch_ = stdout(), machine["cpu"], machine["torch"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("torchkiln", machine["torchkiln"])
    facts.add_row("python", f"{machine['python']['version']} on {machine['python']['platform']}")
    facts.add_row("torch", f"{torch_['version']}, CUDA {torch_['cuda'] or 'none'}")
    facts.add_row("cpu", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['logical_cores']} cores, {cpu['torch_capability']}")
    facts.add_row("", " ".join(cpu["isa"]))
    for index, gpu in enumerate(machine["gpus"]):
        facts.add_row(f"gpu {index}", f"{gpu['name']}, {size_text(gpu['memory_bytes'])}, compute capability {gpu['capability']}")
    if not machine["gpus"]:
        facts.add_row("gpu", "none that torch can use")
    for tool, found in machine["tools"].items():
        facts.add_row(tool, found or "none")
    console.print(facts, highlight=False)

    backends = Table("backend", "device", "here", "precisions", "why not")
    for row in machine["backends"]:
        here = Text("yes", style="green") if row["available"] else Text("no", style="yellow")
        why = [row["reason"]] if row["reason"] else [f"{r['subject']}: {r['reason']}" for r in row["rejects"]]
        backends.add_row(row["name"], row["device"], here, ", ".join(row["precisions"]), Text("\n".join(why)))
    console.print(backends)

    absent = Table("GPU not in this machine", "engines for it are built by", "why not")
    for row in machine["absent_targets"]:
        absent.add_row(row["target"], ", ".join(row["backends"]) or Text("none", style="yellow"), Text(row["reason"]))
    console.print(absent)

    missing = sorted({p["extra"] for p in machine["packages"] if p["version"] is None})
    packages = Table("package", "version", "extra")
    for p in machine["packages"]:
        packages.add_row(p["name"], p["version"] or Text("missing", style="yellow"), p["extra"])
    console.print(packages)
    for extra in missing:
        console.print(f'pip install "torchkiln[{extra}]"', markup=False, highlight=False)
