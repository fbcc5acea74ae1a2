"""Target: what an engine is built for: the CPU, or a kind of GPU by its compute capability, whether this machine has it or not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .errors import UserError

CPU = "cpu"
CURRENT = "current"

#: sm_89 and SM89; also 8.9, as NVIDIA's tables write it.
_SM = re.compile(r"sm_?([1-9][0-9]{1,2})")
_DOTTED = re.compile(r"([1-9][0-9]?)\.([0-9])")


@dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        name: "cpu", "sm_89" (compute capability 8.9), or the type of another torch device ("mps").
        device: the device of this machine that is of this kind; None where there is none.
    """

    name: str
    device: torch.device | None = None

    @classmethod
    def of(cls, device: torch.device) -> Target:
        """The target that a device of this machine is. Raises UserError for a GPU that is not there."""
        if device.type != "cuda":
            return cls(device.type, device)
        if not torch.cuda.is_available():
            raise UserError(f"device: {device} was asked for, but this machine has no usable GPU: name a target (target='sm_89') or use device='cpu'")
        major, minor = torch.cuda.get_device_capability(device)
        return cls(f"sm_{major}{minor}", device)

    @property
    def is_here(self) -> bool:
        """Whether this machine has such a device."""
        return self.device is not None

    @property
    def device_type(self) -> str:
        """Of torch: "cpu", "cuda"."""
        return "cuda" if self.name.startswith("sm_") else self.name

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(8, 9) for sm_89; None for what is no NVIDIA GPU."""
        if not self.name.startswith("sm_"):
            return None
        number = int(self.name[3:].removesuffix("+"))
        return number // 10, number % 10

    def __str__(self) -> str:
        return self.name


def canonical_name(text: str) -> str:
    """``SM89``, ``sm89`` and ``8.9`` -> ``sm_89``; ``cpu`` and ``current`` as they are. Raises UserError."""
    name = text.strip().lower()
    if name in (CPU, CURRENT):
        return name
    match = _SM.fullmatch(name) or _DOTTED.fullmatch(name)
    if match is None:
        raise UserError(f"target: expected 'cpu', 'current' or a compute capability as 'sm_89', got {text!r}")
    return "sm_" + "".join(match.groups())


def parse_target(text: str, device: torch.device | None = None) -> Target:
    """The target of that name. ``current`` is ``device``, the device the model is on.

    A GPU that this machine has comes with its device. Raises UserError for a name that is none.
    """
    name = canonical_name(text)
    if name == CURRENT:
        return Target.of(device or torch.device("cpu"))
    if name == CPU:
        return Target.of(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        here = Target.of(torch.device("cuda", index))
        if here.name == name:
            return here
    return Target(name)


def parse_names(value: str | Target | Iterable[str | Target] | None) -> tuple[str, ...]:
    """``None``, ``"sm_86,cpu"``, ``["sm_86", "cpu"]`` -> names, each once, in order. Raises UserError."""
    if value is None:
        return ()
    if isinstance(value, bytes) or not isinstance(value, (str, Target, Iterable)):
        raise UserError(f"target: expected 'cpu', 'current' or a compute capability as 'sm_89', or several, got {value!r}")
    items = [value] if isinstance(value, (str, Target)) else list(value)
    names: dict[str, None] = {}
    for item in items:
        if not isinstance(item, (str, Target)):
            raise UserError(f"target: expected 'cpu', 'current' or a compute capability as 'sm_89', got {item!r}")
        for part in str(item).split(","):
            names[canonical_name(part)] = None
    return tuple(names)


@dataclass(frozen=True)
class TargetGroup:
    """Targets that are built for together: one that is in this machine, or all that are not.

    ``device`` is where the build works: the target's own, or the CPU.
    """

    targets: tuple[Target, ...]
    device: torch.device

    @property
    def name(self) -> str:
        """For reports: the device, or the names of the GPUs that are not here."""
        return str(self.device) if self.targets[0].is_here else ", ".join(map(str, self.targets))


def group_targets(names: Iterable[str], current: torch.device) -> list[TargetGroup]:
    """The groups to build, in the order of ``names``; ``current`` is the device the model is on. Raises UserError."""
    groups: list[TargetGroup] = []
    absent: list[Target] = []
    for name in names:
        target = parse_target(name, current)
        if target.device is None:
            absent.append(target)
        elif all(group.targets[0].name != target.name for group in groups):
            groups.append(TargetGroup((target,), target.device))
    return groups + ([TargetGroup(tuple(absent), torch.device("cpu"))] if absent else [])
