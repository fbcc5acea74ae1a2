"""What a loader may yield."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchkiln.errors import UserError
from torchkiln.inputs import Input
from torchkiln.quantize.batches import read_batch, resize_batch, split_batch

IMAGE = Input((4, 3, 5, 7), name="image")
IDS = Input((4, 9), dtype=torch.int64, name="ids")
X, LABEL, TOKENS = torch.randn(6, 3, 5, 7), torch.arange(6), torch.arange(54).view(6, 9)


@pytest.mark.parametrize("batch", [X, (X,), [X, LABEL], ((X,), LABEL), {"image": X, "label": LABEL}, X.numpy(), (X.double(), "name")])
def test_one_input_however_it_comes(batch):
    (found,) = read_batch(batch, [IMAGE], "batch 0")
    assert found.dtype is torch.float32
    assert torch.equal(found, X)


@pytest.mark.parametrize("batch", [(X, TOKENS), [X, TOKENS, LABEL], [(X, TOKENS), LABEL], {"ids": TOKENS, "image": X}, [X, TOKENS.int()]])
def test_two_inputs_however_they_come(batch):
    image, ids = read_batch(batch, [IMAGE, IDS], "batch 0")
    assert torch.equal(image, X)
    assert torch.equal(ids, TOKENS)
    assert ids.dtype is torch.int64


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (X[:, :2], "expected Nx3x5x7, got 6x2x5x7"),
        (LABEL, "expected Nx3x5x7, got 6"),
        ({"picture": X}, "image not among picture"),
        ((), "expected 1 tensors"),
        ("file.png", "expected a tensor"),
        (X.long(), "expected torch.float32, got torch.int64"),
    ],
)
def test_says_what_does_not_fit(batch, words):
    with pytest.raises(UserError, match=f"batch 3: .*{words}"):
        read_batch(batch, [IMAGE], "batch 3")


def test_a_label_is_not_taken_for_an_input():
    with pytest.raises(UserError, match="input 'ids': expected Nx9, got 6"):
        read_batch((X, LABEL), [IMAGE, IDS], "batch 0")


def test_splits_into_sizes_the_engine_takes():
    parts = list(split_batch([X], [IMAGE], "batch 0"))
    assert [p[0].shape[0] for p in parts] == [4, 4]
    assert torch.equal(parts[0][0], X[:4])
    assert torch.equal(parts[1][0], torch.cat([X[4:], X[:2]]))
    ranged = Input(min_shape=(1, 3, 5, 7), opt_shape=(2, 3, 5, 7), max_shape=(5, 3, 5, 7), name="image")
    assert [p[0].shape[0] for p in split_batch([X], [ranged], "batch 0")] == [5, 1]
    assert [p[0].shape[0] for p in split_batch([X[:3]], [ranged], "batch 0")] == [3]


def test_a_batch_must_fit_every_input():
    wide = Input(min_shape=(1, 9), opt_shape=(2, 9), max_shape=(8, 9), dtype=torch.int64, name="ids")
    parts = list(split_batch([X, TOKENS], [IMAGE, wide], "batch 2"))
    assert [[len(t) for t in part] for part in parts] == [[4, 4], [4, 4]], "6 is in the range of ids, not in that of image"
    assert [[len(t) for t in part] for part in split_batch([X[:4], TOKENS], [IMAGE, wide], "batch 2")] == [[4, 6]]
    with pytest.raises(UserError, match=r"batch 2: input 'image': expected a first dimension of 4; .* 6, 3"):
        list(split_batch([X, TOKENS[:3]], [IMAGE, wide], "batch 2"))
    with pytest.raises(UserError, match=r"batch 2: input 'ids': .* 4, 4"):
        list(split_batch([X[:4], TOKENS[:4]], [IMAGE, Input((5, 9), dtype=torch.int64, name="ids")], "batch 2"))


def test_resizes_by_repeating_and_leaving_out():
    (more,) = resize_batch([X], [(8, 3, 5, 7)])
    assert torch.equal(more, torch.cat([X, X[:2]]))
    assert resize_batch([X], [(8, 3, 5, 8)]) is None


def test_numpy_arrays_are_tensors():
    (found,) = read_batch(np.ones((2, 3, 5, 7)), [IMAGE], "batch 0")
    assert found.dtype is torch.float32
