"""ResNet-50 (He et al., 2015; stride in the 3x3 convolution, as commonly trained)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qcompiler.zoo.blocks import conv_bn
from qcompiler.zoo.randomize import noise, randomize_

# (blocks, inner channels, stride of the first block) of the four stages.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand, added to the input or its projection."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * EXPANSION
        self.branch = nn.Sequential(
            conv_bn(channels, inner, activation=nn.ReLU),
            conv_bn(inner, inner, 3, stride, activation=nn.ReLU),
            conv_bn(inner, out),
        )
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else conv_bn(channels, out, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """float32 [N, 3, H, W] -> logits [N, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1))
        blocks = []
        channels = 64
        for count, inner, stride in STAGES:
            for i in range(count):
                blocks.append(Bottleneck(channels, inner, stride if i == 0 else 1))
                channels = inner * EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


def resnet50() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ResNet-50 with random weights and an input [1, 3, 224, 224]."""
    inputs = (noise(1, 3, 224, 224),)
    return randomize_(ResNet50(), inputs), inputs
