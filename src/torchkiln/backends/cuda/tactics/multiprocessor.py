"""multiprocessor: what a multiprocessor of the GPUs that the estimates are made for has, and what it does in a cycle."""

from __future__ import annotations

#: Shared memory on Hopper, of all programs that are resident.
SHARED_BYTES = 228 * 1024
#: What tiles may take of it in tactics that do not count what else a program holds.
TILE_BYTES = 220 * 1024
#: Of 32 bits, of all programs that are resident.
REGISTERS = 65536
#: From and to memory: 4.3 TB/s over 132 multiprocessors at 1.7 GHz.
MEMORY_BYTES = 19
