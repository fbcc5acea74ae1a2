"""attention: tactics of ``torchkiln::attention``: one Triton kernel, and torch's own fused kernels where nothing is added to the scores."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..recipe import FLOATS, Config, Kernel, Launch, Packed, Problem, Recipe, Ref, TensorSpec, TorchCall
from .reduce import power_of_two

_LOG2_E = 1.4426950408889634
#: Bytes of shared memory that a block may have, less what Triton takes for reductions.
_SHARED_BYTES = {80: 160 << 10, 86: 96 << 10, 89: 96 << 10}
#: Above it, the sum of bias and mask (a row for each window and head) is not stored: it costs memory for every layer.
_LARGEST_SUM = 64 << 20


def pad_columns(x: torch.Tensor) -> torch.Tensor:
    """x [W, H, S, T] with T filled up with zeros to a multiple of 8, so that rows start at 16-byte boundaries."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % 8)).contiguous()


def add_and_pad_columns(bias: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """bias + mask, in the wider dtype, broadcast, padded like ``pad_columns``."""
    return pad_columns(bias + mask)


def _problem_reject(problem: Problem) -> str:
    """What no tactic of this module can do."""
    q, k, v = problem.inputs[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    if q.dtype not in FLOATS or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: expected one floating dtype of 16 or 32 bits"
    for name, spec in zip(("q", "k", "v", "bias", "mask"), problem.inputs, strict=True):
        if spec is not None and (spec.numel == 0 or spec.span >= 2**31):
            return f"{name} is empty or has {spec.span} elements from first to last: offsets are 32-bit"
        if spec is not None and not spec.dtype.is_floating_point:
            return f"{name} is {spec.dtype}: expected a floating dtype"
    if problem.outputs[0].numel == 0 or problem.outputs[0].span >= 2**31:
        return "the output is empty or its offsets pass 32 bits"
    return ""


class FlashAttention:
    """The Triton kernel: any strides, addends and causal masks."""

    name = "flash_triton"
    ops = ("attention",)

    def reject(self, problem: Problem) -> str:
        reason = _problem_reject(problem)
        if reason:
            return reason
        q, _, v = _specs(problem)
        if max(q.shape[3], v.shape[3]) > 256:
            return f"head dimension {max(q.shape[3], v.shape[3])}: the accumulator holds at most 256"
        return "" if _best_blocks(problem) else "no tile fits the shared memory and the registers"

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """BLOCK_M, BLOCK_N (a BLOCK_N that reaches T: all keys at once), warps, stages; ``combine``: bias + mask stored as one tensor."""
        q, k, _ = _specs(problem)
        rows, keys = q.shape[2], k.shape[2]
        best = _best_blocks(problem)
        if best is None:
            return []
        block_m, block_n = best
        guess = _tile_config(problem, block_m, block_n)
        found = [guess]

        def offer(config: Config) -> None:
            if config not in found and _fits(problem, config):
                found.append(config)

        if _can_combine(problem):
            offer(guess | {"combine": True})
        neighbours = [(block_m, n) for n in (block_n // 2, block_n * 2)] + [(m, block_n) for m in (block_m * 2, block_m // 2)]
        everything = [(m, n) for m in (64, 128, 32, 16) for n in (64, 32, 128, 256, 16)]
        for m, n in neighbours + everything:
            if 16 <= m <= max(16, power_of_two(rows)) and m <= 128 and 16 <= n <= max(16, power_of_two(keys)) and n <= 256:
                offer(_tile_config(problem, m, n))
        for config in list(found):
            offer(config | {"warps": 12 - config["warps"]})  # 4 for 8 and 8 for 4
            offer(config | {"stages": 3 if config["stages"] == 2 else 2})
            if config["BLOCK_M"] <= 32:
                offer(config | {"warps": 2})
            if _can_combine(problem):
                offer(config | {"combine": True})
        return found[: (1, 4, 8, 16, 32, len(found))[level]]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        q, k, v = _specs(problem)
        out = problem.outputs[0]
        items, heads, rows, depth = q.shape
        keys, width = v.shape[2:]
        block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
        left = keys if power_of_two(keys) <= block_n else keys % block_n
        constants: dict[str, Any] = {"H": heads, "S": rows, "T": keys, "D": depth, "E": width}
        packed: dict[str, Packed] = {}
        addends = _addends(problem, config.get("combine", False), packed)
        windows = max((spec.shape[0] for _, spec in addends), default=1)
        constants |= {"WINDOWS": windows, "IMAGES": items // windows}
        for name, letters, spec in (("Q", "BHSD", q), ("K", "BHTD", k), ("V", "BHTE", v), ("OUT", "BHSE", out)):
            constants |= {f"{name}_{letter}": stride for letter, stride in zip(letters, spec.strides, strict=True)}
        operands = ["x0", "x1", "x2"]
        dtypes = [q.dtype, k.dtype, v.dtype]
        missing: tuple[str, TensorSpec | None] = ("x0", None)  # a pointer that is not read
        for name, (operand, addend) in zip(("BIAS", "MASK"), [*addends, missing, missing], strict=False):
            operands.append(operand)
            dtypes.append(q.dtype if addend is None else addend.dtype)
            strides = (0, 0, 0, 0) if addend is None else tuple(0 if n == 1 else s for n, s in zip(addend.shape, addend.strides, strict=True))
            constants |= {f"HAS_{name}": addend is not None, f"{name}_W": 1 if addend is None else addend.shape[0]}
            constants |= {f"{name}_{letter}": stride for letter, stride in zip("BHST", strides, strict=True)}
            constants[f"{name}_LIMIT"] = keys if addend is None or addend.shape[3] == 1 else addend.shape[3]
        constants |= {
            "SCALE": float(problem.attributes["scale"]) * _LOG2_E,
            "CAUSAL": bool(problem.attributes["causal"]),
            "PRECISION": problem.math,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "TAIL": max(16, power_of_two(left)) if left else 0,
            "BLOCK_D": max(16, power_of_two(depth)),
            "BLOCK_E": max(16, power_of_two(width)),
            "PDL": problem.capability >= 90,
        }
        kernel = Kernel("attention:attention", (*dtypes, out.dtype), tuple(constants.items()), num_warps=config["warps"], num_stages=config["stages"])
        grid = (math.ceil(rows / block_m) * heads * items, 1, 1)
        return Recipe((Launch(kernel, grid, (*operands, "y0")),), packed=packed)


class TorchAttention:
    """``scaled_dot_product_attention`` as torch does it on the GPU: FlashAttention-2, cuDNN or the memory-efficient kernel."""

    name = "sdpa"
    ops = ("attention",)

    def reject(self, problem: Problem) -> str:
        reason = _problem_reject(problem)
        if reason:
            return reason
        q, k, v = _specs(problem)
        if problem.inputs[3] is not None or problem.inputs[4] is not None:
            return "torch's kernels take no addends that repeat over windows"
        if problem.attributes["causal"] and q.shape[2] != k.shape[2]:
            return f"causal with {q.shape[2]} queries and {k.shape[2]} keys: torch's kernels align the last ones, the op the first ones"
        if problem.outputs[0].dtype != q.dtype:
            return f"the output is {problem.outputs[0].dtype}: torch gives {q.dtype}"
        if q.dtype == torch.float32 and problem.math == "tf32":
            return "torch's float32 kernel does not take tf32"
        vector = 16 // q.dtype.itemsize
        for name, spec in (("q", q), ("k", k), ("v", v)):
            steps = [s for n, s in zip(spec.shape[:3], spec.strides[:3], strict=True) if n > 1]
            if spec.shape[3] % vector or spec.strides[3] != 1 or any(step % vector for step in steps):
                return f"{name}: rows of {spec.shape[3]} with strides {spec.strides} do not start at 16-byte boundaries"
        if q.shape[3] != v.shape[3] or q.shape[3] > 256:
            return f"head dimensions {q.shape[3]} and {v.shape[3]}: expected two equal ones up to 256"
        if not self.configs(problem, 5):
            return f"no kernel of torch gives an output with strides {problem.outputs[0].strides}"
        return ""

    def configs(self, problem: Problem, level: int) -> list[Config]:
        """``kernel``: "flash", "cudnn" or "efficient", those whose output has the strides asked for."""
        q = _specs(problem)[0]
        kernels: tuple[str, ...] = ("efficient",) if q.dtype == torch.float32 else ("flash", "cudnn", "efficient")
        if q.shape[3] > 128:
            kernels = tuple(kernel for kernel in kernels if kernel != "cudnn")
        found: list[Config] = [{"kernel": kernel} for kernel in kernels if _same_layout(_output_of(problem, kernel), problem.outputs[0])]
        return found if level else found[:1]

    def recipe(self, problem: Problem, config: Config) -> Recipe:
        return Recipe((_torch_call(problem, config["kernel"]),))


def _torch_call(problem: Problem, kernel: str) -> TorchCall:
    tensors = (Ref("x0"), Ref("x1"), Ref("x2"))
    causal, scale = bool(problem.attributes["causal"]), (("scale", float(problem.attributes["scale"])),)
    if kernel == "flash":
        return TorchCall("aten._scaled_dot_product_flash_attention.default", (*tensors, 0.0, causal, False), scale, results=("y0", *[""] * 8))
    if kernel == "cudnn":
        return TorchCall(
            "aten._scaled_dot_product_cudnn_attention.default",
            (*tensors, None, False, 0.0, causal, False),
            scale,
            results=("y0", *[""] * 8),
        )
    return TorchCall("aten._scaled_dot_product_efficient_attention.default", (*tensors, None, False, 0.0, causal), scale, results=("y0", *[""] * 3))


def _output_of(problem: Problem, kernel: str) -> torch.Tensor:
    """What the operator returns, on the meta device: its strides follow the query's in a way of each kernel's own."""
    call = _torch_call(problem, kernel)
    tensors = [torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta") for spec in _specs(problem)]
    operator = getattr(torch.ops.aten, call.op.split(".")[1]).default
    return operator(*tensors, *call.args[3:], **dict(call.kwargs))[0]


def _same_layout(tensor: torch.Tensor, spec: TensorSpec) -> bool:
    """Whether the elements lie where the spec says; strides of dimensions of one element do not matter."""
    strides = zip(spec.shape, tensor.stride(), spec.strides, strict=True)
    return tuple(tensor.shape) == spec.shape and all(n == 1 or a == b for n, a, b in strides)


def _specs(problem: Problem) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    q, k, v = problem.inputs[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    return q, k, v


def _is_constant(problem: Problem, index: int) -> bool:
    return problem.inputs[index] is not None and index < len(problem.constants) and problem.constants[index]


def _addends(problem: Problem, combine: bool, packed: dict[str, Packed]) -> list[tuple[str, TensorSpec]]:
    """The operands to add to the scores. Constants whose rows do not start at 16-byte boundaries are padded, which ``packed`` is told."""
    if combine:
        shape, dtype = _sum_of_addends(problem)
        packed["sum"] = Packed(add_and_pad_columns, ("x3", "x4"))
        return [("packed.sum", TensorSpec.contiguous(_padded(shape), dtype))]
    found = []
    for index, name in ((3, "bias"), (4, "mask")):
        spec = problem.inputs[index]
        if spec is None:
            continue
        aligned = spec.strides[3] == 1 and all(n == 1 or s % 8 == 0 for n, s in zip(spec.shape[:3], spec.strides[:3], strict=True))
        if _is_constant(problem, index) and spec.shape[3] > 1 and not (aligned and spec.shape[3] % 8 == 0):
            packed[name] = Packed(pad_columns, (f"x{index}",))
            found.append((f"packed.{name}", TensorSpec.contiguous(_padded(spec.shape), spec.dtype)))
        else:
            found.append((f"x{index}", spec))
    return found


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:3], shape[3] + -shape[3] % 8)


def _sum_of_addends(problem: Problem) -> tuple[tuple[int, ...], torch.dtype]:
    bias, mask = problem.inputs[3:5]
    assert bias is not None
    assert mask is not None
    return tuple(torch.broadcast_shapes(bias.shape, mask.shape)), torch.promote_types(bias.dtype, mask.dtype)


def _can_combine(problem: Problem) -> bool:
    """Whether bias and mask may be added at build time: the sum is read once where the two are read twice."""
    if not (_is_constant(problem, 3) and _is_constant(problem, 4)):
        return False
    bias, mask = problem.inputs[3:5]
    assert bias is not None
    assert mask is not None
    if bias.shape[0] != mask.shape[0] and 1 not in (bias.shape[0], mask.shape[0]):
        return False
    shape, dtype = _sum_of_addends(problem)
    return shape[3] > 1 and math.prod(_padded(shape)) * dtype.itemsize <= _LARGEST_SUM


def _tile_config(problem: Problem, block_m: int, block_n: int) -> Config:
    """The tile with as many warps as its registers need."""
    v = _specs(problem)[2]
    floats = block_m * (max(16, power_of_two(v.shape[3])) + block_n * 3 // 2)
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "warps": 4 if floats <= 160 * 128 else 8, "stages": 2}


def _fits(problem: Problem, config: Config) -> bool:
    """Whether a block's registers and shared memory hold the tile."""
    q, _, v = _specs(problem)
    m, n, stages = config["BLOCK_M"], config["BLOCK_N"], config["stages"]
    depth, width = max(16, power_of_two(q.shape[3])), max(16, power_of_two(v.shape[3]))
    size = q.dtype.itemsize
    addend = max((spec.dtype.itemsize for spec in problem.inputs[3:] if spec is not None), default=0)
    addends = sum(spec is not None for spec in problem.inputs[3:])
    shared = m * depth * size + stages * n * (depth + width) * size + stages * addends * m * n * addend + m * n * size
    registers = m * (width + n * 3 // 2) / (32 * config["warps"])
    if size == 4 and problem.math == "ieee" and not ((m == 16 and n <= 32) or (m * n <= 1024 and m * depth <= 2048)):
        return False  # products on the CUDA cores hold rows of their operands in registers too
    return shared <= _SHARED_BYTES.get(problem.capability, 220 << 10) and registers <= 192


def _best_blocks(problem: Problem) -> tuple[int, int] | None:
    """The best guess at BLOCK_M and BLOCK_N: programs for every multiprocessor, few keys padded. None when nothing fits."""
    q, k, _ = _specs(problem)
    rows, keys = q.shape[2], k.shape[2]
    heads = q.shape[0] * q.shape[1]
    block_m = 16
    for m in (32, 64, 128):
        # twice the programs for a step that makes each of them slower; above one block, the last may be mostly empty
        if m <= power_of_two(rows) and math.ceil(rows / m) * heads >= problem.multiprocessors * (1 if m < 128 else 4):
            block_m = m
    whole = max(16, power_of_two(keys))
    if q.dtype == torch.float32 and problem.math == "ieee":  # products on the CUDA cores: larger tiles spill
        block_m, block_n = min(block_m, 32), min(whole, 32)
    elif q.dtype == torch.float32:
        block_m, block_n = min(block_m, 64), min(whole, 32)
    elif whole <= 64 or (block_m <= 32 and whole <= 256):
        block_n = whole
    else:
        block_n = 64
    for m, n in ((block_m, block_n), (min(block_m, 64), min(block_n, 64)), (min(block_m, 32), min(block_n, 32)), (16, 32), (16, 16)):
        if _fits(problem, _tile_config(problem, m, n)):
            return m, n
    return None


TACTICS = (FlashAttention(), TorchAttention())
