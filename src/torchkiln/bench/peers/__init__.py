"""The table of peers: what the engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UnknownOption
from . import compiled, cuda_graph, openvino_nncf, torchscript
from .contract import Peer, Refusal, Refused, Runner
from .eager import Eager, EagerChannelsLast
from .onnxruntime import OnnxRuntime
from .openvino import OpenVINO

__all__ = ["INT8_PEERS", "PEERS", "PRESETS", "Peer", "Refusal", "Refused", "Runner", "choose_peers"]

_ALL: tuple[Peer, ...] = (
    Eager(),
    EagerChannelsLast(),
    torchscript.TRACED,
    torchscript.SCRIPTED,
    compiled.DEFAULT,
    compiled.REDUCE_OVERHEAD,
    cuda_graph.CUDA_GRAPH,
    cuda_graph.CUDA_GRAPH_CHANNELS_LAST,
    OnnxRuntime(),
    OpenVINO(),
    openvino_nncf.FP32,
    openvino_nncf.BF16,
    compiled.MAX_AUTOTUNE,
)

#: Name -> peer, in the order they are built: those whose build may run over the limit come last.
PEERS: dict[str, Peer] = {peer.name: peer for peer in _ALL}

#: Those that round to int8 by themselves: they have rows at int8 alone, the others at floating precisions alone.
INT8_PEERS = frozenset({openvino_nncf.FP32.name, openvino_nncf.BF16.name})

#: Names for sets of peers.
PRESETS: dict[str, tuple[str, ...]] = {
    "all": tuple(PEERS),
    "seed": ("eager", "torchscript-traced", "torchscript-scripted"),
    "none": (),
}


def choose_peers(peers: str | Sequence[str]) -> list[Peer]:
    """The peers of a preset or of a list of names and presets, each once, in building order. Raises UnknownOption."""
    wanted: set[str] = set()
    for name in [peers] if isinstance(peers, str) else peers:
        if name not in PRESETS and name not in PEERS:
            raise UnknownOption(name, [*PRESETS, *PEERS], "benchmark: peers")
        wanted.update(PRESETS.get(name, (name,)))
    return [peer for name, peer in PEERS.items() if name in wanted]
