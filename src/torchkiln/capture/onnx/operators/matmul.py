"""matmul: matrix products, attention and rotary embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..node import Call, Value


def _matmul(call: Call) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


def _gemm(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if not a.is_floating_point():
        alpha, beta = int(alpha), int(beta)
    if call.get("transA", 0):
        a = a.t()
    bias = call.optional(2)
    if alpha == 1 and a.is_floating_point() and (bias is None or (beta == 1 and bias.dim() == 1 and bias.shape[0] != 1)):
        return F.linear(a, b if call.get("transB", 0) else b.t(), bias)
    product = torch.matmul(a, b.t() if call.get("transB", 0) else b)
    product = product if alpha == 1 else product * alpha
    return product if bias is None or beta == 0 else product + (bias if beta == 1 else bias * beta)


def _einsum(call: Call) -> Value:
    return torch.einsum(call.get("equation"), *call.tensors())


def _attention(call: Call) -> Value:
    if len([name for name in call.node.outputs if name]) > 1:
        raise call.error("only its first output can be computed; present keys and values and the scores are not supported")
    if call.has(4) or call.has(5) or call.has(6) or call.get("softcap", 0.0):
        raise call.error("past keys and values, nonpad_kv_seqlen and softcap are not supported: export the model without a cache")
    q, k, v, mask = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    flat = q.dim() == 3
    if flat:
        heads, kv_heads = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    causal = bool(call.get("is_causal", 0))
    if causal and mask is not None:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = mask & allowed if mask.dtype is torch.bool else mask.masked_fill(~allowed, float("-inf"))
        causal = False
    result = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=call.get("scale"))
    return result.transpose(1, 2).flatten(2) if flat else result


def _rotary_embedding(call: Call) -> Value:
    value, cos, sin, ids = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    flat = value.dim() == 3
    if flat:
        value = value.unflatten(-1, (call.get("num_heads"), -1)).transpose(1, 2)
    if ids is not None:
        cos, sin = F.embedding(ids, cos), F.embedding(ids, sin)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = call.get("rotary_embedding_dim", 0) or value.shape[-1]
    turned, rest = value[..., :width], value[..., width:]
    interleaved = bool(call.get("interleaved", 0))
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    turned = torch.stack((real, imaginary), -1).flatten(-2) if interleaved else torch.cat((real, imaginary), -1)
    result = torch.cat((turned, rest), -1) if width != value.shape[-1] else turned
    return result.transpose(1, 2).flatten(2) if flat else result


def _determinant(call: Call) -> Value:
    return torch.linalg.det(call.tensor(0))


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "RotaryEmbedding": _rotary_embedding,
    "Det": _determinant,
}
