"""The manifest: an engine as JSON values, without the segments' payloads and tensors. docs/file-format.md describes each field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..backends.registry import BACKENDS
from ..dtypes import dtype_name, parse_dtype
from ..errors import CorruptEngineFile, TargetMismatch, UserError
from ..inputs import Input
from .archive import Member
from .artifact import Artifact
from .contents import SEGMENT_NAME, BuiltOn, EngineContents, EngineSegment, EqualDims, check_together
from .report import Report
from .structure import Structure

#: Version of the file's layout. A reader refuses a larger number, and knows how to read every smaller one.
SCHEMA = 1

#: Of one target: segment name -> {tensor: (target index, segment, tensor) that holds the same bytes, in it or in a target before it}
SharedTensors = dict[str, dict[str, tuple[int, str, str]]]


def encode_manifest(held: Sequence[EngineContents], members: dict[str, Member], shared: Sequence[SharedTensors]) -> dict[str, Any]:
    """The manifest of an engine whose payloads and tensors are in ``members``."""
    return {
        "schema": SCHEMA,
        "torchkiln": __version__,
        "targets": [_encode_contents(contents, tensors) for contents, tensors in zip(held, shared, strict=True)],
        "members": {name: {"size": member.size, "sha256": member.sha256} for name, member in members.items()},
    }


def _encode_contents(contents: EngineContents, shared: SharedTensors) -> dict[str, Any]:
    built_on = contents.built_on
    return {
        "names": list(contents.targets),
        "device": contents.device,
        "model_sha256": contents.model_sha256,
        "built_on": {"system": built_on.system, "machine": built_on.machine, "torchkiln": built_on.torchkiln, "versions": built_on.versions},
        "inputs": [_encode_input(spec) for spec in contents.inputs],
        "args_structure": contents.args_structure.as_json(),
        "outputs": [{"name": name, "slot": slot} for name, slot in zip(contents.output_names, contents.output_slots, strict=True)],
        "outputs_structure": contents.outputs_structure.as_json(),
        "slot_count": contents.slot_count,
        "equal_dims": [[list(pair) for pair in group] for group in contents.equal_dims],
        "segments": [
            {
                "name": segment.name,
                "backend": segment.backend,
                "precision": segment.precision,
                "inputs": list(segment.inputs),
                "outputs": list(segment.outputs),
                "native_code": segment.artifact.native_code,
                "metadata": segment.artifact.metadata,
                "shared_tensors": {name: list(source) for name, source in shared[segment.name].items()},
            }
            for segment in contents.segments
        ],
        "report": contents.report.as_json(),
    }


def decode_manifest(manifest: dict[str, Any]) -> list[EngineContents]:
    """What a manifest describes, checked, one EngineContents for each target, with artifacts that have no payload and no tensors yet.

    Raises CorruptEngineFile naming the field, and TargetMismatch for a backend this version does not have.
    """
    targets = field(manifest, "targets", list)
    if not targets:
        raise CorruptEngineFile("manifest: targets: expected at least one, got none")
    held = [_decode_contents(data, f"targets[{index}]") for index, data in enumerate(targets)]
    check_together(held)
    return held


def _decode_contents(data: Any, where: str) -> EngineContents:
    outputs = [field(output, "name", str, f"{where}: outputs[{i}]") for i, output in enumerate(field(data, "outputs", list, where))]
    names = field(data, "names", list, where)
    if not all(type(name) is str for name in names):
        raise CorruptEngineFile(f"{where}: names: expected strings, got {names!r:.200}")
    contents = EngineContents(
        device=field(data, "device", str, where),
        inputs=tuple(_decode_input(spec, f"{where}: inputs[{i}]") for i, spec in enumerate(field(data, "inputs", list, where))),
        args_structure=Structure.from_json(field(data, "args_structure", dict, where)),
        outputs_structure=Structure.from_json(field(data, "outputs_structure", dict, where)),
        output_names=tuple(outputs),
        output_slots=tuple(field(output, "slot", int, f"{where}: outputs[{i}]") for i, output in enumerate(data["outputs"])),
        slot_count=field(data, "slot_count", int, where),
        segments=tuple(_decode_segment(segment, f"{where}: segments[{i}]") for i, segment in enumerate(field(data, "segments", list, where))),
        report=Report.from_json(field(data, "report", dict, where)),
        equal_dims=_decode_equal_dims(data.get("equal_dims", [])),
        targets=tuple(names),
        model_sha256=field(data, "model_sha256", str, where),
        built_on=_decode_built_on(field(data, "built_on", dict, where), f"{where}: built_on"),
    )
    contents.check()
    return contents


def _decode_built_on(data: dict[str, Any], where: str) -> BuiltOn:
    versions = field(data, "versions", dict, where)
    if not all(type(value) is str for value in versions.values()):
        raise CorruptEngineFile(f"{where}: versions: expected strings, got {versions!r:.200}")
    system, machine, torchkiln = (field(data, name, str, where) for name in ("system", "machine", "torchkiln"))
    return BuiltOn(system, machine, torchkiln, versions)


def decode_members(manifest: dict[str, Any]) -> dict[str, Member]:
    """Size and digest of each member. Raises CorruptEngineFile."""
    members = field(manifest, "members", dict)
    return {name: Member(field(m, "size", int, f"members[{name!r}]"), field(m, "sha256", str, f"members[{name!r}]")) for name, m in members.items()}


def decode_shared(manifest: dict[str, Any]) -> list[SharedTensors]:
    """Which tensors each target's segments share with one before. Raises CorruptEngineFile."""
    found: list[SharedTensors] = []
    seen: set[tuple[int, str]] = set()
    for index, target in enumerate(field(manifest, "targets", list)):
        shared: SharedTensors = {}
        for segment in field(target, "segments", list, f"targets[{index}]"):
            pairs = field(segment, "shared_tensors", dict, "segment")
            for name, source in pairs.items():
                is_triple = isinstance(source, list) and [type(part) for part in source] == [int, str, str]
                if not is_triple or (source[0], source[1]) not in seen:
                    raise CorruptEngineFile(f"segment {segment['name']}: shared tensor {name!r:.100}: expected [target, earlier segment, tensor]")
            shared[segment["name"]] = {name: (source[0], source[1], source[2]) for name, source in pairs.items()}
            seen.add((index, segment["name"]))
        found.append(shared)
    return found


def field(data: Any, name: str, kind: type, where: str = "manifest") -> Any:
    """``data[name]``, which must be exactly of type ``kind``. Raises CorruptEngineFile."""
    if not isinstance(data, dict) or name not in data:
        raise CorruptEngineFile(f"{where}: expected an object with {name!r}")
    if type(data[name]) is not kind:
        raise CorruptEngineFile(f"{where}: {name}: expected {kind.__name__}, got {type(data[name]).__name__}")
    return data[name]


def _integers(data: Any, name: str, where: str) -> tuple[int, ...]:
    values = field(data, name, list, where)
    if not all(type(value) is int for value in values):
        raise CorruptEngineFile(f"{where}: {name}: expected integers, got {values!r:.200}")
    return tuple(values)


def _encode_input(spec: Input) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": dtype_name(spec.dtype),
        "any_float": spec.any_float,
        "min_shape": list(spec.min_shape),
        "opt_shape": list(spec.opt_shape),
        "max_shape": list(spec.max_shape),
        "tensor_domain": None if spec.tensor_domain is None else [float(bound) for bound in spec.tensor_domain],
    }


def _decode_equal_dims(data: Any) -> EqualDims:
    def is_pair(pair: Any) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)

    if not isinstance(data, list) or not all(isinstance(group, list) and all(map(is_pair, group)) for group in data):
        raise CorruptEngineFile(f"equal_dims: expected groups of [input, dimension], got {data!r:.200}")
    return tuple(tuple((index, dim) for index, dim in group) for group in data)


def _decode_input(data: Any, where: str) -> Input:
    shapes = {name: _integers(data, name, where) for name in ("min_shape", "opt_shape", "max_shape")}
    domain = None
    if data.get("tensor_domain") is not None:
        bounds = field(data, "tensor_domain", list, where)
        if len(bounds) != 2 or not all(type(bound) is float for bound in bounds):
            raise CorruptEngineFile(f"{where}: tensor_domain: expected [low, high], got {bounds!r:.200}")
        domain = (bounds[0], bounds[1])
    try:
        return Input(
            **shapes,
            dtype=parse_dtype(field(data, "dtype", str, where)),
            any_float=data.get("any_float") is True,
            name=field(data, "name", str, where),
            tensor_domain=domain,
        )
    except UserError as error:
        raise CorruptEngineFile(f"{where}: {error}") from None


def _decode_segment(data: Any, where: str) -> EngineSegment:
    backend = field(data, "backend", str, where)
    if SEGMENT_NAME.fullmatch(backend) and backend not in BACKENDS:
        raise TargetMismatch(
            f"{where}: backend {backend!r} is not one of this torchkiln {__version__} ({', '.join(BACKENDS)}): load it with a newer one"
        )
    return EngineSegment(
        name=field(data, "name", str, where),
        backend=backend,
        precision=field(data, "precision", str, where),
        inputs=_integers(data, "inputs", where),
        outputs=_integers(data, "outputs", where),
        artifact=Artifact(b"", metadata=field(data, "metadata", dict, where), native_code=field(data, "native_code", bool, where)),
    )
