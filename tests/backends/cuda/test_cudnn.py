"""cuDNN's convolutions against the reference: on the CPU with stand-ins for cuDNN's own operators, on a GPU as they are."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from torchkiln.backends.cuda.recipe import Launch, TensorSpec, TorchCall
from torchkiln.backends.cuda.tactics.cudnn import Cudnn, pack_channels_last
from torchkiln.backends.cuda.tactics.epilogue import dense_channels_last, epilogue_blocks
from torchkiln.fused_ops.activation import ACTIVATIONS

from .interpret import check, interpret, make, reference
from .problems import conv_problem, nhwc

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 3e-3, BFLOAT: 2e-2, FLOAT: 1e-5}
CUDNN = Cudnn()


@pytest.fixture(autouse=True)
def cpu_stand_ins():
    """cuDNN's operators on the CPU, as their names and schemas say; results are channels_last where inputs are, as on a GPU."""

    def convolution(x, *arguments):
        y = torch.ops.aten._convolution.default(x, *arguments, False, False, False, False)
        lay = nhwc(y.shape, y.dtype)
        return torch.empty_strided(lay.shape, lay.strides, dtype=y.dtype).copy_(y) if TensorSpec.of(x).is_channels_last else y

    def relu(x, weight, bias, stride, padding, dilation, groups):
        return torch.ops.aten.convolution.default(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups).relu_()

    def add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
        y = torch.ops.aten.convolution.default(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
        return y.add_(z, alpha=alpha).relu_()

    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution", convolution, "CPU")
    library.impl("cudnn_convolution_relu", relu, "CPU")
    library.impl("cudnn_convolution_add_relu", add_relu, "CPU")
    yield
    library._destroy()


def every(problem, level=5):
    """All configurations; returns them."""
    assert CUDNN.reject(problem) == ""
    configs = CUDNN.configs(problem, level)
    for config in configs:
        check(CUDNN, problem, config, TOLERANCE[problem.inputs[0].dtype])
    pickle.dumps(CUDNN.recipe(problem, configs[0]))
    return configs


def calls(problem, config):
    """What a recipe calls, "kernel" for a launch."""
    return [call.op if isinstance(call, TorchCall) else "kernel" for call in CUDNN.recipe(problem, config).launches]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_relu_is_one_call(dtype, bias, residual):
    problem = conv_problem((2, 11, 9, 7), (13, 11, 3, 3), dtype, stride=2, padding=1, activation="relu", bias=bias, residual=residual)
    configs = every(problem)
    assert configs[0] == {"fused": True}
    assert len(configs) == 5
    assert calls(problem, configs[0]) == ["aten.cudnn_convolution_add_relu.default" if residual else "aten.cudnn_convolution_relu.default"]
    assert calls(problem, configs[1]) == ["aten.convolution.default", "kernel"]


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
@pytest.mark.parametrize("residual", [False, True])
def test_activations(activation, residual):
    problem = conv_problem((2, 5, 8, 7), (9, 5, 3, 3), FLOAT, padding=1, activation=activation, alpha=0.1, residual=residual)
    assert calls(problem, every(problem, 0)[0]) == ["aten.convolution.default", "kernel"]


def test_nothing_but_the_convolution_is_one_call():
    problem = conv_problem((2, 5, 8, 7), (9, 5, 3, 3), FLOAT, bias=False)
    assert [calls(problem, config) for config in every(problem)] == [["aten.convolution.default"]]


@pytest.mark.parametrize(
    "case",
    [
        ((2, 12, 9, 7), (12, 1, 3, 3), {"groups": 12, "padding": 1, "activation": "relu6"}),
        ((2, 12, 9, 7), (18, 4, 3, 3), {"groups": 3, "padding": 1, "activation": "relu"}),
        ((1, 12, 19, 17), (8, 12, 3, 3), {"dilation": 2, "activation": "silu"}),
        ((2, 12, 9, 7), (12, 10, 2, 2), {"transposed": True, "stride": 2, "activation": "relu"}),
        ((2, 12, 5, 7), (12, 2, 3, 3), {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1, "groups": 4, "residual": True}),
        ((1, 5, 6, 7, 8), (9, 5, 3, 3, 3), {"padding": 1, "activation": "relu", "residual": True}),
        ((1, 6, 5, 4, 3), (6, 7, 2, 2, 2), {"transposed": True, "stride": 2}),
        ((2, 7, 30), (9, 7, 5), {"padding": 2, "activation": "relu"}),
        ((3, 24, 1, 1), (40, 24, 1, 1), {"activation": "hardswish"}),
        ((1, 8, 5, 6), (1, 8, 1, 1), {"activation": "sigmoid"}),
    ],
)
def test_geometries(case):
    x, weight, options = case
    every(conv_problem(x, weight, FLOAT, **options), 1)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("channels", [8, 24, 7])
def test_epilogue_sizes(dtype, channels):
    every(conv_problem((3, 4, 31, 13), (channels, 4, 1, 1), dtype, activation="gelu", residual=True))


def test_odd_strides_of_single_elements():
    """A pooled tensor's strides are those of NCHW, which is channels_last too."""
    problem = conv_problem((3, 24, 1, 1), (40, 24, 1, 1), FLOAT, activation="relu")
    odd = TensorSpec((3, 24, 1, 1), (24, 1, 1, 1), FLOAT)
    out = TensorSpec((3, 40, 1, 1), (40, 1, 1, 1), FLOAT)
    problem = dataclasses.replace(problem, inputs=(odd, *problem.inputs[1:]), outputs=(out,))
    assert {"fused": True} not in every(problem), "what torch allocates has other strides"


def test_wider_residual_and_bias():
    problem = conv_problem((2, 5, 8, 7), (9, 5, 3, 3), HALF, activation="relu", residual=True)
    inputs = list(problem.inputs)
    inputs[2] = TensorSpec.contiguous((9,), FLOAT)
    inputs[3] = nhwc(problem.outputs[0].shape, FLOAT)
    assert {"fused": True} not in every(dataclasses.replace(problem, inputs=tuple(inputs), outputs=(inputs[3],)), 1)


def test_computed_weight():
    problem = conv_problem((2, 5, 8, 7), (9, 5, 3, 3), FLOAT, activation="relu", bias=False)
    problem = dataclasses.replace(problem, constants=(False,) * 5)
    every(problem, 1)
    assert not CUDNN.recipe(problem, CUDNN.configs(problem, 0)[0]).packed


def test_special_values_pass_the_epilogue():
    problem = conv_problem((1, 4, 3, 3), (4, 4, 1, 1), FLOAT, activation="relu", bias=False, residual=True)
    operands = {f"x{i}": make(spec, torch.Generator()) for i, spec in enumerate(problem.inputs) if spec is not None}
    operands["x3"][0, :3, 0, 0] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    operands["y0"] = make(problem.outputs[0], torch.Generator(), fill=0.0)
    y = interpret(CUDNN.recipe(problem, {"fused": False, "block": 512}), operands)["y0"]
    expected = reference(problem, [operands.get(f"x{i}") for i in range(5)])[0]
    torch.testing.assert_close(y, expected, equal_nan=True)


def test_packing():
    weight = torch.randn(3, 4, 5, 6)
    packed = pack_channels_last(weight)
    assert packed.is_contiguous()
    assert packed.shape == (3, 5, 6, 4)
    assert torch.equal(packed.as_strided((3, 4, 5, 6), (120, 1, 24, 4)), weight)


def test_dense_channels_last():
    assert dense_channels_last(nhwc((2, 3, 4, 5), HALF))
    assert dense_channels_last(TensorSpec((1, 3, 4, 5), (999, 1, 15, 3), HALF))
    assert not dense_channels_last(TensorSpec.contiguous((2, 3, 4, 5), HALF))


def test_blocks_fill_the_gpu():
    small, large = (conv_problem((n, 64, 56, 56), (64, 64, 1, 1)) for n in (1, 128))
    assert epilogue_blocks(small)[0] == 512
    assert epilogue_blocks(large)[0] == 4096
    assert sorted(epilogue_blocks(small)) == sorted(epilogue_blocks(large)) == [512, 1024, 2048, 4096]


def test_rejects():
    for options, reason in (
        ({"scale": True}, "does not scale"),
        ({"channels_last": False}, "is not channels_last"),
        ({"x_dtype": FLOAT}, "expected the same"),
        ({"dtype": torch.float64}, "expected the same"),
    ):
        assert reason in CUDNN.reject(conv_problem((2, 8, 9, 7), (8, 8, 1, 1), **options))
    large = conv_problem((2**17, 128, 16, 16), (8, 128, 1, 1))
    assert "2**31" in CUDNN.reject(large)
    assert "offsets are 32-bit" in CUDNN.reject(conv_problem((2**17, 8, 16, 16), (128, 8, 1, 1)))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"activation": "relu", "residual": True}, {"transposed": True}, {"bias": False}])
def test_operators_on_a_gpu(dtype, rank, options):
    """torch's own operators give the layout that the recipe promises, and the reference's values."""
    problem = conv_problem((2, 16, *[9] * rank), (16, 16, *[3] * rank), dtype, padding=1, stride=2, **options)
    generator = torch.Generator().manual_seed(0)
    inputs = [None if spec is None else make(spec, generator).cuda() for spec in problem.inputs]
    held = {f"x{i}": t for i, t in enumerate(inputs) if t is not None}
    for config in CUDNN.configs(problem, 1)[:2]:
        recipe = CUDNN.recipe(problem, config)
        kept = dataclasses.replace(recipe, launches=recipe.launches[:1], scratch={})
        call = kept.launches[0]
        assert isinstance(call, TorchCall)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            y = interpret(kept, held)[call.results[0]]
        assert TensorSpec.of(y).is_channels_last
        assert y.shape == problem.outputs[0].shape
        if not any(isinstance(launch, Launch) for launch in recipe.launches):
            expected = reference(problem, [None if t is None else t.cpu() for t in inputs])[0]
            assert (y.float().cpu() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def _cases():
    problems = [
        conv_problem((1, 64, 56, 56), (64, 64, 3, 3), padding=1, activation="silu", residual=True, capability=90),
        conv_problem((32, 64, 56, 56), (64, 64, 3, 3), padding=1, activation="hardswish", capability=90),
        conv_problem((32, 64, 56, 56), (255, 64, 1, 1), capability=90),
        conv_problem((8, 64, 28, 28), (64, 7, 2, 2), stride=2, transposed=True, activation="gelu_tanh", residual=True, capability=90),
        conv_problem((1, 32, 24, 24, 24), (33, 32, 3, 3, 3), HALF, activation="leaky_relu", alpha=0.01, residual=True, capability=90),
    ]
    return [(CUDNN, problem, CUDNN.configs(problem, 0)[0]) for problem in problems]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
