"""What it changes to blend the probabilities of overlapping windows in place of their logits.

python benchmarks/blend_probabilities.py [--steps 200]

A small 3-D U-Net learns to segment the spheres of MONAI's synthetic volumes; then whole volumes are segmented with sliding windows, once with softmax
behind the blended logits (as MONAI's tutorials do) and once with softmax inside the engine, so that probabilities are blended. Needs MONAI.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

import torchkiln
from torchkiln import postprocess

ROI = (32, 32, 32)
SIZE = 72
CLASSES = 4


def make_volume(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume (1, 1, SIZE, SIZE, SIZE) of spheres of CLASSES - 1 kinds in noise, and its labels (1, SIZE, SIZE, SIZE)."""
    import numpy as np
    from monai.data import create_test_image_3d

    image, labels = create_test_image_3d(
        SIZE, SIZE, SIZE, num_objs=14, rad_max=14, rad_min=5, noise_max=0.6, num_seg_classes=CLASSES - 1, random_state=np.random.RandomState(seed)
    )
    return torch.from_numpy(image).float()[None, None], torch.from_numpy(labels).long()[None]


def train(steps: int) -> torch.nn.Module:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    net = UNet(3, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    volumes = [make_volume(seed) for seed in range(4)]
    for step in range(steps):
        image, labels = volumes[step % len(volumes)]
        starts = torch.randint(0, SIZE - ROI[0] + 1, (4, 3))
        cuts = [tuple(slice(s, s + r) for s, r in zip(start.tolist(), ROI, strict=True)) for start in starts]
        windows = torch.cat([image[(..., *cut)] for cut in cuts])
        wanted = torch.cat([labels[(..., *cut)] for cut in cuts])
        loss = F.cross_entropy(net(windows), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def dice(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The mean of the classes' Dice coefficients, without the background."""
    scores = []
    for label in range(1, CLASSES):
        one, other = found == label, wanted == label
        scores.append(float(2 * (one & other).sum() / (one.sum() + other.sum()).clamp(min=1)))
    return sum(scores) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    steps = parser.parse_args().steps
    net = train(steps)
    window = torchkiln.Input((4, 1, *ROI))
    logits_engine = torchkiln.compile(net, inputs=[window], backend="openvino")
    engine = torchkiln.compile(torchkiln.with_postprocess(net, postprocess.softmax(dim=1)), inputs=[window], backend="openvino")
    test = [make_volume(seed) for seed in range(100, 103)]
    print("| mode | overlap | largest difference | mean difference | other labels | Dice, logits blended | Dice, probabilities blended |")
    print("|---|---|---|---|---|---|---|")
    for mode in ("constant", "gaussian"):
        for overlap in (0.25, 0.5):
            largest, mean, other, scores = 0.0, 0.0, 0.0, [0.0, 0.0]
            for image, labels in test:
                blend = {"overlap": overlap, "mode": mode}
                logits = torchkiln.sliding_window_inference(image, ROI, 4, logits_engine, **blend).softmax(1)
                probabilities = torchkiln.sliding_window_inference(image, ROI, 4, engine, **blend)
                difference = (logits - probabilities).abs()
                largest = max(largest, float(difference.max()))
                mean += float(difference.mean()) / len(test)
                found = [logits.argmax(1), probabilities.argmax(1)]
                other += float((found[0] != found[1]).float().mean()) / len(test)
                scores = [score + dice(one, labels) / len(test) for score, one in zip(scores, found, strict=True)]
            print(f"| {mode} | {overlap} | {largest:.3f} | {mean:.1e} | {other:.4%} | {scores[0]:.4f} | {scores[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
