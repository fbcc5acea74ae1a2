"""Products of what was copied asynchronously have a fence in front of them, whatever version of Triton compiles."""

from __future__ import annotations

import pytest

from torchkiln.backends.cuda.fences import fenced, lacks_fence, with_fences

COPY = "cp.async.cg.shared.global [ %r25 + 0 ], [ %rd12 + 0 ], 0x10, %r27;\n"
BULK = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];\n"
PRODUCT = "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%r1}, %rd1, %rd2;\n"
WAIT = "\tcp.async.wait_group \t4;\n"
STORE = "\tst.shared.v4.b32 \t[%r407], {%r704, %r705, %r706, %r707};\n"
FENCE = "fence.proxy.async.shared::cta;\n"


@pytest.mark.parametrize(
    ("ptx", "lacks"),
    [
        (COPY + PRODUCT, True),
        (COPY + FENCE + PRODUCT, False),
        (COPY + WAIT + FENCE + PRODUCT, False),
        (COPY + FENCE + WAIT + PRODUCT, True),
        (COPY + WAIT + FENCE + STORE + PRODUCT, True),
        (COPY + WAIT + FENCE + "$L__BB0_3:                              // %loop\n" + PRODUCT, True),
        (COPY + WAIT + FENCE + "$L__tmp3:\n" + PRODUCT, False),
        (COPY + WAIT + FENCE + PRODUCT + "wgmma.wait_group.sync.aligned 1;\n" + PRODUCT, False),
        (COPY + WAIT + FENCE + PRODUCT + WAIT + PRODUCT, True),
        (STORE + PRODUCT, False),
        (BULK + PRODUCT, False),
        (COPY + "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};\n", False),
        ("ld.global.b32 %r1, [%rd1];\n", False),
    ],
)
def test_what_lacks_a_fence(ptx, lacks):
    assert lacks_fence(ptx) is lacks
    assert not lacks_fence(with_fences(ptx))
    assert (with_fences(ptx) == ptx) is not lacks


def test_every_product_gets_one():
    lines = with_fences(COPY + PRODUCT + WAIT + PRODUCT).split("\n")
    places = [number for number, line in enumerate(lines) if "wgmma.fence" in line]
    assert len(places) == 2
    assert all(FENCE.strip() == lines[place - 1].strip() for place in places)


def test_triton_is_as_it_was_afterwards():
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    backend = compiler.CUDABackend
    before = backend.make_ptx, backend.hash
    with fenced():
        assert (backend.make_ptx, backend.hash) != before
    assert (backend.make_ptx, backend.hash) == before
    with pytest.raises(KeyError), fenced():
        raise KeyError
    assert (backend.make_ptx, backend.hash) == before
