"""The operator that calls cuBLASLt: what it means on the CPU, and the library itself on a GPU."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torchkiln.backends.cuda import cublaslt
from torchkiln.errors import BuildFailed
from torchkiln.fused_ops.activation import activate

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 2e-3, BFLOAT: 1e-2, FLOAT: 1e-5}
product = torch.ops.torchkiln.cublaslt.out


def operands(dtype, device, rows=77, depth=136, columns=72):
    """x in rows with gaps, weight, bias, residual and a place for the result."""
    generator = torch.Generator(device).manual_seed(0)
    make = lambda *shape: torch.randn(shape, dtype=dtype, device=device, generator=generator)  # noqa: E731
    return (
        make(rows, depth + 24)[:, :depth],
        make(columns, depth),
        make(columns),
        make(rows, columns),
        torch.full((rows, columns), torch.nan).to(make(1)),
    )


def right(x, weight, bias, residual, activation):
    y = x.double() @ weight.double().T
    for term in (bias, residual):
        y = y if term is None else y + term.double()
    return activate(y, activation)


def error(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", cublaslt.ACTIVATIONS)
@pytest.mark.parametrize("has", ["", "bias", "residual", "bias residual"])
@pytest.mark.parametrize("workspace", [0, 8])
def test_every_algorithm(device, dtype, activation, has, workspace):
    x, weight, bias, residual, out = operands(dtype, device)
    bias, residual = bias if "bias" in has else None, residual if "residual" in has else None
    memory = torch.empty(workspace << 20, dtype=torch.uint8, device=device) if workspace else None
    expected = right(x, weight, bias, residual, activation)
    for rank in range(cublaslt.RANKS):
        out.fill_(torch.nan)
        product(x, weight, bias, residual, memory, activation, "ieee", rank, out=out)
        assert error(out, expected) < TOLERANCE[dtype]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_float32_result_of_halves(dtype):
    x, weight, bias, residual, _ = operands(dtype, "cuda")
    bias, residual = bias.float(), residual.float()
    out = torch.empty_like(residual)
    product(x, weight, bias, residual, None, "relu", "ieee", 0, out=out)
    assert error(out, right(x, weight, bias, residual, "relu")) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("workspace", [0, 8])
def test_result_in_the_residuals_memory(workspace):
    memory = torch.empty(workspace << 20, dtype=torch.uint8, device="cuda") if workspace else None
    for rank in range(cublaslt.RANKS):
        x, weight, bias, residual, _ = operands(HALF, "cuda", rows=197, depth=3072, columns=768)
        expected = right(x, weight, bias, residual, "relu")
        product(x, weight, bias, residual, memory, "relu", "ieee", rank, out=residual)
        assert error(residual, expected) < TOLERANCE[HALF]


@pytest.mark.cuda
def test_one_row_and_tf32():
    x, weight, bias, _, _ = operands(FLOAT, "cuda", rows=1)
    expected = right(x, weight, bias, None, "none")
    errors = {}
    for math in ("ieee", "tf32"):
        out = torch.empty(1, weight.shape[0], device="cuda")
        product(x, weight, bias, None, None, "none", math, 0, out=out)
        errors[math] = error(out, expected)
    assert errors["ieee"] < 1e-5
    assert errors["tf32"] < 5e-3


@pytest.mark.cuda
def test_several_threads_and_streams():
    x, weight, bias, residual, _ = operands(HALF, "cuda")
    expected = right(x, weight, bias, residual, "relu")

    def run(_):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            out = torch.empty_like(residual)
            for _ in range(20):
                product(x, weight, bias, residual, None, "relu", "ieee", 0, out=out)
            torch.cuda.current_stream().synchronize()
            return error(out, expected)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(run, range(16))) < TOLERANCE[HALF]


WRONG = {
    "a number that is no algorithm's": {"rank": cublaslt.RANKS},
    "a negative number": {"rank": -1},
    "a workspace that is shorter than it says": {"workspace": torch.empty(1, dtype=torch.uint8).expand(1 << 20)},
    "a short bias": {"bias": torch.zeros(71, dtype=HALF)},
    "a result whose rows lie on each other": {"out": torch.empty(1, 72, dtype=HALF).expand(77, 72)},
    "one row whose elements lie on each other": {"x": torch.empty(77, 1, dtype=HALF).expand(77, 136)},
    "a weight of another depth": {"weight": torch.empty(72, 128, dtype=HALF)},
    "a residual of another width": {"residual": torch.empty(77, 80, dtype=HALF)},
    "a vector": {"x": torch.empty(136, dtype=HALF)},
    "integers": {"x": torch.zeros(77, 136, dtype=torch.int16)},
}


@pytest.mark.parametrize("what", WRONG)
def test_operands_that_are_not_what_they_say_are_an_error(what):
    x, weight, bias, residual, out = operands(HALF, "cpu")
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual, "workspace": None, "rank": 0, "out": out}
    cublaslt._check_operands(**given)
    with pytest.raises(BuildFailed, match="cuBLASLt: "):
        cublaslt._check_operands(**{**given, **WRONG[what]})


def test_the_library_reads_the_result_of_its_heuristic_as_it_lies():
    """cublasLtMatmulHeuristicResult_t: 64 bytes of algorithm, size_t, int, float, 4 int."""
    assert ctypes.sizeof(cublaslt._Heuristic) == 96
    assert cublaslt._Heuristic.workspace_bytes.offset == 64
