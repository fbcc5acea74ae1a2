"""conv_moments: the moments of a convolution that another tactic runs, which reads its result once more for them."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Config, Problem, Recipe, Tactic
from .conv_rows import ConvRows
from .cublas import Cublas
from .cudnn import Cudnn
from .moments import combine_launch, partial_launch
from .reduce import MAX_DIMS, collapse

#: Options of the other tactic that are tried.
_MOST = 6


class ThenMoments:
    """Another tactic's convolution, then two launches for the moments of its result."""

    ops: tuple[str, ...] = ("conv_moments",)

    def __init__(self, tactic: Tactic) -> None:
        self.tactic = tactic
        self.name = f"{tactic.name}_then_moments"

    def reject(self, problem: Problem) -> str:
        y = problem.outputs[0]
        if y.numel == 0:
            return "the moments of nothing"
        if len(collapse(y.shape[2:], y.strides[2:]).sizes) > MAX_DIMS:
            return f"more than {MAX_DIMS} separate dimensions"
        return self.tactic.reject(as_conv(problem))

    def configs(self, problem: Problem, level: int) -> list[Config]:
        return self.tactic.configs(as_conv(problem), level)[:_MOST]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        recipe = self.tactic.recipe(as_conv(problem), config)
        scratch = dict(recipe.scratch)
        partial, parts = partial_launch(problem, scratch)
        combine, counters = combine_launch(problem, parts, scratch)
        return replace(recipe, launches=(*recipe.launches, partial, combine), scratch=scratch, counters=max(recipe.counters, counters))


def as_conv(problem: Problem) -> Problem:
    """The convolution alone."""
    return replace(problem, op="conv", outputs=problem.outputs[:1])


TACTICS: tuple[Tactic, ...] = (ThenMoments(Cudnn()), ThenMoments(Cublas()), ThenMoments(ConvRows()))
