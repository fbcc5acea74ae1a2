"""torchkiln::attention: softmax(q k^T * scale + bias + mask) v."""

from __future__ import annotations

import torch

from .define import define


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    """Attention with up to two addends to the scores, softmax in float32; the result is in q's dtype.

    Args:
        q: [B, H, S, D]; k: [B, H, T, D]; v: [B, H, T, E].
        bias, mask: floating, [W, H or 1, S or 1, T or 1] with B a multiple of W: item b reads row b % W (the windows of a Swin block share masks).
        causal: position s sees positions t <= s only.

    Returns:
        [B, H, S, E].
    """
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    for addend in (bias, mask):
        if addend is not None:
            windows = addend.shape[0]
            split = scores.reshape(-1, windows, *scores.shape[1:]) + addend.float()
            scores = split.reshape(scores.shape)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


define("attention(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, float scale, bool causal) -> Tensor", attention)
