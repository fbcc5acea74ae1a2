"""The engine file: one zip that holds everything an engine is made of. docs/file-format.md describes it.

Nothing in a file is unpickled, imported or evaluated, and no size it declares is believed before it is compared with the file's own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch

from ..errors import CorruptEngineFile, EngineFileError, TargetMismatch, UnsupportedSchema, UntrustedCode, UserError
from .archive import ArchiveReader, ArchiveWriter, Member, open_archive
from .contents import EngineContents, EngineSegment
from .manifest import SCHEMA, SharedTensors, decode_contents, decode_members, decode_shared, encode_manifest, field
from .safetensors_member import parse_tensors, tensor_bytes, tensor_chunks
from .strict_json import dump_json, load_json

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

#: Backends whose payload is data that a library interprets. A segment of any other holds machine code, whatever its manifest says.
DATA_BACKENDS = frozenset({"torch", "openvino", "onnxruntime"})

#: Smaller tensors are not worth comparing with others.
_MIN_SHARED_BYTES = 1024


def write_engine_file(contents: EngineContents, path: str | PathLike[str]) -> None:
    """Write an engine to one file, atomically: a reader sees the old file or the new one, and a failure leaves the old one.

    Raises UserError when the place cannot be written, CorruptEngineFile when ``contents`` do not hold together.
    """
    contents.check()
    final = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with open(temporary, "xb+") as file:
                with ArchiveWriter(file) as archive:
                    _write(contents, archive)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot write the engine file: {error.strerror or error}") from error
    _sync_directory(os.path.dirname(final))


def read_engine_file(path: str | PathLike[str], trusted: bool = False) -> EngineContents:
    """Read an engine. Nothing of it runs yet; every member has matched its digest, and every reference has been checked.

    Args:
        path: a file that ``write_engine_file`` wrote.
        trusted: accept segments that hold machine code. It would run with the caller's rights when they are loaded.

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
        contents = decode_contents(manifest)
        shared = decode_shared(manifest)
        expected = {member for segment in contents.segments for member in (payload_member(segment.name), tensors_member(segment.name))}
        if expected != members.keys():
            raise CorruptEngineFile(f"members: expected a payload and tensors for each segment, got {sorted(expected ^ members.keys())[:5]} besides")
        for segment in contents.segments:
            _check_native_code(segment, manifest, trusted)
        _read_artifacts(archive, contents, members, shared)
    return contents


def read_manifest(path: str | PathLike[str]) -> dict[str, Any]:
    """The manifest alone, for looking at an engine: its digest, its schema, and the members' names and sizes are checked, no payload is read.

    Raises UserError, CorruptEngineFile and UnsupportedSchema.
    """
    with _naming(path), open_archive(os.fspath(path)) as archive:
        manifest = _read_manifest(archive)
        _check_members(archive, manifest)
        return manifest


def payload_member(segment: str) -> str:
    """Name of the member that holds a segment's payload."""
    return f"segments/{segment}.payload"


def tensors_member(segment: str) -> str:
    """Name of the member that holds a segment's tensors."""
    return f"segments/{segment}.safetensors"


@contextmanager
def _naming(path: str | PathLike[str]) -> Iterator[None]:
    """Put the file's path before the message of what is wrong with it."""
    try:
        yield
    except EngineFileError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _write(contents: EngineContents, archive: ArchiveWriter) -> None:
    shared = _find_shared(contents)
    members: dict[str, Member] = {}
    for segment in contents.segments:
        own = {name: tensor for name, tensor in segment.artifact.tensors.items() if name not in shared[segment.name]}
        members[payload_member(segment.name)] = archive.add(payload_member(segment.name), [segment.artifact.payload])
        members[tensors_member(segment.name)] = archive.add(tensors_member(segment.name), tensor_chunks(own, f"segment {segment.name}"))
    manifest = dump_json(encode_manifest(contents, members, shared), "manifest")
    archive.add(MANIFEST, [manifest])
    archive.add(MANIFEST_DIGEST, [hashlib.sha256(manifest).hexdigest().encode("ascii")])


def _find_shared(contents: EngineContents) -> SharedTensors:
    """The tensors whose bytes a segment before has already: weights that two segments read are stored once."""
    shared: SharedTensors = {segment.name: {} for segment in contents.segments}
    seen: dict[Any, list[tuple[str, str, torch.Tensor]]] = {}
    for segment in contents.segments:
        mine = []
        for name, tensor in segment.artifact.tensors.items():
            if tensor.numel() * tensor.element_size() < _MIN_SHARED_BYTES:
                continue
            like = (tensor.dtype, tuple(tensor.shape))
            for source, source_name, other in seen.get(like, ()):
                if other.data_ptr() == tensor.data_ptr() or torch.equal(tensor_bytes(other), tensor_bytes(tensor)):
                    shared[segment.name][name] = (source, source_name)
                    break
            else:
                mine.append((like, (segment.name, name, tensor)))
        for like, entry in mine:
            seen.setdefault(like, []).append(entry)
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


def _check_native_code(segment: EngineSegment, manifest: dict[str, Any], trusted: bool) -> None:
    if segment.backend in DATA_BACKENDS and not segment.artifact.native_code:
        return
    if not trusted:
        raise UntrustedCode(
            f"segment {segment.name} ({segment.backend}) holds machine code that loading would run with your rights: "
            "load with trusted=True only if you know where the file comes from"
        )
    target = manifest["target"]
    built, here = (field(target, "system", str, "target"), field(target, "machine", str, "target")), (platform.system(), platform.machine())
    if built != here:
        raise TargetMismatch(
            f"segment {segment.name} ({segment.backend}) holds machine code for {' '.join(built)}, this machine is {' '.join(here)}: "
            "compile the model on this kind of machine"
        )


def _read_artifacts(archive: ArchiveReader, contents: EngineContents, members: dict[str, Member], shared: SharedTensors) -> None:
    """Fill in each segment's payload and tensors, compared with their digests."""
    loaded: dict[str, dict[str, torch.Tensor]] = {}
    for segment in contents.segments:
        name = payload_member(segment.name)
        segment.artifact.payload = archive.read(name)
        _check_digest(name, segment.artifact.payload, members[name])
        name = tensors_member(segment.name)
        buffer = archive.read_tensor(name)
        _check_digest(name, buffer.numpy().data, members[name])
        tensors = parse_tensors(buffer, name)
        for key, (source, source_key) in shared[segment.name].items():
            if key in tensors or source_key not in loaded[source]:
                raise CorruptEngineFile(
                    f"segment {segment.name}: shared tensor {key!r:.100}: {source} has no tensor {source_key!r:.100}, or it is stored twice"
                )
            tensors[key] = loaded[source][source_key]
        loaded[segment.name] = segment.artifact.tensors = tensors


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
