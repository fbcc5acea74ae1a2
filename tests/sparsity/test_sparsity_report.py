"""sparsity_report: what is 2:4 in a model, and why the rest is not."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import torchkiln


def reasons(model, **options):
    return {layer.name: layer.reason for layer in torchkiln.sparsity_report(model, **options).layers}


def test_every_reason():
    shared = nn.Linear(32, 32)
    tied, embedding = nn.Linear(32, 64, bias=False), nn.Embedding(64, 32)
    tied.weight = embedding.weight
    integers = nn.Linear(32, 32)
    integers.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    twin = nn.Linear(32, 32)
    twin.weight = shared.weight
    hooked = prune.l1_unstructured(nn.Linear(32, 32), "weight", 0.5)
    model = nn.ModuleDict(
        {
            "first": nn.Conv2d(32, 32, 3),
            "inner": nn.Conv1d(30, 32, 1),
            "outer": nn.Conv3d(32, 30, 1),
            "depthwise": nn.Conv2d(32, 32, 3, groups=32),
            "grouped": nn.Conv2d(32, 32, 3, groups=2),
            "transposed": nn.ConvTranspose2d(32, 32, 2),
            "normed": weight_norm(nn.Linear(32, 32)),
            "hooked": hooked,
            "shared": shared,
            "twin": twin,
            "tied": tied,
            "embedding": embedding,
            "lazy": nn.LazyLinear(32),
            "meta": nn.Linear(32, 32, device="meta"),
            "integers": integers,
            "fine": nn.Linear(32, 64),
            "last": nn.Linear(64, 32),
        }
    )
    before = list(model.state_dict())
    found = reasons(model, skip="twi*")
    assert found.pop("first").startswith("the stem")
    assert found.pop("last").startswith("the head")
    assert found == {
        "inner": "its input dimension is 30, no multiple of 16",
        "outer": "its output dimension is 30, no multiple of 16",
        "depthwise": "a depthwise convolution",
        "grouped": "a convolution of 2 groups",
        "transposed": "a transposed convolution",
        "normed": "its weight is computed by another parametrization",
        "hooked": "its weight is no parameter: a hook computes it",
        "shared": "its weight is shared with another module",
        "twin": "its weight is shared with another module",
        "tied": "its weight is shared with another module",
        "lazy": "its weight has no shape yet: call the model once first",
        "meta": "its weight is on the meta device: expected fp16, bf16, fp32 or fp64 values",
        "integers": "its weight is Parameter of int8: expected fp16, bf16, fp32 or fp64 values",
        "fine": "",
    }
    assert list(model.state_dict()) == before, "a report changes nothing"
    torchkiln.sparsify(model)
    layers = {layer.name: layer for layer in torchkiln.sparsity_report(model).layers}
    assert [name for name, layer in layers.items() if layer.is_sparse] == ["fine"]
    assert reasons(model, skip="fine")["fine"] == "skip names it"


def test_a_model_that_begins_with_an_embedding_has_no_stem():
    body = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)]
    assert reasons(nn.Sequential(nn.Embedding(9, 16), *body))["1"] == ""
    assert reasons(nn.Sequential(*body))["0"].startswith("the stem")


def test_a_module_that_is_a_layer_itself_and_joint_projections():
    assert list(reasons(nn.Linear(16, 16))) == ["Linear"]
    assert list(reasons(nn.MultiheadAttention(16, 2))) == ["in_proj", "out_proj"]
    assert list(reasons(nn.MultiheadAttention(16, 2, kdim=8, vdim=8))) == ["out_proj"], "apart, its projections are no layers' weights"


def test_shares_table_and_json():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16)).eval()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
        model[3].weight[0, :8] = 0
    torchkiln.sparsify(model, skip="2")
    report = torchkiln.sparsity_report(model, skip="2")
    assert [(layer.zeros, layer.is_sparse, layer.has_mask) for layer in report.layers] == [
        (0.5, True, False),
        (0.5, True, True),
        (0.0, False, False),
        (8 / 512, False, False),
    ]
    assert report.sparse_count == 2
    text = str(report)
    assert "2:4 in 2 of 4 layers" in text
    assert "50.0 % │ yes, held by a mask" in text
    assert "skip names it" in text
    assert "1.6 %" in text
    data = report.as_json()
    assert data["layers"][1] == {
        "name": "1",
        "kind": "Linear",
        "shape": [32, 16],
        "zeros": 0.5,
        "is_sparse": True,
        "has_mask": True,
        "reason": "",
    }
    assert str(torchkiln.sparsity_report(torchkiln.remove_masks(model))).count("yes, held") == 0
