"""choose_target: of the targets an engine file holds, the best that runs on this machine, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import TargetMismatch, UserError
from ..target import Target, canonical_name
from .contents import EngineContents


@dataclass(frozen=True)
class Choice:
    """The contents to run, the device to run them on, and the reason in a sentence. ``is_second_best``: there is a GPU, and it is left idle."""

    contents: EngineContents
    device: torch.device
    reason: str
    is_second_best: bool = False


def choose_target(held: Sequence[EngineContents], device: torch.device | str | None = None) -> Choice:
    """The GPU's own contents where there are some, else the CPU's; with ``device``, only what runs there.

    Raises UserError for something that is no device, and TargetMismatch when nothing runs here: the message names the machine's GPU, what is held,
    and the command that builds what is missing.
    """
    wanted = _parse_device(device)
    here = _machine_gpu(wanted)
    if here is not None and (wanted is None or wanted.type == "cuda"):
        # What was built for this very GPU before what merely runs on it.
        for contents in sorted(held, key=lambda contents: here.name not in contents.targets):
            if any(fits(name, here) for name in contents.targets):
                return Choice(contents, _device(here), f"built for this machine's GPU ({here})")
    if wanted is None or wanted.type != "cuda":
        for contents in held:
            if contents.targets == (wanted.type if wanted else "cpu",):
                if here is None or wanted is not None:
                    return Choice(contents, torch.device(contents.targets[0]), "asked for" if wanted else "this machine has no GPU")
                reason = f"nothing in the engine fits this machine's GPU, {_gpu_name(here)} ({here}); it holds {describe_targets(held)}"
                return Choice(contents, torch.device("cpu"), reason, is_second_best=True)
    raise TargetMismatch(_mismatch(held, wanted, here))


def pick_target(held: Sequence[EngineContents], name: str | None) -> EngineContents:
    """What is held for the target of that name; without a name, the only one held. Raises UserError listing what there is."""
    name = None if name is None else canonical_name(name)
    found = [contents for contents in held if name is None or name in contents.targets]
    if len(found) != 1:
        problem = "holds several targets, name one" if name is None else f"holds nothing for {name}"
        raise UserError(f"engine {held[0].report.model}: it {problem}: {describe_targets(held)}")
    return found[0]


def fits(name: str, here: Target) -> bool:
    """Whether what was built for the target ``name`` runs on ``here``. ``sm_80+`` is that compute capability and every later one."""
    if not name.endswith("+"):
        return name == here.name
    least = Target(name[:-1]).compute_capability
    return here.compute_capability is not None and least is not None and here.compute_capability >= least


def describe_targets(held: Sequence[EngineContents]) -> str:
    """``sm_86, sm_89 (tensorrt fp16); cpu (openvino bf16)``."""
    return "; ".join(f"{', '.join(c.targets)} ({c.report.backend} {c.report.precision})" for c in held)


def _parse_device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device: expected a torch device as 'cpu' or 'cuda:0', got {device!r}: {error}") from None


def _machine_gpu(wanted: torch.device | None) -> Target | None:
    if not torch.cuda.is_available() or (wanted is not None and wanted.type != "cuda"):
        return None
    index = torch.cuda.current_device() if wanted is None or wanted.index is None else wanted.index
    if index >= torch.cuda.device_count():
        raise TargetMismatch(f"device: asked to load on {wanted}, but this machine has {torch.cuda.device_count()} GPUs")
    return Target.of(torch.device("cuda", index))


def _device(target: Target) -> torch.device:
    assert target.device is not None
    return target.device


def _gpu_name(here: Target) -> str:
    return torch.cuda.get_device_name(here.device)


def _mismatch(held: Sequence[EngineContents], wanted: torch.device | None, here: Target | None) -> str:
    model = held[0].report.model
    what = f"the engine holds {describe_targets(held)}"
    if wanted is not None and wanted.type != "cpu" and here is None:
        return (
            f"engine {model}: asked to load on {wanted}, but this machine has no such device; {what}. Leave device out, or use a machine that has one"
        )
    if here is not None:
        problem, missing = f"this machine's GPU is {_gpu_name(here)}, {here}", here.name
    else:
        problem, missing = "asked to load on cpu" if wanted is not None else "this machine has no usable GPU", "cpu"
    source = model if ":" in model else "MODEL"
    return (
        f"engine {model}: {problem}; {what}. Build what is missing: "
        f"torchkiln compile {source} --target {missing} -o {missing}.kiln, and put it into this file with torchkiln merge"
    )
