"""compile_kernel: a Kernel as machine code, for any compute capability, with or without a GPU."""

from __future__ import annotations

import hashlib
import linecache
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch

from .fences import fenced, lacks_fence
from .recipe import Kernel, Launch, Recipe, TensorSpec

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code and what a launch needs to know.

    Attributes:
        code: a cubin.
        name: the entry point.
        shared_bytes: dynamic shared memory of a block.
        threads: threads of a block.
        scratch_bytes: global memory that the code wants for each block, aligned to SCRATCH_ALIGNMENT.
    """

    code: bytes
    name: str
    shared_bytes: int
    threads: int
    scratch_bytes: int = 0


#: Global scratch memory starts at a multiple of this: what tensor descriptors, in 128 bytes each, need.
SCRATCH_ALIGNMENT = 128
#: The operand that is global scratch memory.
_SCRATCH = "code"


def compile_kernel(kernel: Kernel, capability: int) -> Compiled:
    """Compile for a compute capability (90 for 9.0). Raises whatever Triton raises for a kernel it cannot compile, ValueError for one that
    cannot be launched without Triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = jit_function(kernel)
    pointer_names = function.arg_names[: len(kernel.pointers)]
    constants = dict(kernel.constants)
    if list(constants) != function.arg_names[len(kernel.pointers) :]:
        raise ValueError(f"{kernel.function}: expected the constants {function.arg_names[len(kernel.pointers) :]}, got {list(constants)}")
    signature = {name: "*" + _TYPES[dtype] for name, dtype in zip(pointer_names, kernel.pointers, strict=True)}
    signature.update(dict.fromkeys(constants, "constexpr"))
    index = {name: position for position, name in enumerate(function.arg_names)}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(index[name],): value for name, value in constants.items()},
        attrs={(index[name],): [["tt.divisibility", 16]] for name in pointer_names},
    )
    with fenced():
        options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    if lacks_fence(built.asm["ptx"]):
        raise ValueError(f"{kernel.function}: Triton gave products without a fence between them and the copies they read")
    metadata: Any = built.metadata
    if getattr(metadata, "profile_scratch_size", 0) or getattr(metadata, "num_ctas", 1) != 1:
        raise ValueError(f"{kernel.function}: needs memory to profile or a cluster, which launches do not provide")
    scratch = getattr(metadata, "global_scratch_size", 0)
    if scratch % SCRATCH_ALIGNMENT or (scratch and SCRATCH_ALIGNMENT % metadata.global_scratch_align):
        raise ValueError(f"{kernel.function}: needs {scratch} bytes of global scratch memory aligned to {metadata.global_scratch_align}")
    return Compiled(built.asm["cubin"], metadata.name, metadata.shared, metadata.num_warps * 32, scratch)


def with_scratch(recipe: Recipe, compiled: Mapping[Kernel, Compiled]) -> Recipe:
    """The recipe with the global scratch memory that its code wants (where tensor descriptors are kept), a temporary like others.

    Triton appends parameters for two scratch memories to a kernel's own, this one first: it is one more operand. Launches share it, as a kernel
    writes only after its ``wait``, when those before have ended.
    """
    wanted = {launch: compiled[launch.kernel].scratch_bytes for launch in recipe.launches if isinstance(launch, Launch) and launch.kernel in compiled}
    largest = max((math.prod(launch.grid) * each for launch, each in wanted.items()), default=0)
    if not largest:
        return recipe
    launches = tuple(
        replace(call, operands=(*call.operands, f"scratch.{_SCRATCH}")) if isinstance(call, Launch) and wanted.get(call) else call
        for call in recipe.launches
    )
    return replace(recipe, launches=launches, scratch={**recipe.scratch, _SCRATCH: TensorSpec.contiguous((largest,), torch.uint8)})


def jit_function(kernel: Kernel) -> Any:
    """The kernel's Triton function, compilable also where TRITON_INTERPRET is set."""
    from triton.runtime.jit import JITFunction

    if kernel.source:
        return JITFunction(load_source(kernel))
    module, name = kernel.function.split(":")
    found = getattr(import_module(f".kernels.{module}", __package__), name)
    return found if isinstance(found, JITFunction) else JITFunction(found.fn)


def load_source(kernel: Kernel) -> Any:
    """The Python function that generated text defines. It is given the text as its source file, which Triton reads."""
    file_name = f"<torchkiln {hashlib.sha256(kernel.source.encode()).hexdigest()[:16]}>"
    linecache.cache[file_name] = (len(kernel.source), None, kernel.source.splitlines(keepends=True), file_name)
    names: dict[str, Any] = {"__name__": f"{__package__}.kernels.generated"}
    exec(compile(kernel.source, file_name, "exec"), names)
    return names[kernel.function]
