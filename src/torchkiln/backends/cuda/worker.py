"""worker: a process beside the build that compiles kernels or measures candidates, so that one that crashes or hangs takes nothing down with it.

It reads pickled requests from its standard input, answers on its standard output, and ends when its input does. Both ends are the same program on
the same machine.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from io import RawIOBase
from typing import Any, BinaryIO


def write_message(stream: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def read_message(stream: BinaryIO | RawIOBase) -> Any:
    """The next message. Raises EOFError when there is none."""
    (size,) = struct.unpack("<Q", _read(stream, 8))
    return pickle.loads(_read(stream, size))


def _read(stream: BinaryIO | RawIOBase, size: int) -> bytes:
    """Exactly so many bytes: an unbuffered stream gives what there is."""
    data = bytearray()
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def main() -> None:
    """Serve until the input ends. Requests: ("compile", kernel, capability), ("measure", job, device index), ("roofline", device index)."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with the answers
    requests = sys.stdin.buffer
    while True:
        try:
            request = read_message(requests)
        except EOFError:
            return
        for answer in _answer(request):
            write_message(answers, answer)


def _answer(request: tuple[Any, ...]) -> Any:
    if request[0] == "compile":
        from .compile_kernel import compile_kernel

        try:
            yield compile_kernel(request[1], request[2])
        except Exception as error:  # Triton, LLVM and ptxas raise whatever they like; the cause is kept
            yield f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    elif request[0] == "measure":
        import torch

        from .measure import measure

        device = torch.device("cuda", request[2])
        torch.cuda.set_device(device)
        with torch.no_grad():
            yield from measure(request[1], device)
    else:
        raise ValueError(f"worker: unknown request {request[0]!r}")


if __name__ == "__main__":
    main()
