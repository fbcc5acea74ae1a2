"""The matrix product with tensor descriptors against the reference, on shapes that divide nothing; and the memory that descriptors are kept in.

Not in bf16: Triton's interpreter multiplies its bit patterns. The tests that run on a GPU do.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem, linear_problem
from tests.backends.cuda.run_plan import choose

from torchkiln.backends.cuda.assemble_plan import Codes, Constants, assemble_plan
from torchkiln.backends.cuda.compile_kernel import SCRATCH_ALIGNMENT, Compiled, with_scratch
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.plan import KernelStep
from torchkiln.backends.cuda.recipe import Launch, Problem, TensorSpec
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.tactics.gemm_tma import GemmTma
from torchkiln.backends.cuda.trace import trace

SMALL = {
    "BM": 32,
    "BN": 32,
    "BK": 32,
    "warps": 4,
    "stages": 2,
    "loop": "flat",
    "programs": 1,
    "halves": False,
    "residual": "none",
}
LATE = {**SMALL, "residual": "late"}
ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "leaky_relu", "sigmoid", "tanh")


def linear(x, features: int, **how) -> Problem:
    """On three multiprocessors, so that a program has several tiles."""
    return replace(linear_problem(x, features, capability=90, **how), multiprocessors=3)


def conv(x, features: int, **how) -> Problem:
    return replace(conv_problem(x, (features, x[1], *[1] * (len(x) - 2)), capability=90, **how), multiprocessors=3)


def compute(problem: Problem, config: dict) -> None:
    """Check it in the interpreter, which cannot follow programmatic launch (compute capability 9.0)."""
    assert GemmTma().reject(problem) == ""
    check(GemmTma(), replace(problem, capability=80), config, 2e-3)


def in_rows_of(spec: TensorSpec, stride: int) -> TensorSpec:
    """The rows ``stride`` elements apart, as in a slice of a wider tensor."""
    steps = [stride]
    for size in reversed(spec.shape[1:-1]):
        steps.insert(0, steps[0] * size)
    return TensorSpec(spec.shape, (*steps, 1), spec.dtype)


CASES = {
    "linear": (linear((3, 37, 40), 72), SMALL),
    "one short row": (linear((1, 24), 40), SMALL),
    "no bias": (linear((50, 72), 136, bias=False, activation="relu"), SMALL),
    "1x1": (conv((2, 40, 5, 7), 24), SMALL),
    "1x1 residual": (conv((2, 24, 7, 9), 40, residual=True, activation="relu"), LATE),
    "3-D": (conv((1, 16, 3, 4, 5), 8), SMALL),
    "fp32 result": (replace(linear((33, 40), 24), outputs=(TensorSpec.contiguous((33, 24), torch.float32),)), SMALL),
}


@pytest.mark.parametrize("name", CASES)
def test_gemm_tma(name):
    problem, config = CASES[name]
    compute(problem, config)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("loop", ["flat", "nested", "unrolled"])
@pytest.mark.parametrize("residual", ["late", "early", "pointers"])
def test_residual(loop, residual, halves):
    compute(linear((70, 40), 72, residual=True, activation="gelu"), {**SMALL, "loop": loop, "residual": residual, "halves": halves})


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation):
    problem = linear((20, 24), 40, activation=activation)
    problem = replace(problem, attributes={**problem.attributes, "alpha": 0.1})
    compute(problem, SMALL)


@pytest.mark.parametrize("programs", [0, 1, 2])
def test_programs(programs):
    """Few that take turns, or one a tile, over more rows of tiles than one band."""
    problem = linear((300, 16), 40)
    compute(problem, {**SMALL, "BK": 16, "loop": "nested", "programs": programs})
    (launch,) = GemmTma().recipe(problem, {**SMALL, "programs": programs}).launches
    assert isinstance(launch, Launch)
    assert launch.grid == ({0: 20, 1: 3, 2: 6}[programs], 1, 1)


def test_operands_in_wider_tensors():
    problem = linear((3, 17, 40), 24, residual=True)
    x, weight, bias, residual = problem.inputs
    assert x is not None
    assert residual is not None
    inputs = (in_rows_of(x, 48), weight, bias, in_rows_of(residual, 32))
    problem = replace(problem, inputs=inputs, outputs=(in_rows_of(problem.outputs[0], 56),))
    compute(problem, LATE)


def test_configs_are_few_and_more_with_effort():
    for problem in (linear((12608, 768), 3072, activation="gelu"), conv((8, 16, 112, 112), 96), conv((64, 256, 14, 14), 1024, residual=True)):
        problem = replace(problem, multiprocessors=132)
        assert [len(GemmTma().configs(problem, level)) for level in range(6)] == [1, 3, 8, 16, 32, 64]
        assert GemmTma().configs(problem, 5)[:16] == GemmTma().configs(problem, 3)


def test_few_tiles_are_left_to_others():
    problem = replace(linear((197, 768), 3072), multiprocessors=132)
    assert [len(GemmTma().configs(problem, level)) for level in range(6)] == [0, 0, 0, 0, 0, 64]


def test_every_config_computes_the_same():
    problem = linear((140, 72), 136, residual=True)
    for config in GemmTma().configs(problem, 5)[::7]:
        compute(problem, config)


def test_rejects():
    tactic = GemmTma()
    assert "TMA" in tactic.reject(linear_problem((8, 16), 16, capability=80))
    assert "1x1" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 8, 3, 3), capability=90))
    assert "1x1" in tactic.reject(conv((1, 8, 5, 5), 8, stride=2))
    assert "scale" in tactic.reject(conv((1, 8, 5, 5), 8, scale=True))
    assert "next to each other" in tactic.reject(conv((1, 8, 5, 5), 8, channels_last=False))
    assert "74 bytes" in tactic.reject(linear((9, 37), 16))
    assert "42 bytes" in tactic.reject(linear((9, 40), 21))
    assert "float32" in tactic.reject(linear((9, 40), 24, dtype=torch.float32))
    problem = linear((2, 3, 40), 24)
    x = TensorSpec((2, 3, 40), (160, 40, 1), torch.float16)
    assert "common stride" in tactic.reject(replace(problem, inputs=(x, *problem.inputs[1:])))
    bias = TensorSpec((24,), (2,), torch.float16)
    assert "a bias whose" in tactic.reject(replace(problem, inputs=(*problem.inputs[:2], bias, *problem.inputs[3:])))


def test_scratch_of_the_code_is_one_more_operand():
    recipe = GemmTma().recipe(linear((300, 16), 40), SMALL)
    (launch,) = recipe.launches
    assert isinstance(launch, Launch)
    plain = Compiled(b"", "k", shared_bytes=0, threads=128)
    assert with_scratch(recipe, {launch.kernel: plain}) is recipe
    given = with_scratch(recipe, {launch.kernel: replace(plain, scratch_bytes=384)})
    (with_more,) = given.launches
    assert isinstance(with_more, Launch)
    assert with_more.operands[:-1] == launch.operands
    assert given.scratch[with_more.operands[-1].removeprefix("scratch.")].size_bytes == 3 * 384


def test_scratch_of_the_code_is_placed_beside_what_the_launch_reads_and_writes():
    """In a plan: in the arena, large enough, and in nothing that the same launch has."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    graph_module = specialize(lowered(model, [(300, 16)]), [(300, 16)])
    fuse(graph_module)
    traced = trace(graph_module, 80, 4, lambda op: "ieee")
    choices = [choose(operation, True) for operation in traced.operations]
    for choice in choices:
        choice.codes = {kernel: replace(code, scratch_bytes=SCRATCH_ALIGNMENT) for kernel, code in choice.codes.items()}
    plan = assemble_plan(traced, choices, Codes(), Constants())
    assert len(plan.steps) == 3
    for step in plan.steps:
        assert isinstance(step.run, KernelStep)
        *given, scratch = [plan.tensors[index] for index in step.run.operands]
        assert scratch.place == "arena"
        assert scratch.offset % SCRATCH_ALIGNMENT == 0
        assert scratch.spec.size_bytes == step.run.grid[0] * SCRATCH_ALIGNMENT
        for other in given:
            size = other.spec.span * other.spec.dtype.itemsize
            assert other.place != "arena" or other.offset >= scratch.offset + scratch.spec.span or other.offset + size <= scratch.offset
            assert other.offset + size <= plan.arena_bytes or other.place != "arena"


def compile_kernels(capability: int):
    """For test_compile_targets: below 9.0 there is nothing to compile."""
    if capability < 90:
        return []
    problem = replace(linear((12608, 768), 768, residual=True), multiprocessors=132)
    config = {**LATE, "BM": 128, "BN": 256, "BK": 64, "warps": 8, "stages": 3, "halves": True}
    small = replace(conv((128, 16, 112, 112), 96, activation="silu"), multiprocessors=132)
    of_few = {**SMALL, "BM": 128, "BK": 16, "loop": "unrolled", "stages": 4, "programs": 3}
    return [GemmTma().recipe(*case).launches[0].kernel for case in ((problem, config), (small, of_few))]
