"""roofline: how fast this GPU copies and multiplies at best, measured once and remembered: what a step's time is held against."""

from __future__ import annotations

import ctypes
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...fp32_math import fp32_math
from ...log import REJECTS, SUMMARY, log
from ...replace_file import replace_file
from .driver import _driver
from .timing_cache import default_path

FILE_NAME = "roofline-2.json"

#: Each is timed this often, this many calls in a row, after as many untimed ones.
REPEATS = 7
CALLS = 5

#: Copied at once: far more than any L2 cache holds.
COPY_BYTES = 2**30
#: Rows and columns of the square matrices multiplied.
MATRIX_SIZE = 8192

#: Name of the arithmetic -> dtype of the operands. float32 products count as "tf32" where TF32 was allowed.
_ARITHMETIC = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32, "int8": torch.int8}


@dataclass(frozen=True)
class Roofline:
    """The measured limits of a GPU.

    Attributes:
        bytes_per_s: of a device-to-device copy, bytes read and bytes written both counted.
        flops_per_s: of a matrix product, by arithmetic: "float16", "bfloat16", "tf32", "float32", "int8"; without those that the GPU has not.
    """

    bytes_per_s: float
    flops_per_s: dict[str, float]

    def time_us(self, size_bytes: int, flops: int, arithmetic: str) -> float | None:
        """The least microseconds to move ``size_bytes`` and compute ``flops``, the two overlapped; None without a rate for ``arithmetic``."""
        if flops and arithmetic not in self.flops_per_s:
            return None
        return 1e6 * max(size_bytes / self.bytes_per_s, flops / self.flops_per_s[arithmetic] if flops else 0.0)


def measure_roofline(device: torch.device) -> Roofline:
    """The GPU's limits, from the file in the user's cache directory where this GPU was measured before with this driver and torch."""
    path = default_path()
    return remembered(None if path is None else path.with_name(FILE_NAME), _key(device), lambda: _measure(device))


def remembered(path: Path | None, key: str, measure: Callable[[], Roofline]) -> Roofline:
    """What the file at ``path`` holds for ``key``; else ``measure()``, kept there. A file that is damaged or cannot be written only costs time."""
    held = _read(path)
    try:
        return _parse(held[key])
    except KeyError:
        log(REJECTS, "roofline: %s was not measured yet", key)
    except (TypeError, ValueError, AttributeError) as error:
        log(SUMMARY, "roofline: the entry %s in %s is malformed (%s): measured again", key, path, error)
    found = measure()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replace_file(path) as file:
                file.write(json.dumps({**held, key: asdict(found)}, indent=1, sort_keys=True).encode())
        except OSError as error:
            log(SUMMARY, "roofline: cannot write %s (%s): it will be measured again", path, error)
    return found


def _read(path: Path | None) -> dict[str, object]:
    if path is None or not path.exists():
        return {}
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        log(SUMMARY, "roofline: cannot read %s (%s)", path, error)
        return {}
    return held if isinstance(held, dict) else {}


def _parse(entry: object) -> Roofline:
    if not isinstance(entry, dict) or entry.keys() != {"bytes_per_s", "flops_per_s"}:
        raise ValueError(f"expected bytes_per_s and flops_per_s, got {entry!r:.100}")
    found = Roofline(float(entry["bytes_per_s"]), {name: float(rate) for name, rate in entry["flops_per_s"].items()})
    if not found.flops_per_s.keys() <= _ARITHMETIC.keys() or not all(
        0 < rate < float("inf") for rate in (found.bytes_per_s, *found.flops_per_s.values())
    ):
        raise ValueError(f"expected positive rates of {', '.join(_ARITHMETIC)}, got {entry!r:.200}")
    return found


def _key(device: torch.device) -> str:
    version = ctypes.c_int()
    status = _driver().cuDriverGetVersion(ctypes.byref(version))
    return f"{torch.cuda.get_device_name(device)}, driver {version.value if status == 0 else 'unknown'}, torch {torch.__version__}"


@torch.no_grad()
def _measure(device: torch.device) -> Roofline:
    with torch.cuda.device(device):
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        names = [name for name in _ARITHMETIC if newer or name in ("float16", "float32")]
        return Roofline(_copy_bytes_per_s(device), {name: _matmul_flops_per_s(name, device) for name in names})


def _copy_bytes_per_s(device: torch.device) -> float:
    free, _ = torch.cuda.mem_get_info()
    size = min(COPY_BYTES, free // 4)  # two buffers, and room for whoever else uses the GPU
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    copy = torch.empty_like(source)
    return 2 * size / _seconds(lambda: copy.copy_(source))


def _matmul_flops_per_s(arithmetic: str, device: torch.device) -> float:
    """Random operands: a GPU that multiplies zeros draws less power and clocks higher than it ever does in earnest."""
    dtype = _ARITHMETIC[arithmetic]
    free, _ = torch.cuda.mem_get_info()
    size = MATRIX_SIZE
    while 4 * size * size * dtype.itemsize > free and size > 256:
        size //= 2
    if dtype is torch.int8:
        a, b = (torch.randint(-128, 128, (size, size), device=device, dtype=dtype) for _ in range(2))
        sums = torch.empty(size, size, device=device, dtype=torch.int32)
        return 2 * size**3 / _seconds(lambda: torch._int_mm(a, b.t(), out=sums))
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with fp32_math("tf32" if arithmetic == "tf32" else "ieee"):
        return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out))


def _seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call on the current stream."""
    times = []
    for repeat in range(REPEATS + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        if repeat:  # the first brings the clocks up
            times.append(start.elapsed_time(end) / 1e3 / CALLS)
    return statistics.median(times)
