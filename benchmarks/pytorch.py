"""The variant in PyTorch, channels last: eager or compiled, float32 or bfloat16 by autocast.

``python -m benchmarks.pytorch [--compile] [--bfloat16]``, in an environment of its own.
"""

import argparse
from typing import Any

import torch
from torch import nn

from benchmarks.contender import INFERENCE_BATCH, Contender, matrix_products, random_images, serve


def modules(row: dict[str, Any], channels: int, last: bool) -> list[nn.Module]:
    """Return the PyTorch modules for a layer of params.yaml with `channels` input channels.

    Dense layers are lazy: the first batch sets their input size.
    """
    match row["type"]:
        case "conv":
            padding = row["kernel"] // 2 if row["padding"] == "same" else 0
            convolution = nn.Conv2d(channels, row["filters"], row["kernel"], padding=padding)
            return [convolution, nn.ReLU(inplace=True)]
        case "max_pool":
            return [nn.MaxPool2d(row["size"], row["stride"], ceil_mode=row["padding"] == "same")]
        case "lrn":
            size = 2 * row["depth_radius"] + 1  # PyTorch divides alpha by the size
            return [nn.LocalResponseNorm(size, row["alpha"] * size, row["beta"], row["bias"])]
        case "dropout":
            return [nn.Dropout(row["rate"])]
        case "dense":
            relu = [] if last else [nn.ReLU(inplace=True)]
            return [nn.Flatten(), nn.LazyLinear(row["units"]), *relu]
    raise ValueError(f"no PyTorch module for {row}")


def make(request: dict[str, Any], *, compiled: bool, bfloat16: bool) -> Contender:
    """Return the variant, built and in channels-last order."""
    torch.manual_seed(0)
    *_, channels = request["image_shape"]
    network = nn.Sequential()
    for row in request["layers"]:
        network.extend(modules(row, channels, last=row is request["layers"][-1]))
        channels = row.get("filters", channels)
    images, labels = (torch.from_numpy(array) for array in random_images(request))
    images = images.permute(0, 3, 1, 2)  # bytes in channels-last order, as in the pipeline
    targets = labels.long()
    network(images[:2] / 255)  # sets the dense layers' input sizes
    network.to(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    adam = torch.optim.Adam(network.parameters(), 1e-4, fused=True)
    batch_size: int = request["batch_size"]

    def train(steps: int) -> int:
        network.train()
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch_size,))
            adam.zero_grad()
            with autocast:
                logits = forward(images[chosen].to(memory_format=torch.channels_last) / 255)
            nn.functional.cross_entropy(logits.float(), targets[chosen]).backward()
            adam.step()
        return steps * batch_size

    @torch.inference_mode()
    def infer(batches: int) -> int:
        network.eval()
        for number in range(batches):
            start = number * INFERENCE_BATCH % len(images)
            with autocast:
                batch = images[start : start + INFERENCE_BATCH]
                forward(batch.to(memory_format=torch.channels_last) / 255)
        return batches * INFERENCE_BATCH

    work = train if request["task"] == "train" else infer
    parameters = sum(each.numel() for each in network.parameters())
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    multiply = matrix_products(lambda matrix: torch.from_numpy(matrix).to(dtype))
    return Contender(parameters, {"torch": torch.__version__}, work, multiply)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    flags = parser.parse_args()
    serve(lambda request: make(request, compiled=flags.compile, bfloat16=flags.bfloat16))
