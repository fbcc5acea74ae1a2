"""pattern: 2:4 in a weight: which elements to prune, and whether it is there.

A weight is [out, in, *kernel], as PyTorch keeps those of linear layers and convolutions. Groups of four run along ``in``, apart for each output and
each place of the kernel: that is the order in which GPU kernels read them (input channels innermost), and the one that TensorRT asks for.
"""

from __future__ import annotations

import torch

#: Of each group of so many elements ...
GROUP = 4
#: ... at most so many are not zero.
KEPT = 2


def choose_pruned(weight: torch.Tensor) -> torch.Tensor:
    """Which elements to set to zero: in each group the two of smallest magnitude.

    Args:
        weight: [out, in, *kernel], floating, ``in`` a multiple of 4.

    Returns:
        A bool tensor of the same shape; of equal magnitudes any, but always two of four. What is not a number is kept.
    """
    groups = _groups(weight.detach())
    smallest = groups.abs().topk(GROUP - KEPT, dim=-1, largest=False).indices
    pruned = torch.zeros_like(groups, dtype=torch.bool, memory_format=torch.contiguous_format).scatter_(-1, smallest, True)
    return pruned.flatten(-2).movedim(-1, 1).contiguous()


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether ``weight`` [out, in, *kernel] has the pattern: exact zeros, at least two in each group. False for an empty one, and where ``in`` is no
    multiple of 4."""
    if weight.dim() < 2 or weight.numel() == 0 or weight.shape[1] % GROUP:
        return False
    return bool(((_groups(weight.detach()) != 0).sum(-1) <= KEPT).all())


def zero_share(weight: torch.Tensor) -> float:
    """Zeros among the elements, 0 to 1; 0 for an empty weight."""
    return float((weight.detach() == 0).sum()) / weight.numel() if weight.numel() else 0.0


def _groups(weight: torch.Tensor) -> torch.Tensor:
    """[out, *kernel, in / 4, 4]."""
    return weight.movedim(1, -1).unflatten(-1, (-1, GROUP))
