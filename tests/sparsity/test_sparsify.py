"""sparsify: masks that hold while a model is trained, copied, stored and compiled, and go away when they are done with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import torchkiln
from torchkiln.errors import UserError
from torchkiln.progress import report_progress
from torchkiln.sparsity.pattern import is_two_of_four


class Net(nn.Module):
    """A stem, a convolution of each rank's kind, a depthwise one, attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.linear = nn.Linear(32, 48)
        self.odd = nn.Linear(48, 33)
        self.head = nn.Linear(33, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.conv(torch.relu(self.stem(x))))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(torch.relu(self.odd(torch.relu(self.linear(tokens.mean(1))))))


PRUNED = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "linear.weight"}
X = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that the model computes with."""
    names = ("stem.weight", "depthwise.weight", "odd.weight", "head.weight", *PRUNED)
    return {name: getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}


def sparse_names(model: nn.Module) -> set[str]:
    return {name for name, weight in weights(model).items() if is_two_of_four(weight)}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def test_prunes_in_place_what_is_worth_it(net):
    before = {name: weight.detach().clone() for name, weight in weights(net).items()}
    assert torchkiln.sparsify(net) is net
    assert sparse_names(net) == PRUNED
    for name, weight in weights(net).items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        assert bool(kept.all()) == (name not in PRUNED)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adagrad, {}),
    ],
)
@pytest.mark.parametrize("is_early", [False, True])
def test_zeros_stay_under_any_optimizer_made_before_or_after(net, make, options, is_early):
    optimizer = make(net.train().parameters(), lr=0.05, **options) if is_early else None
    torchkiln.sparsify(net)
    optimizer = optimizer or make(net.parameters(), lr=0.05, **options)
    before = {name: weight.detach().clone() for name, weight in weights(net).items()}
    for _ in range(3):
        step(net, optimizer)
    for name in PRUNED:
        now = weights(net)[name]
        assert is_two_of_four(now)
        assert torch.equal(now == 0, before[name] == 0), "the same places"
        assert not torch.equal(now, before[name]), "what stays is trained"


def test_autocast_and_half(net):
    torchkiln.sparsify(net.train())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            step(net, optimizer)
    assert sparse_names(net) == PRUNED
    assert sparse_names(net.bfloat16()) == PRUNED
    assert net.linear.weight.dtype == torch.bfloat16


def test_a_pruned_element_gets_no_gradient_and_nothing_infinite_comes_through(net):
    torchkiln.sparsify(net)
    mask = net.linear.weight == 0
    with torch.no_grad():
        net.linear.parametrizations.weight.original[mask] = torch.inf
    net(X).sum().backward()
    gradient = net.linear.parametrizations.weight.original.grad
    assert torch.isfinite(net(X)).all()
    assert not gradient[mask].any()
    assert gradient[~mask].any()


def test_state_dict_holds_the_masks(net):
    torchkiln.sparsify(net)
    other = torchkiln.sparsify(Net().eval())
    assert not torch.equal(other.linear.weight == 0, net.linear.weight == 0)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.linear.weight, net.linear.weight)
    assert torch.equal(other(X), net(X))


def test_deepcopy_is_independent(net):
    torchkiln.sparsify(net)
    twin = copy.deepcopy(net).train()
    step(twin, torch.optim.SGD(twin.parameters(), 0.1))
    assert sparse_names(twin) == sparse_names(net) == PRUNED
    assert not torch.equal(twin.linear.weight, net.linear.weight)


def test_removing_the_masks_of_a_copy_leaves_the_original_its_own(net):
    torchkiln.sparsify(net)
    expected = net(X)
    twins = [torchkiln.remove_masks(copy.deepcopy(net)) for _ in range(2)]
    for model in (net, *twins, torchkiln.remove_masks(net)):
        assert torch.equal(model(X), expected)
    assert not any(parametrize.is_parametrized(module) for model in (net, *twins) for module in model.modules())


def test_a_second_call_keeps_the_masks_and_prunes_what_else_is_asked_for(net):
    torchkiln.sparsify(net, skip="linear")
    assert sparse_names(net) == PRUNED - {"linear.weight"}
    before = net.conv.weight == 0
    with torch.no_grad():
        net.conv.parametrizations.weight.original.normal_()
    torchkiln.sparsify(net)
    assert sparse_names(net) == PRUNED
    assert torch.equal(net.conv.weight == 0, before)
    assert len(net.conv.parametrizations.weight) == 1


def test_remove_masks_leaves_plain_parameters(net):
    plain_names, kinds = list(net.state_dict()), [type(module) for module in net.modules()]
    objects = dict(net.named_parameters())
    torchkiln.sparsify(net)
    expected = net(X)
    assert torchkiln.remove_masks(net) is net
    assert list(net.state_dict()) == plain_names
    assert [type(module) for module in net.modules()] == kinds
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    assert all(parameter is objects[name] for name, parameter in net.named_parameters())
    assert torch.equal(net(X), expected)
    assert sparse_names(net) == PRUNED
    fresh = Net().eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(X), expected)
    assert torchkiln.remove_masks(fresh) is fresh


def test_an_engine_has_plain_weights_with_the_zeros(net):
    torchkiln.sparsify(net)
    engine = torchkiln.compile(net, [X], backend="torch")
    with torch.no_grad():
        assert torch.allclose(engine(X), net(X), atol=1e-6)
    tensors = engine.contents.segments[0].artifact.tensors
    assert sum(is_two_of_four(tensor) for tensor in tensors.values()) == len(PRUNED)
    assert not any(tensor.dtype == torch.bool for tensor in tensors.values())


@pytest.mark.parametrize("is_early", [False, True])
def test_channels_last_stays(net, is_early):
    if is_early:
        net = net.to(memory_format=torch.channels_last)
    torchkiln.sparsify(net)
    expected = net.conv.weight.detach().clone()
    net = net.to(memory_format=torch.channels_last)
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.conv.weight, expected)
    assert torchkiln.remove_masks(net).conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_pruned_in_inference_mode_it_can_be_trained(net):
    with torch.inference_mode():
        torchkiln.sparsify(net)
    step(net.train(), torch.optim.SGD(net.parameters(), 0.1))
    assert sparse_names(net) == PRUNED


def test_frozen_weights_stay_frozen(net):
    net.linear.weight.requires_grad_(False)
    torchkiln.sparsify(net)
    assert not net.linear.weight.requires_grad
    torchkiln.remove_masks(net)
    assert not net.linear.weight.requires_grad
    assert net.conv.weight.requires_grad


def test_progress_is_told(net):
    told = []
    with report_progress(lambda phase, done, total: told.append((phase, done, total))):
        torchkiln.sparsify(net)
    assert told == [("sparsify", done, 4) for done in range(5)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stem": True}, PRUNED | {"stem.weight"}),
        ({"head": True, "multiple_of": 4}, PRUNED),
        ({"skip": "attention.*"}, {"conv.weight", "linear.weight"}),
        ({"skip": ["attention.in_proj", "conv"]}, {"attention.out_proj.weight", "linear.weight"}),
        ({"multiple_of": 32}, {"attention.in_proj_weight", "attention.out_proj.weight"}),
    ],
)
def test_options(net, options, expected):
    assert sparse_names(torchkiln.sparsify(net, **options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "layer9.*"}, r"skip: 'layer9\.\*' matches no layer; there are stem, conv"),
        ({"skip": 3}, "skip: expected names of layers"),
        ({"skip": [None]}, "skip: expected names of layers"),
        ({"stem": 1}, "stem: expected True or False, got 1"),
        ({"multiple_of": 6}, "multiple_of: expected a multiple of 4"),
        ({"multiple_of": 16.0}, "multiple_of: expected a multiple of 4"),
        ({"multiple_of": 1024}, "nothing to prune: stem: its input dimension is 16, no multiple of 1024"),
    ],
)
def test_errors(net, options, message):
    with pytest.raises(UserError, match=message):
        torchkiln.sparsify(net, **options)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_other_model_forms_are_refused(net):
    x = torch.randn(2, 33)
    for model in (torch.jit.trace(net.head, x), torch.export.export(net.head, (x,)), "torchvision:resnet18"):
        for function in (torchkiln.sparsify, torchkiln.remove_masks, torchkiln.sparsity_report):
            with pytest.raises(UserError, match=r"model: expected an nn\.Module, got "):
                function(model)
    with pytest.raises(UserError, match="no linear layer and no convolution"):
        torchkiln.sparsify(nn.ReLU())
