"""MODEL strings: what each form loads, and what a wrong one says."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from torchkiln.capture.sources import load_model
from torchkiln.errors import MissingPackage, ModelSourceError
from torchkiln.inputs import Input

FACTORIES = """
    import torch
    from torch import nn
    from helper_beside import WIDTH

    def bare():
        return nn.Linear(WIDTH, 2)

    def with_inputs():
        return nn.Linear(WIDTH, 2), [torch.rand(5, WIDTH)]

    def embedding():
        return nn.Embedding(40, 3), torch.tensor([[0, 7, 39]])

    def number():
        return 7

    def broken():
        raise RuntimeError("no luck")

    ready = nn.Sequential(nn.Linear(WIDTH, 1), nn.Dropout())
    Net = nn.ReLU
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("WIDTH = 3\n")
    path = tmp_path / "my_models.py"
    path.write_text(textwrap.dedent(FACTORIES))
    return path


def test_torchvision_is_seeded_in_eval_and_leaves_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (load_model("torchvision:squeezenet1_1", seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    weight = next(first.model.parameters())
    assert torch.equal(weight, next(again.model.parameters()))
    assert not torch.equal(weight, next(other.model.parameters()))
    assert not first.model.training
    assert first.default_inputs == [Input((1, 3, 224, 224))]
    assert first.notes == []


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lraspp_mobilenet_v3_large", [(1, 3, 224, 224)]),
        ("quantized_mobilenet_v2", [(1, 3, 224, 224)]),
        ("r3d_18", [(1, 3, 16, 112, 112)]),
        ("raft_small", [(1, 3, 128, 128)] * 2),
        ("inception_v3", [(1, 3, 299, 299)]),
    ],
)
def test_torchvision_namespaces_suggest_shapes_without_the_network(name: str, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("weights were fetched"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: pytest.fail("weights were fetched"))
    if name == "inception_v3":
        monkeypatch.setattr(nn.init, "trunc_normal_", lambda t, **k: t)  # its initialisation takes seconds and is not what is tested
    assert [i.opt_shape for i in load_model(f"torchvision:{name}").default_inputs or []] == shapes


def test_detection_has_no_default_inputs_and_says_so() -> None:
    loaded = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert loaded.default_inputs is None
    assert any("list of images" in n for n in loaded.notes)


def test_zero_heads_are_redrawn_with_a_note() -> None:
    loaded = load_model("torchvision:vit_b_16", seed=2)
    head = loaded.model.heads.head  # type: ignore[union-attr]
    assert head.weight.std() > 0.01
    assert head.bias.count_nonzero() == head.bias.numel()
    assert any("heads.head" in n for n in loaded.notes)
    assert torch.equal(head.weight, load_model("torchvision:vit_b_16", seed=2).model.heads.head.weight)  # type: ignore[union-attr]


def test_timm_takes_its_input_size_from_the_metadata() -> None:
    loaded = load_model("timm:test_vit", seed=1)
    assert loaded.default_inputs == [Input((1, 3, 160, 160))]
    assert not loaded.model.training
    assert loaded.model(torch.rand(1, 3, 160, 160)).std() > 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("torchvision:resnet35", "'resnet34'"),
        ("timm:eficientnet_b0", "'efficientnet_b0'"),
        ("torchvision:", "unknown torchvision model"),
        ("nothing", "names no model"),
        ("absent.pt2", "no such file"),
        ("absent.ts", "no such file"),
        ("absent.py:model", "no such file"),
        ("engine.kiln", "an engine already"),
        ("no_such_package.module:factory", "no module named 'no_such_package'"),
        ("torch.nn:Lineer", "'Linear'"),
    ],
)
def test_wrong_sources_say_what_to_do(source: str, expected: str) -> None:
    with pytest.raises(ModelSourceError, match=expected):
        load_model(source)


def test_unknown_weights_list_the_known_ones() -> None:
    with pytest.raises(ModelSourceError, match=r"IMAGENET1K_V1"):
        load_model("torchvision:resnet18", weights="IMAGENET1K_V7")
    with pytest.raises(ModelSourceError, match=r"unknown weights 'nope'"):
        load_model("timm:resnet18", weights="nope")
    with pytest.raises(ModelSourceError, match=r"only for torchvision"):
        load_model("torch.nn:Identity", weights="DEFAULT")


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(MissingPackage, match=r"torchkiln\[models\]"):
        load_model(f"{package}:resnet18")


def test_factories_of_a_file(factories: Path) -> None:
    path_before = list(sys.path)
    bare = load_model(f"{factories}:bare", seed=4)
    assert isinstance(bare.model, nn.Linear)
    assert bare.default_inputs is None
    assert torch.equal(bare.model.weight, load_model(f"{factories}:bare", seed=4).model.weight)  # type: ignore[union-attr]
    assert [i.opt_shape for i in load_model(f"{factories}:with_inputs").default_inputs or []] == [(5, 3)]
    assert not load_model(f"{factories}:ready").model.training  # type: ignore[union-attr]
    assert isinstance(load_model(f"{factories}:Net").model, nn.ReLU)
    assert sys.path == path_before


def test_a_factorys_tensors_keep_their_range_of_values(factories: Path) -> None:
    (ids,) = load_model(f"{factories}:embedding").default_inputs or []
    assert (ids.dtype, ids.opt_shape, ids.tensor_domain) == (torch.int64, (1, 3), (0, 40))


@pytest.mark.parametrize(("factory", "expected"), [("number", "got int"), ("broken", "RuntimeError: no luck"), ("bear", "'bare'")])
def test_wrong_factories(factories: Path, factory: str, expected: str) -> None:
    with pytest.raises(ModelSourceError, match=expected):
        load_model(f"{factories}:{factory}")


def test_a_file_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("import no_such_thing_at_all\n")
    with pytest.raises(ModelSourceError, match=r"ModuleNotFoundError"):
        load_model(f"{path}:f")


def test_a_package_beside_the_working_directory(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories.parent)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    assert isinstance(load_model("my_models:bare").model, nn.Linear)


def test_exported_programs_and_script_modules(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).eval(), torch.randn(7, 3)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    torch.jit.save(torch.jit.script(model.train()), tmp_path / "m.ts")
    expected = model.eval()(x)
    assert torch.equal(load_model(str(tmp_path / "m.pt2")).model.module()(x), expected)  # type: ignore[operator, union-attr]
    assert torch.equal(load_model(str(tmp_path / "m.ts")).model(x), expected)


def test_files_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("not a zip")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt2")
    with pytest.raises(ModelSourceError, match="no zip archive"):
        load_model(str(tmp_path / "text.pt2"))
    with pytest.raises(ModelSourceError, match="state dict"):
        load_model(str(tmp_path / "state.pth"))
    with pytest.raises(ModelSourceError, match=r"torch\.export\.load could not read it"):
        load_model(str(tmp_path / "state.pt2"))
