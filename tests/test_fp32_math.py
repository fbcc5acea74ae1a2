import pytest
import torch

from torchkiln.fp32_math import CONV, MATMUL, SWITCHES, fp32_math, set_fp32_math, uses_tf32
from torchkiln.verify.tolerance import TF32_TOLERANCE, tolerance_for


@pytest.fixture(autouse=True)
def restored():
    with fp32_math(None):
        yield


@pytest.mark.parametrize("math", ["ieee", "tf32"])
def test_the_switches_are_set_within_the_block_and_restored(math):
    CONV.fp32_precision, MATMUL.fp32_precision = "tf32", "ieee"
    before = [switch.fp32_precision for switch in SWITCHES]
    with fp32_math(math):
        assert [uses_tf32(switch) for switch in SWITCHES] == [math == "tf32"] * 3
    assert [switch.fp32_precision for switch in SWITCHES] == before
    with pytest.raises(KeyError), fp32_math(math):
        raise KeyError
    assert [switch.fp32_precision for switch in SWITCHES] == before


def test_the_older_switches_work_as_long_as_only_one_kind_is_used():
    torch.backends.cuda.matmul.allow_tf32 = True
    assert uses_tf32(MATMUL)
    with fp32_math("ieee"):
        assert not uses_tf32(MATMUL)
    assert torch.backends.cuda.matmul.allow_tf32


def test_the_tolerance_of_checking_follows_the_switches():
    set_fp32_math("ieee")
    assert tolerance_for(True, [torch.float32], torch.device("cuda")) < TF32_TOLERANCE
    CONV.fp32_precision = "tf32"
    assert tolerance_for(True, [torch.float32], torch.device("cuda")) == TF32_TOLERANCE
    assert tolerance_for(True, [torch.float32], torch.device("cpu")) < TF32_TOLERANCE


@pytest.mark.parametrize("math", ["ieee", "tf32"])
def test_torch_can_read_its_older_switches_within_the_block(math):
    with fp32_math(math):
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (math == "tf32")
        assert (torch.get_float32_matmul_precision() == "highest") is (math == "ieee")
    assert torch.get_float32_matmul_precision() == "highest"


def test_switches_that_disagree_are_left_so():
    CONV.fp32_precision = "ieee"
    with pytest.raises(RuntimeError):
        _ = torch.backends.cudnn.allow_tf32
    before = [switch.fp32_precision for switch in SWITCHES]
    with fp32_math("tf32"):
        assert torch.backends.cudnn.allow_tf32
    assert [switch.fp32_precision for switch in SWITCHES] == before


@pytest.mark.parametrize("math", ["ieee", "tf32"])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_the_older_precision_of_products_can_be_read_within_and_is_as_it_was(math, products):
    torch.set_float32_matmul_precision(products)
    cpu = torch.backends.mkldnn.matmul.fp32_precision
    with fp32_math(math):
        assert torch.get_float32_matmul_precision() == ("highest" if math == "ieee" else "high")
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.get_float32_matmul_precision() == products
    assert torch.backends.mkldnn.matmul.fp32_precision == cpu
