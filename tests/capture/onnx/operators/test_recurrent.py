from __future__ import annotations

from pathlib import Path

import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import check, int64, normal

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("full", [True, False])
def test_layers(kind: str, direction: str, full: bool, tmp_path: Path) -> None:
    gates, directions, hidden = GATES[kind], 2 if direction == "bidirectional" else 1, 3
    inputs = [normal(5, 2, 4), normal(directions, gates * hidden, 4, seed=1) * 0.5, normal(directions, gates * hidden, hidden, seed=2) * 0.5]
    if full:
        inputs += [normal(directions, 2 * gates * hidden, seed=3), None, normal(directions, 2, hidden, seed=4)]
        inputs += [normal(directions, 2, hidden, seed=5)] if kind == "LSTM" else []
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    check(kind, inputs, tmp_path, outputs=3 if kind == "LSTM" else 2, hidden_size=hidden, direction=direction, **attributes)


def test_relu(tmp_path: Path) -> None:
    check("RNN", [normal(5, 2, 4), normal(1, 3, 4, seed=1), normal(1, 3, 3, seed=2)], tmp_path, outputs=2, hidden_size=3, activations=["Relu"])


@pytest.mark.parametrize(("attributes", "reason"), [({"clip": 1.0}, "clip"), ({"activations": ["Relu", "Tanh", "Tanh"]}, "activations")])
def test_what_torch_does_not_do(attributes: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=reason):
        check("LSTM", [normal(5, 2, 4), normal(1, 12, 4), normal(1, 12, 3)], tmp_path, hidden_size=3, **attributes)


def test_lengths_are_refused(tmp_path: Path) -> None:
    inputs = [normal(5, 2, 4), normal(1, 12, 4), normal(1, 12, 3), normal(1, 24), int64(5, 3).astype("int32")]
    with pytest.raises(ModelSourceError, match="sequence_lens"):
        check("LSTM", inputs, tmp_path, hidden_size=3)
