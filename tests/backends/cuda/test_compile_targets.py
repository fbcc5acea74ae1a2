"""Every tactic's kernels compile for each architecture that engines are built for, without a GPU and without Triton's interpreter.

Of each test module (its ``COMPILE_CASES``, or ``compile_kernels(capability)``) a sample is compiled for each architecture: the first kernels of every
kernel function, up to PER_MODULE. All of them take minutes; ``python -m tests.backends.cuda.test_compile_targets 1000`` compiles them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from torchkiln.backends.cuda.compile_kernel import compile_kernel
from torchkiln.backends.cuda.recipe import Kernel, Launch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CAPABILITIES = (80, 89, 90)
PER_MODULE = 1


def modules() -> list[str]:
    """The test modules that say what must compile."""
    texts = {path.stem: path.read_text() for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__)}
    return [name for name, text in texts.items() if "\nCOMPILE_CASES = " in text or "\ndef compile_kernels(" in text]


def kernels_of(module: Any, capability: int) -> list[Kernel]:
    """Each once, those of different functions first."""
    found: dict[Kernel, None] = {}
    for tactic, problem, config in getattr(module, "COMPILE_CASES", []):
        recipe = tactic.recipe(replace(problem, capability=capability), config)
        found |= dict.fromkeys(launch.kernel for launch in recipe.launches if isinstance(launch, Launch))
    if hasattr(module, "compile_kernels"):
        found |= dict.fromkeys(module.compile_kernels(capability))
    seen: dict[str, int] = {}

    def turn(kernel: Kernel) -> int:
        seen[kernel.function] = seen.get(kernel.function, 0) + 1
        return seen[kernel.function]

    return sorted(found, key=turn)


def attempt(case: tuple[str, Kernel, int]) -> str:
    """Why the kernel does not compile; "" when it does."""
    name, kernel, capability = case
    try:
        cubin = compile_kernel(kernel, capability).code
    except Exception as error:  # Triton, LLVM and ptxas raise whatever they like; all that fail are listed
        return f"{name}: {kernel.function} for sm_{capability}: {type(error).__name__}: {str(error).strip()[:300]} ({kernel.constants})"
    return "" if cubin.startswith(b"\x7fELF") else f"{name}: {kernel.function} for sm_{capability}: no cubin"


def main(limit: int) -> int:
    """Print what does not compile, and how many were tried."""
    cases = [
        (name, kernel, capability)
        for name in modules()
        for capability in CAPABILITIES
        for kernel in kernels_of(import_module(f"tests.backends.cuda.{name}"), capability)[:limit]
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        failures = [failure for failure in pool.map(attempt, cases) if failure]
    print("\n".join([*failures, f"{len(cases)} kernels of {len({name for name, *_ in cases})} modules, {len(failures)} failures"]))
    return bool(failures)


@pytest.mark.slow
def test_every_module_compiles_for_every_architecture(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.backends.cuda.test_compile_targets", str(PER_MODULE)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"of {len(modules())} modules, 0 failures" in done.stdout


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
