"""time_plans: whole plans against the clock, each in a CUDA graph, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ...engine.graph_capture import CAPTURING, record
from ...errors import BuildFailed
from .plan import Code, Plan
from .recipe import TensorSpec
from .replay_us import replay_us
from .runtime import LoadedPlan, load_codes

#: A plan is replayed for this long between two readings of the clock.
ROUND_US = 2000.0


def time_plans(
    plans: Sequence[Plan],
    codes: Sequence[Code],
    constants: Mapping[str, torch.Tensor],
    device: torch.device,
    rounds: int,
    *,
    same_results: bool,
    enough: Callable[[list[list[float]]], bool] = lambda times: False,
) -> list[list[float]]:
    """Microseconds of each plan in each of ``rounds`` rounds, on random inputs. In a round all plans have their turn. ``enough``: whether what there
    is after a round suffices.

    Raises CaptureFailed, what loading raises, and with ``same_results`` BuildFailed when the plans' results are not the same, bit for bit.
    """
    device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    functions = load_codes(codes, device)
    held = {name: tensor.to(device) for name, tensor in constants.items()}
    generator = torch.Generator(device).manual_seed(0)
    inputs = [_random(spec, generator) for spec in plans[0].inputs]
    graphs = []
    with torch.cuda.device(device), torch.no_grad():
        for plan in plans:
            loaded = LoadedPlan(plan, functions, held, device)
            with CAPTURING:
                # The outputs are kept, as their memory is the graph's.
                graphs.append((loaded, *record(loaded.run, inputs, device, torch.cuda.graph_pool_handle())))
        replays = [max(1, round(ROUND_US / max(replay_us(graph, 3), 1.0))) for _, graph, _ in graphs]
        times: list[list[float]] = [[] for _ in graphs]
        for _ in range(rounds):
            for place, (_, graph, _) in enumerate(graphs):
                times[place].append(replay_us(graph, replays[place]))
            if enough(times):
                break
        if same_results:
            _check_results(plans, graphs)
    return times


def _check_results(plans: Sequence[Plan], graphs: Sequence[tuple[LoadedPlan, torch.cuda.CUDAGraph, Sequence[torch.Tensor]]]) -> None:
    first = [output.clone() for output in graphs[0][2]]
    for plan, (_, graph, outputs) in zip(plans, graphs, strict=True):
        graph.replay()
        if not all(torch.equal(_bits(one), _bits(other)) for one, other in zip(first, outputs, strict=True)):
            raise BuildFailed(f"the results on {plan.streams} streams are not those on one")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, so that NaNs are compared too."""
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


def _random(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    """Numbers for a float tensor, zeros for others: an index must be in its range."""
    if spec.dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator, device=generator.device).to(spec.dtype)
    return torch.zeros(spec.shape, dtype=spec.dtype, device=generator.device)
