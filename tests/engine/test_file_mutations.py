"""Over a thousand damaged and forged engine files: each gives a typed error or the original's outputs, and none writes anywhere."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import zipfile
from io import BytesIO

import pytest
import torch

from torchkiln.engine.engine import load
from torchkiln.engine.file import write_engine_file
from torchkiln.errors import CorruptEngineFile, TargetMismatch, TorchkilnError, UnsupportedSchema, UntrustedCode

from .tiny_engine import call, members_of, signed, tiny_contents, zip_of

ODD_VALUES = (None, -1, 2**70, "x", [], {}, True, 1.5, "../../sentinel/evil", [[[]]], {"node": "nowhere"})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "tiny.kiln"
    write_engine_file([tiny_contents()], path)
    return path.read_bytes(), call(load(path))


@pytest.fixture
def attempt(original, tmp_path, monkeypatch):
    """``attempt(data, what)`` loads and calls; it returns the typed error, or None when the outputs equal the original's."""
    (tmp_path / "sentinel").mkdir()
    (tmp_path / "sentinel" / "kept").write_text("kept")
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "work" / "deep" / "mutated.kiln"

    def tree():
        return {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != path}

    before = tree()

    def attempt_one(data, what):
        path.write_bytes(data)
        try:
            outputs = call(load(path))
        except TorchkilnError as error:
            return error
        except Exception as error:
            raise AssertionError(f"{what}: expected a TorchkilnError or equal outputs, got {type(error).__name__}: {error}") from error
        assert len(outputs) == len(original[1]), what
        for got, expected in zip(outputs, original[1], strict=True):
            assert torch.equal(got, expected), f"{what}: loaded, but computes something else"
        return None

    yield attempt_one
    assert tree() == before


def test_damaged_bytes(original, attempt):
    data, _ = original
    rng = random.Random(0)
    errors = 0
    for case in range(560):
        damaged = bytearray(data)
        kind = ("flip", "flip", "overwrite", "truncate", "delete", "insert", "append")[case % 7]
        at = rng.randrange(len(data))
        if kind == "flip":
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == "overwrite":
            run = rng.randbytes(rng.randint(1, 16))
            damaged[at : at + len(run)] = run
        elif kind == "truncate":
            del damaged[at:]
        elif kind == "delete":
            del damaged[at : at + rng.randint(1, 40)]
        elif kind == "insert":
            damaged[at:at] = rng.randbytes(rng.randint(1, 40))
        else:
            damaged += rng.randbytes(rng.randint(1, 40))
        errors += attempt(bytes(damaged), f"case {case}: {kind} at {at}") is not None
    # The rest damaged what no meaning hangs on: dates, paddings, bytes after the end.
    assert errors > 350


def test_every_byte_of_the_zip_directory(original, attempt):
    data, _ = original
    with zipfile.ZipFile(BytesIO(data)) as archive:
        start = archive.start_dir
    for at in range(start, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        attempt(bytes(damaged), f"directory byte {at}")


def _paths(value, path=()):
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(part, (*path, key))


def _replaced(value, path, odd):
    """``value`` with what lies at ``path`` replaced."""
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = odd
    return value


def test_forged_manifests(original, attempt):
    members = members_of(original[0])
    manifest = json.loads(members["manifest.json"])
    rng = random.Random(1)
    paths = [path for path in _paths(manifest) if path]
    cases = [(path, odd) for path in paths for odd in rng.sample(ODD_VALUES, 3)]
    for path, odd in cases:
        attempt(signed(members, _replaced(manifest, path, odd)), f"manifest {path} = {odd!r}")
    for path in paths:
        forged = copy.deepcopy(manifest)
        place = forged
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        attempt(signed(members, forged), f"manifest without {path}")
    assert len(cases) > 300


def test_forged_graphs(original, attempt):
    members = members_of(original[0])
    name = "targets/0/segment_1.payload"
    graph = json.loads(members[name])
    rng = random.Random(2)
    paths = [path for path in _paths(graph) if path and path[-1] != "alpha"]
    refused = 0
    for path in paths:
        for odd in rng.sample(ODD_VALUES, 4):
            if path[-1] == "kwargs" and odd == {}:  # a graph without the alpha: as good as the original
                continue
            forged = {**members, name: json.dumps(_replaced(graph, path, odd)).encode()}
            refused += attempt(signed(forged), f"graph {path} = {odd!r}") is not None
    assert refused > 100


def test_forged_tensors(original, attempt):
    members = members_of(original[0])
    name = "targets/0/segment_0.safetensors"
    size = int.from_bytes(members[name][:8], "little")
    header, data = json.loads(members[name][8 : 8 + size]), members[name][8 + size :]
    for path in [path for path in _paths(header) if path]:
        for odd in (*ODD_VALUES, 2**62, "F8_E5M2", "BOOL"):
            text = json.dumps(_replaced(header, path, odd)).encode()
            assert (
                attempt(signed({**members, name: len(text).to_bytes(8, "little") + text + data}), f"tensors {path} = {odd!r}") is not None or odd == 0
            )
    for length in (0, 7, 2**40, 2**64 - 1):
        assert isinstance(
            attempt(signed({**members, name: length.to_bytes(8, "little") + members[name][8:]}), f"header of {length}"), CorruptEngineFile
        )


def test_archives_that_no_writer_makes(original, attempt):
    members = members_of(original[0])
    names = list(members)
    payload = "targets/0/segment_0.payload"

    def corrupt(data, what):
        assert isinstance(attempt(data, what), CorruptEngineFile), what

    for name in names:
        corrupt(zip_of({n: d for n, d in members.items() if n != name}), f"{name} dropped")
        with pytest.warns(UserWarning, match="Duplicate"):
            corrupt(zip_of([*members.items(), (name, members[name])]), f"{name} twice")
        for other in names:
            if members[other] != members[name]:
                corrupt(zip_of({**members, name: members[other]}), f"{name} holds {other}")
    for evil in (
        "../sentinel/evil",
        "../../sentinel/evil",
        "/tmp/evil",
        "segments/../../evil",
        "C:\\evil",
        "a\\b",
        "./x",
        "segments//x",
        "x\x00y",
        "é\n",
    ):
        corrupt(zip_of({**members, evil: b"evil"}), f"extra {evil!r}")
        corrupt(zip_of({(evil if n == payload else n): d for n, d in members.items()}), f"payload named {evil!r}")
        manifest = json.loads(members["manifest.json"])
        manifest["members"][evil] = manifest["members"].pop(payload)
        corrupt(signed({(evil if n == payload else n): d for n, d in members.items()}, manifest), f"payload listed as {evil!r}")
        manifest = json.loads(members["manifest.json"])
        manifest["targets"][0]["segments"][0]["name"] = evil
        corrupt(signed(members, manifest), f"segment named {evil!r}")

    link = zipfile.ZipInfo(payload)
    link.external_attr = 0o120777 << 16
    corrupt(zip_of([(link if n == payload else n, d) for n, d in members.items()]), "symbolic link")
    bomb = BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(50_000_000) if name == payload else data)
    corrupt(bomb.getvalue(), "compression bomb")
    for _, compression in (("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        corrupt(packed.getvalue(), f"compression {compression}")
    corrupt(zip_of([(f"segments/s{i}.payload", b"") for i in range(20_001)]), "too many members")
    corrupt(b"", "empty")
    corrupt(b"PK\x05\x06" + bytes(18), "empty archive")


def test_declared_sizes(original, attempt):
    """Sizes in the directory that are larger than the file must not be believed: no memory is asked for them."""
    data, _ = original
    with zipfile.ZipFile(BytesIO(data)) as archive:
        position, count = archive.start_dir, len(archive.namelist())
    for _ in range(count):
        name_size, extra_size, comment_size = struct.unpack_from("<3H", data, position + 28)
        for size in (2**31, 2**32 - 2, len(data) + 1, 0):
            forged = bytearray(data)
            struct.pack_into("<2L", forged, position + 20, size, size)
            assert isinstance(attempt(bytes(forged), f"size {size}"), CorruptEngineFile)
        for flags in (0x1, 0x41):
            forged = bytearray(data)
            struct.pack_into("<H", forged, position + 8, flags)
            assert isinstance(attempt(bytes(forged), f"flags {flags}"), CorruptEngineFile)
        position += 46 + name_size + extra_size + comment_size


def test_meaning(original, attempt):
    """Forged files whose bytes are all sound: the meaning is what is wrong, and the error has the type that says so."""
    members = members_of(original[0])

    def forged(edit):
        manifest = json.loads(members["manifest.json"])
        edit(manifest)
        return attempt(signed(members, manifest), "meaning")

    def target(edit):
        return forged(lambda m: edit(m["targets"][0]))

    def graph(edit, segment="segment_1"):
        name = f"targets/0/{segment}.payload"
        value = json.loads(members[name])
        edit(value["nodes"])
        return attempt(signed({**members, name: json.dumps(value).encode()}), "graph")

    newer = forged(lambda m: m.update(schema=2, torchkiln="9.9", segments="changed in schema 2"))
    assert isinstance(newer, UnsupportedSchema)
    assert "upgrade" in str(newer)
    assert isinstance(forged(lambda m: m.update(schema=0)), CorruptEngineFile)
    assert isinstance(target(lambda t: t.update(device="cuda:0")), CorruptEngineFile)
    assert isinstance(target(lambda t: t.update(device="cuda:0", names=["sm_89"])), TargetMismatch)
    assert isinstance(target(lambda t: t.update(names=[])), CorruptEngineFile)
    assert isinstance(target(lambda t: t.update(names=["cpu", "sm_89"])), CorruptEngineFile)
    assert isinstance(forged(lambda m: m["targets"].append(m["targets"][0])), CorruptEngineFile)
    assert isinstance(forged(lambda m: m.update(targets=[])), CorruptEngineFile)
    assert isinstance(target(lambda t: t.update(device="warp")), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"][0].update(backend="tensorwarp")), TargetMismatch)
    assert isinstance(target(lambda m: m["segments"][0].update(backend="inductor")), UntrustedCode)
    assert isinstance(target(lambda m: m["segments"][0].update(native_code=True)), UntrustedCode)
    for slots in ([9], [-1], [3], [0, 1]):
        assert isinstance(target(lambda m, slots=slots: m["segments"][0].update(inputs=slots)), CorruptEngineFile)
        assert isinstance(target(lambda m, slots=slots: m["segments"][1].update(outputs=[*slots, 0])), CorruptEngineFile)
    assert isinstance(target(lambda m: m["outputs"][0].update(slot=4)), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"].reverse()), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"].append(m["segments"][0])), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"][1]["shared_tensors"].update(weight=[0, "segment_1", "weight"])), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"][1]["shared_tensors"].update(weight=[0, "segment_0", "absent"])), CorruptEngineFile)
    assert isinstance(target(lambda m: m["segments"][1]["shared_tensors"].update(weight=[1, "segment_0", "weight"])), CorruptEngineFile)

    assert isinstance(graph(lambda nodes: nodes.reverse()), CorruptEngineFile)
    for target, expected in (
        ("nolibrary.op.default", TargetMismatch),
        ("aten.add.NoOverload", TargetMismatch),
        ("load_library.x.y", TargetMismatch),
        ("aten.from_file.default", CorruptEngineFile),
        ("aten.save.default", CorruptEngineFile),
        ("os.system", CorruptEngineFile),
        ("builtins.eval", CorruptEngineFile),
        ("higher_order.inline_asm_elementwise", CorruptEngineFile),
        ("aten.__class__.default", TargetMismatch),
    ):
        error = graph(lambda nodes, target=target: next(n for n in nodes if n["op"] == "call").update(target=target))
        assert isinstance(error, expected), target
        assert target.split(".")[0] in str(error)

    def cycle(nodes):
        calls = [n for n in nodes if n["op"] == "call"]
        calls[0]["args"][0] = {"node": calls[1]["name"]}

    assert "no node before it defines" in str(graph(cycle))


def test_code_hidden_in_names(original, attempt):
    """FX writes Python source from a graph: nothing of the file may get into it unchecked."""
    members = members_of(original[0])
    code = "__import__('pathlib').Path('pwned').touch()"
    for hidden in (f"x, y={code}", f"x):\n    {code}\n    def f(x", code, f"x = {code}"):
        for name in ("targets/0/segment_0.payload", "targets/0/segment_1.payload"):
            graph = json.loads(members[name])
            text = json.dumps(graph)
            for n in graph["nodes"]:
                for key in ("name", "tensor", "target"):
                    if key in n:
                        renamed = text.replace(json.dumps(n[key]), json.dumps(hidden))
                        assert attempt(signed({**members, name: renamed.encode()}), f"{key} {hidden!r}") is not None
            for n in graph["nodes"]:
                if n["op"] == "call":
                    odd = copy.deepcopy(graph)
                    for target in ("aten.relu.default", "operator.neg", "higher_order.cond"):
                        place = next(m for m in odd["nodes"] if m.get("name") == n["name"])
                        place.update(target=target, kwargs={hidden: 1})
                        assert attempt(signed({**members, name: json.dumps(odd).encode()}), f"keyword {hidden!r}") is not None


def test_deep_and_huge_json(original, attempt):
    members = members_of(original[0])
    for text in (b"[" * 200_000, b'{"nodes":' * 50_000, b"1" * 100_000, b"\xff\xfe", b"NaN", b"null", b'{"nodes": []}'):
        assert isinstance(attempt(signed({**members, "targets/0/segment_0.payload": text}), "payload"), CorruptEngineFile)
        digest = hashlib.sha256(text).hexdigest().encode()
        assert isinstance(attempt(zip_of({**members, "manifest.json": text, "manifest.sha256": digest}), "manifest"), CorruptEngineFile)
    manifest = json.loads(members["manifest.json"])
    deep = {"leaf": "tensor"}
    for _ in range(100):
        deep = {"tuple": [deep]}
    for key in ("args_structure", "outputs_structure"):
        assert isinstance(attempt(signed(members, {**manifest, "targets": [{**manifest["targets"][0], key: deep}]}), key), CorruptEngineFile)
