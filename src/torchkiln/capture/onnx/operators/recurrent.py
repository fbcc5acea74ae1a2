"""recurrent: LSTM, GRU and RNN over whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..node import Call, Value

#: Where torch's gates lie among ONNX's: ONNX has i o f c and z r h, torch i f c o and r z h.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(call: Call) -> Value:
    kind = call.node.op_type
    direction = call.get("direction", "forward")
    both = direction == "bidirectional"
    relu = _check(call, kind, both)
    value, hidden = call.tensor(0), call.get("hidden_size")
    if call.get("layout", 0):
        value = value.transpose(0, 1)
    if direction == "reverse":
        value = value.flip(0)
    batch, directions = value.shape[1], 2 if both else 1
    states = [_state(call, index, directions, batch, hidden, value) for index in ((5, 6) if kind == "LSTM" else (5,))]
    weights = _weights(call, kind, directions, hidden)
    arguments = (weights, call.has(3), 1, 0.0, False, both, False)
    if kind == "LSTM":
        result, *last = torch.ops.aten.lstm.input(value, states, *arguments)
    elif kind == "GRU":
        result, *last = torch.ops.aten.gru.input(value, states[0], *arguments)
    else:
        result, *last = (torch.ops.aten.rnn_relu if relu else torch.ops.aten.rnn_tanh).input(value, states[0], *arguments)
    # ONNX keeps the directions apart: (time, directions, batch, hidden).
    result = result.unflatten(-1, (directions, hidden)).transpose(1, 2)
    if direction == "reverse":
        result = result.flip(0)
    if call.get("layout", 0):
        result, last = result.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (result, *last)


def _check(call: Call, kind: str, both: bool) -> bool:
    """Raises ModelSourceError for what torch's own layers do not do; whether the activation is relu."""
    if call.has(4):
        raise call.error("sequence_lens (sequences of several lengths in one batch) is not supported: pad them, and export without lengths")
    if call.has(7) or call.get("clip") is not None or call.get("input_forget", 0):
        raise call.error("peepholes, clip and input_forget are not supported")
    if kind == "GRU" and not call.get("linear_before_reset", 0):
        raise call.error("linear_before_reset=0 is not supported: PyTorch's GRU, and its exports, have 1")
    given = call.get("activations")
    usual = _ACTIVATIONS[kind] * (2 if both else 1)
    if given in (None, usual):
        return False
    if kind == "RNN" and all(name == "Relu" for name in given):
        return True
    raise call.error(f"activations: expected {usual}, got {given}")


def _state(call: Call, index: int, directions: int, batch: Any, hidden: int, value: torch.Tensor) -> torch.Tensor:
    if not call.has(index):
        return value.new_zeros(directions, batch, hidden)
    state = call.tensor(index)
    return state.transpose(0, 1) if call.get("layout", 0) else state


def _weights(call: Call, kind: str, directions: int, hidden: int) -> list[torch.Tensor]:
    def ordered(stacked: torch.Tensor) -> torch.Tensor:
        blocks = stacked.split(hidden)
        return torch.cat([blocks[g] for g in _GATES[kind]])

    weights = []
    for d in range(directions):
        weights += [ordered(call.tensor(1)[d]), ordered(call.tensor(2)[d])]
        if call.has(3):
            weights += [ordered(part) for part in call.tensor(3)[d].chunk(2)]
    return weights


OPERATORS: dict[str, Callable[[Call], Value]] = {"LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent}
