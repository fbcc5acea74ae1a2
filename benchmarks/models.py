"""Models for the benchmarks that no model zoo builds by name. Each is a factory: ``benchmarks/models.py:swin_unetr``."""

from __future__ import annotations

import torch


def swin_unetr() -> torch.nn.Module:
    """MONAI's SwinUNETR, feature size 48, one channel in, two out, for 96^3 windows (needs the package monai)."""
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(0)
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=48, spatial_dims=3).eval()


def unet() -> torch.nn.Module:
    """MONAI's BasicUNet in two dimensions, three channels in, two out (needs the package monai)."""
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    return BasicUNet(spatial_dims=2, in_channels=3, out_channels=2).eval()


def bert_base() -> torch.nn.Module:
    """A transformer encoder of BERT-base's size, for embeddings of shape (N, tokens, 768): 12 layers, 12 heads, 3072 between the linear layers."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True, norm_first=False)
    return torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()
