"""CallPlan: how a library's call, with fewer inputs and outputs than the segment, serves the segment. JSON in an artifact's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CorruptEngineFile
from .contract import Runner

_SOURCES = ("result", "input", "constant")


@dataclass(frozen=True)
class CallPlan:
    """Attributes:
    input_count: inputs of the segment.
    used_inputs: which of them the library's model takes, in its order.
    outputs: where each output of the segment comes from: ("result", index of the library's output), ("input", index of the segment's
        input) or ("constant", index of the artifact's tensor ``constant_INDEX``).
    """

    input_count: int
    used_inputs: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]

    @property
    def result_count(self) -> int:
        return len({index for source, index in self.outputs if source == "result"})

    @property
    def is_direct(self) -> bool:
        """Whether the library's inputs and outputs are the segment's, in order."""
        return self.used_inputs == tuple(range(self.input_count)) and all(
            source == ("result", position) for position, source in enumerate(self.outputs)
        )

    def as_json(self) -> dict[str, Any]:
        return {"input_count": self.input_count, "used_inputs": list(self.used_inputs), "outputs": [list(o) for o in self.outputs]}

    @classmethod
    def from_json(cls, data: Any) -> CallPlan:
        """Raises CorruptEngineFile when ``data`` is no plan."""
        try:
            plan = cls(int(data["input_count"]), tuple(int(i) for i in data["used_inputs"]), tuple((str(s), int(i)) for s, i in data["outputs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptEngineFile(f"call plan: expected input_count, used_inputs and outputs, got {data!r} ({error})") from None
        in_range = all(0 <= i < plan.input_count for i in (*plan.used_inputs, *(i for s, i in plan.outputs if s == "input")))
        if not in_range or any(s not in _SOURCES or i < 0 for s, i in plan.outputs):
            raise CorruptEngineFile(f"call plan: an index is out of range in {data!r}")
        return plan

    def check(self, what: str, input_count: int, result_count: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises CorruptEngineFile unless the plan fits a library's model with that many inputs and outputs and these tensors."""
        results = [i for s, i in self.outputs if s == "result"]
        if len(self.used_inputs) != input_count or any(i >= result_count for i in results):
            raise CorruptEngineFile(
                f"{what}: expected {len(self.used_inputs)} inputs and {self.result_count} outputs, got {input_count} and {result_count}"
            )
        missing = [f"constant_{i}" for s, i in self.outputs if s == "constant" and f"constant_{i}" not in tensors]
        if missing:
            raise CorruptEngineFile(f"{what}: the file lacks the tensors {', '.join(missing)}")

    def wrap(self, call: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]], tensors: Mapping[str, torch.Tensor]) -> Runner:
        """A Runner of the whole segment around ``call``, which takes the used inputs and gives fresh results.

        An output that repeats an input, a constant or an earlier output is a copy: the caller owns every output.
        """
        if self.is_direct:
            return call
        constants = {i: tensors[f"constant_{i}"] for s, i in self.outputs if s == "constant"}
        used, sources = self.used_inputs, self.outputs

        def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            results = call([inputs[i] for i in used])
            given: set[int] = set()
            outputs = []
            for source, index in sources:
                if source == "result" and index not in given:
                    given.add(index)
                    outputs.append(results[index])
                    continue
                value = results[index] if source == "result" else inputs[index] if source == "input" else constants[index]
                outputs.append(value.clone(memory_format=torch.contiguous_format))
            return outputs

        return run
