"""registry: the tactics of each op, and the candidates of an operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from ..pointwise.generate import pointwise_configs, pointwise_recipe
from ..recipe import Config, Problem, Recipe, Tactic
from ..trace import Operation

#: The files that hold tactics, in the order their candidates are listed.
FILES = (
    "tactics.conv_gemm",
    "tactics.gemm_tma",
    "tactics.conv_lines",
    "tactics.conv_rows",
    "tactics.conv_windows",
    "tactics.conv_strips",
    "tactics.conv_moments",
    "tactics.int8_conv",
    "tactics.int8_gemm_tma",
    "tactics.cudnn",
    "tactics.cublas",
    "tactics.sparse",
    "tactics.depthwise",
    "tactics.conv_transposed",
    "tactics.squeeze_excite",
    "tactics.attention",
    "tactics.norms",
    "tactics.softmax",
    "tactics.pools",
    "tactics.upsample",
    "tactics.reduce",
    "pointwise.copies",
)

#: The tactic of an operation that torch itself runs.
TORCH = "torch"
#: The tactic of generated pointwise kernels.
POINTWISE = "pointwise"


@dataclass(frozen=True)
class Option:
    """A tactic with a configuration, and the recipe they make."""

    tactic: str
    config: Config
    recipe: Recipe


@cache
def all_tactics() -> tuple[Tactic, ...]:
    package = __package__.rpartition(".")[0]
    return tuple(tactic for file in FILES for tactic in import_module(f"{package}.{file}").TACTICS)


def tactics_of(op: str) -> list[Tactic]:
    return [tactic for tactic in all_tactics() if op in tactic.ops]


def options_of(operation: Operation, level: int) -> tuple[list[Option], list[str]]:
    """What to try for an operation, at an effort of 0 to 5, and why some tactics cannot run it ("tactic: reason").

    torch's own operator is an option where no tactic runs it.
    """
    problem = operation.problem
    if all(spec.numel == 0 for spec in problem.outputs):
        return [Option(TORCH, {}, Recipe(()))], []  # nothing to write
    if operation.region is not None:
        return [Option(POINTWISE, config, region_recipe(operation, config)) for config in _region_configs(operation, level)], []
    found: list[Option] = []
    rejects: list[str] = []
    for tactic in tactics_of(problem.op):
        reason = tactic.reject(problem)
        if reason:
            rejects.append(f"{tactic.name}: {reason}")
            continue
        found += [Option(tactic.name, config, tactic.recipe(problem, config)) for config in tactic.configs(problem, level)]
    if not found:
        found.append(Option(TORCH, {}, operation.reference))
    return found, rejects


def option_of(operation: Operation, tactic: str, config: Config) -> Option:
    """The option that a timing cache names. Raises KeyError when there is no such tactic (any more)."""
    if tactic == TORCH:
        return Option(TORCH, {}, operation.reference)
    if operation.region is not None:
        return Option(POINTWISE, config, region_recipe(operation, config))
    named = {t.name: t for t in tactics_of(operation.problem.op)}[tactic]
    return Option(tactic, config, named.recipe(operation.problem, config))


def region_recipe(operation: Operation, config: Config) -> Recipe:
    problem, region = operation.problem, operation.region
    assert region is not None
    inputs = [spec for spec in problem.inputs if spec is not None]
    return pointwise_recipe(region, inputs, problem.outputs, problem.capability, config, problem.attributes["offsets"])


def _region_configs(operation: Operation, level: int) -> Sequence[Config]:
    problem: Problem = operation.problem
    assert operation.region is not None
    return pointwise_configs(operation.region, [s for s in problem.inputs if s is not None], problem.outputs, level)
