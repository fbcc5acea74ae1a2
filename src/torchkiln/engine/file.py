"""The engine file: one zip that holds everything an engine is made of. docs/file-format.md describes it.

Nothing in a file is unpickled, imported or evaluated, and no size it declares is believed before it is compared with the file's own.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch

from ..errors import CorruptEngineFile, EngineFileError, TargetMismatch, UnsupportedSchema, UntrustedCode, UserError
from ..replace_file import replace_file
from .archive import ArchiveReader, ArchiveWriter, Member, open_archive
from .contents import BuiltOn, EngineContents, EngineSegment, check_together
from .manifest import SCHEMA, SharedTensors, decode_manifest, decode_members, decode_shared, encode_manifest, field
from .safetensors_member import parse_tensors, tensor_bytes, tensor_chunks
from .strict_json import dump_json, load_json

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

#: Backends whose payload is data that a library interprets. A segment of any other holds machine code, whatever its manifest says.
DATA_BACKENDS = frozenset({"torch", "openvino", "onnxruntime"})

#: Backends whose machine code is the GPU's alone: the system and processor that built it do not matter.
GPU_CODE_BACKENDS = frozenset({"cuda", "tensorrt"})

#: Smaller tensors are not worth comparing with others.
_MIN_SHARED_BYTES = 1024


def write_engine_file(held: Sequence[EngineContents], path: str | PathLike[str]) -> None:
    """Write an engine, for one target or more, to one file, atomically: a reader sees the old file or the new one, and a failure leaves the old one.

    Raises UserError when the place cannot be written, CorruptEngineFile when the contents do not hold together.
    """
    for contents in held:
        contents.check()
    check_together(held)
    final = os.path.realpath(path)
    try:
        with replace_file(final) as file:
            with ArchiveWriter(file) as archive:
                _write(held, archive)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot write the engine file: {error.strerror or error}") from error
    _sync_directory(os.path.dirname(final))


def read_engine_file(
    path: str | PathLike[str],
    trusted: bool = False,
    choose: Callable[[Sequence[EngineContents]], Sequence[EngineContents]] | None = None,
    *,
    to_copy: bool = False,
) -> tuple[EngineContents, ...]:
    """Read an engine: an EngineContents for each target. Nothing of it runs yet; every member that is read has matched its digest, and every
    reference has been checked.

    Args:
        path: a file that ``write_engine_file`` wrote.
        trusted: accept segments that hold machine code. It would run with the caller's rights when they are loaded.
        choose: of what the file holds (without payloads yet), what to read; default: all.
        to_copy: it will only be written again or exported, never loaded: machine code is neither a matter of trust nor of this machine.

    Raises:
        UserError: no readable file at ``path``.
        CorruptEngineFile: damaged, cut short, or not an engine.
        UnsupportedSchema: written by a newer torchkiln.
        TargetMismatch: holds a backend or machine code that cannot run here.
        UntrustedCode: holds machine code, and ``trusted`` is False.
    """
    with _naming(path), open_archive(os.fspath(path)) as archive:
        manifest = _read_manifest(archive)
        members = _check_members(archive, manifest)
        held = decode_manifest(manifest)
        shared = decode_shared(manifest)
        expected = {
            member(index, segment.name)
            for index, contents in enumerate(held)
            for segment in contents.segments
            for member in (payload_member, tensors_member)
        }
        if expected != members.keys():
            raise CorruptEngineFile(f"members: expected a payload and tensors for each segment, got {sorted(expected ^ members.keys())[:5]} besides")
        chosen = held if choose is None else choose(held)
        for contents in chosen:
            for segment in contents.segments if not to_copy else ():
                _check_native_code(segment, contents.built_on, trusted)
        reader = _ArtifactReader(archive, members, shared)
        for index, contents in enumerate(held):
            if any(contents is wanted for wanted in chosen):
                for segment in contents.segments:
                    reader.fill(index, segment)
    return tuple(chosen)


def read_manifest(path: str | PathLike[str]) -> dict[str, Any]:
    """The manifest alone, for looking at an engine: its digest, its schema, and the members' names and sizes are checked, no payload is read.

    Raises UserError, CorruptEngineFile and UnsupportedSchema.
    """
    with _naming(path), open_archive(os.fspath(path)) as archive:
        manifest = _read_manifest(archive)
        _check_members(archive, manifest)
        return manifest


def payload_member(target: int, segment: str) -> str:
    """Name of the member that holds the payload of a segment of the target of that index."""
    return f"targets/{target}/{segment}.payload"


def tensors_member(target: int, segment: str) -> str:
    """Name of the member that holds that segment's tensors."""
    return f"targets/{target}/{segment}.safetensors"


@contextmanager
def _naming(path: str | PathLike[str]) -> Iterator[None]:
    """Put the file's path before the message of what is wrong with it."""
    try:
        yield
    except EngineFileError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _write(held: Sequence[EngineContents], archive: ArchiveWriter) -> None:
    shared = _find_shared(held)
    members: dict[str, Member] = {}
    for index, contents in enumerate(held):
        for segment in contents.segments:
            own = {name: tensor for name, tensor in segment.artifact.tensors.items() if name not in shared[index][segment.name]}
            name = payload_member(index, segment.name)
            members[name] = archive.add(name, [segment.artifact.payload])
            name = tensors_member(index, segment.name)
            members[name] = archive.add(name, tensor_chunks(own, f"segment {segment.name}"))
    manifest = dump_json(encode_manifest(held, members, shared), "manifest")
    archive.add(MANIFEST, [manifest])
    archive.add(MANIFEST_DIGEST, [hashlib.sha256(manifest).hexdigest().encode("ascii")])


def _find_shared(held: Sequence[EngineContents]) -> list[SharedTensors]:
    """The tensors whose bytes a segment before has already, in this target or another: they are stored once."""
    shared: list[SharedTensors] = []
    seen: dict[Any, list[tuple[tuple[int, str, str], torch.Tensor]]] = {}
    for index, contents in enumerate(held):
        found: SharedTensors = {segment.name: {} for segment in contents.segments}
        for segment in contents.segments:
            mine = []
            for name, tensor in segment.artifact.tensors.items():
                if tensor.numel() * tensor.element_size() < _MIN_SHARED_BYTES:
                    continue
                like = (tensor.dtype, tuple(tensor.shape))
                for source, other in seen.get(like, ()):
                    if other.data_ptr() == tensor.data_ptr() or torch.equal(tensor_bytes(other), tensor_bytes(tensor)):
                        found[segment.name][name] = source
                        break
                else:
                    mine.append((like, ((index, segment.name, name), tensor)))
            for like, entry in mine:
                seen.setdefault(like, []).append(entry)
        shared.append(found)
    return shared


def _read_manifest(archive: ArchiveReader) -> dict[str, Any]:
    data = archive.read(MANIFEST, MAX_MANIFEST_BYTES)
    digest = archive.read(MANIFEST_DIGEST, 64)
    if hashlib.sha256(data).hexdigest().encode("ascii") != digest:
        raise CorruptEngineFile(f"{MANIFEST}: its bytes do not match {MANIFEST_DIGEST}: the file is damaged; write or copy it again")
    manifest = load_json(data, MANIFEST)
    schema = field(manifest, "schema", int)
    if schema > SCHEMA:
        raise UnsupportedSchema(
            f"schema {schema}, written by torchkiln {manifest.get('torchkiln')!r:.50}: this version reads up to schema {SCHEMA}: upgrade torchkiln"
        )
    if schema < 1:
        raise CorruptEngineFile(f"manifest: schema: expected 1 to {SCHEMA}, got {schema}")
    return manifest


def _check_members(archive: ArchiveReader, manifest: dict[str, Any]) -> dict[str, Member]:
    """The archive holds exactly the members that the manifest lists, at the sizes it lists."""
    members = decode_members(manifest)
    odd = archive.names ^ {*members, MANIFEST, MANIFEST_DIGEST}
    if odd:
        raise CorruptEngineFile(f"members: the archive and its manifest disagree about {sorted(odd)[:5]}")
    for name, member in members.items():
        if archive.size(name) != member.size:
            raise CorruptEngineFile(f"{name}: expected {member.size} bytes, got {archive.size(name)}")
    return members


def _check_native_code(segment: EngineSegment, built_on: BuiltOn, trusted: bool) -> None:
    if segment.backend in DATA_BACKENDS and not segment.artifact.native_code:
        return
    if not trusted:
        raise UntrustedCode(
            f"segment {segment.name} ({segment.backend}) holds machine code that loading would run with your rights: "
            "load with trusted=True only if you know where the file comes from"
        )
    if segment.backend in GPU_CODE_BACKENDS:
        return
    built, here = (built_on.system, built_on.machine), (platform.system(), platform.machine())
    if built != here:
        raise TargetMismatch(
            f"segment {segment.name} ({segment.backend}) holds machine code for {' '.join(built)}, this machine is {' '.join(here)}: "
            "compile the model on this kind of machine"
        )


class _ArtifactReader:
    """Fills in segments' payloads and tensors, compared with their digests; a member is read once."""

    def __init__(self, archive: ArchiveReader, members: dict[str, Member], shared: Sequence[SharedTensors]) -> None:
        self._archive = archive
        self._members = members
        self._shared = shared
        self._tensors: dict[tuple[int, str], dict[str, torch.Tensor]] = {}

    def fill(self, target: int, segment: EngineSegment) -> None:
        name = payload_member(target, segment.name)
        segment.artifact.payload = self._archive.read(name)
        _check_digest(name, segment.artifact.payload, self._members[name])
        tensors = dict(self._own(target, segment.name))
        for key, (source_target, source, source_key) in self._shared[target][segment.name].items():
            stored = self._own(source_target, source)
            if key in tensors or source_key not in stored:
                raise CorruptEngineFile(
                    f"segment {segment.name}: shared tensor {key!r:.100}: {source} has no tensor {source_key!r:.100}, or it is stored twice"
                )
            tensors[key] = stored[source_key]
        segment.artifact.tensors = tensors

    def _own(self, target: int, segment: str) -> dict[str, torch.Tensor]:
        """The tensors that are stored with a segment."""
        if (target, segment) not in self._tensors:
            name = tensors_member(target, segment)
            buffer = self._archive.read_tensor(name)
            _check_digest(name, buffer.numpy().data, self._members[name])
            self._tensors[target, segment] = parse_tensors(buffer, name)
        return self._tensors[target, segment]


def _check_digest(name: str, data: bytes | memoryview, member: Member) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != member.sha256:
        raise CorruptEngineFile(f"{name}: expected sha256 {member.sha256[:100]}, got {digest}: the file is damaged; write or copy it again")


def _sync_directory(directory: str) -> None:
    """Make the rename itself durable, where the system has directories that can be synced (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
