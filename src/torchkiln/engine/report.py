"""Report: what was built, from what, how it was checked, and what was refused and why. Saved in the engine file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ..errors import CorruptEngineFile
from .frontier import Frontier, FrontierPoint, LayerReport

T = TypeVar("T")

_NUMBERS = (int, float)


def _list_of(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(type(part) in types for part in value)


#: Whether a value read from a file fits a field of that annotation.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "float | None": lambda value: value is None or type(value) in _NUMBERS,
    "list[str]": _list_of(str),
    "list[SegmentReport]": _list_of(dict),
    "list[RejectReport]": _list_of(dict),
    "list[CandidateReport]": _list_of(dict),
    "list[FrontierPoint]": _list_of(dict),
    "list[LayerReport]": _list_of(dict),
    "Frontier | None": lambda value: value is None or type(value) is dict,
    "float": lambda value: type(value) in _NUMBERS,
    "dict[str, int]": lambda value: type(value) is dict and all(type(part) is int for part in value.values()),
    "list[SparseLayerReport]": _list_of(dict),
    "ParityReport": lambda value: type(value) is dict,
    "dict[str, float]": lambda value: type(value) is dict and all(type(part) in _NUMBERS for part in value.values()),
    "dict[str, str]": lambda value: type(value) is dict and all(type(part) is str for part in value.values()),
    "dict[str, Any]": lambda value: type(value) is dict,
}


@dataclass
class SegmentReport:
    """One segment of the engine. Times are medians of one call at the opt shapes; None where not measured."""

    name: str
    backend: str
    precision: str
    op_count: int
    time_us: float | None = None
    torch_time_us: float | None = None
    note: str = ""


@dataclass
class RejectReport:
    """An operator (or precision, or backend) that was refused: ``where`` is the node and, when known, the model's source line."""

    subject: str
    where: str
    backend: str
    reason: str


@dataclass
class CandidateReport:
    """One way that was considered. ``status``: kept, slower, parity, failed, skipped or unavailable; ``reason`` explains all but kept."""

    name: str
    status: str
    build_s: float | None = None
    median_ms: float | None = None
    relative_error: float | None = None
    reason: str = ""


@dataclass
class SparseLayerReport:
    """What ``sparse_weights=True`` came to for one layer with a constant weight.

    Attributes:
        layer: its module's name, or the operation's where several became one.
        outcome: "used", "slower" (than the dense kernel, as measured), "not supported", "failed", "no pattern" (the weight is not 2:4), or "left to
            the library" (which does not say). ``reason`` explains all but "used".
        tactic: what runs it, where the backend says.
        sparse_us, dense_us: medians of the fastest kernel of each kind at the opt shapes; None where none was measured.
    """

    layer: str
    backend: str
    outcome: str
    tactic: str = ""
    sparse_us: float | None = None
    dense_us: float | None = None
    reason: str = ""


@dataclass
class ParityReport:
    """The engine's outputs against the source model's, the worst over all outputs and all checked shapes.

    ``relative_error`` is the relative L2 error ``|out - ref| / |ref|``; ``cosine`` the cosine similarity. ``reference`` names the dtype of
    the reference run; ``checked_shapes`` says at which shapes of the range it was compared. ``verified`` is False when ``verify=False``:
    then the figures are None.
    """

    verified: bool
    reference: str = "float32"
    tolerance: float | None = None
    relative_error: float | None = None
    max_abs_error: float | None = None
    cosine: float | None = None
    checked_shapes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Everything about a build. ``engine.report()`` returns it; ``print(report)`` shows it; ``report.as_json()`` is its JSON form."""

    model: str
    device: str
    backend: str
    precision: str
    enabled_precisions: list[str]
    segments: list[SegmentReport] = field(default_factory=list)
    rejects: list[RejectReport] = field(default_factory=list)
    candidates: list[CandidateReport] = field(default_factory=list)
    parity: ParityReport = field(default_factory=lambda: ParityReport(verified=False))
    frontier: Frontier | None = None
    """What the search of precision="auto" built and measured."""
    notes: list[str] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase of the build: capture, lower, partition, build, verify."""
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    sparse_layers: list[SparseLayerReport] = field(default_factory=list)
    """With ``sparse_weights=True``: every linear layer and convolution that has a constant weight."""

    @property
    def build_s(self) -> float:
        return sum(self.phases_s.values())

    @property
    def torch_op_count(self) -> int:
        """Operators that run in PyTorch."""
        return sum(s.op_count for s in self.segments if s.backend == "torch")

    @property
    def op_count(self) -> int:
        return sum(s.op_count for s in self.segments)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """Raises CorruptEngineFile when ``data`` is not a report."""
        report = _load(cls, data)
        report.segments = [_load(SegmentReport, s) for s in report.segments]
        report.rejects = [_load(RejectReport, r) for r in report.rejects]
        report.candidates = [_load(CandidateReport, c) for c in report.candidates]
        report.parity = _load(ParityReport, report.parity)
        if report.frontier is not None:
            report.frontier = _load(Frontier, report.frontier)
            report.frontier.points = [_load(FrontierPoint, p) for p in report.frontier.points]
            report.frontier.layers = [_load(LayerReport, one) for one in report.frontier.layers]
        report.sparse_layers = [_load(SparseLayerReport, s) for s in report.sparse_layers]
        return report

    def __str__(self) -> str:
        from .render_report import render_report

        return render_report(self)


def _load(cls: type[T], data: Any) -> T:
    if not isinstance(data, Mapping):
        raise CorruptEngineFile(f"report: expected an object for {cls.__name__}, got {type(data).__name__}")
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    for name, annotation in known.items():
        if name in data and not _FITS[annotation](data[name]):
            raise CorruptEngineFile(f"report: {cls.__name__}.{name}: expected {annotation}, got {data[name]!r:.100}")
    try:
        return cls(**{k: v for k, v in data.items() if k in known})
    except TypeError as error:
        raise CorruptEngineFile(f"report: {cls.__name__}: {error}") from None
