"""MobileNetV2 (Sandler et al., 2018) and MobileNetV3 (Howard et al., 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qcompiler.zoo.blocks import conv_bn
from qcompiler.zoo.randomize import noise, randomize_

# Table 2 of the V2 paper: (expansion, channels, repeats, stride).
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Row(NamedTuple):
    """One row of tables 1 and 2 of the V3 paper."""

    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


RE, HS = nn.ReLU, nn.Hardswish
V3_LARGE = (
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)
V3_SMALL = (
    Row(3, 16, 16, True, RE, 2),
    Row(3, 72, 24, False, RE, 2),
    Row(3, 88, 24, False, RE, 1),
    Row(5, 96, 40, True, HS, 2),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 120, 48, True, HS, 1),
    Row(5, 144, 48, True, HS, 1),
    Row(5, 288, 96, True, HS, 2),
    Row(5, 576, 96, True, HS, 1),
    Row(5, 576, 96, True, HS, 1),
)


def divisible(channels: float, by: int = 8) -> int:
    """`channels` rounded to a multiple of `by`, but never down by more than a tenth."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded if rounded >= 0.9 * channels else rounded + by


class SqueezeExcite(nn.Module):
    """Each channel times a gate computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = divisible(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, optional squeeze-excite, project; added to the input if shapes fit."""

    def __init__(self, channels: int, row: Row) -> None:
        super().__init__()
        wide, act = row.expanded, row.activation
        layers: list[nn.Module] = []
        if wide != channels:
            layers.append(conv_bn(channels, wide, activation=act))
        layers.append(conv_bn(wide, wide, row.kernel, row.stride, groups=wide, activation=act))
        if row.squeeze:
            layers.append(SqueezeExcite(wide))
        layers.append(conv_bn(wide, row.channels))
        self.branch = nn.Sequential(*layers)
        self.residual = row.stride == 1 and channels == row.channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class MobileNet(nn.Module):
    """Stem, blocks, head, pool, classifier: float32 [N, 3, H, W] -> logits [N, classes]."""

    def __init__(
        self, rows: tuple[Row, ...], stem: int, head: nn.Module, classifier: nn.Module, act: type
    ) -> None:
        super().__init__()
        self.stem = conv_bn(3, stem, 3, 2, activation=act)
        channels_in = (stem, *(row.channels for row in rows))
        self.blocks = nn.Sequential(*map(InvertedResidual, channels_in, rows))
        self.head = head
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


def make_v2(classes: int = 1000) -> MobileNet:
    """MobileNetV2 at width 1.0, without weights worth having."""
    rows: list[Row] = []
    channels = 32
    for expansion, out, repeats, stride in V2_STAGES:
        for i in range(repeats):
            rows.append(
                Row(3, channels * expansion, out, False, nn.ReLU6, stride if i == 0 else 1)
            )
            channels = out
    head = conv_bn(channels, 1280, activation=nn.ReLU6)
    return MobileNet(tuple(rows), 32, head, nn.Linear(1280, classes), nn.ReLU6)


def make_v3(rows: tuple[Row, ...], hidden: int, classes: int = 1000) -> MobileNet:
    """MobileNetV3 of `rows`, with `hidden` features before the logits."""
    last = rows[-1]
    head = conv_bn(last.channels, last.expanded, activation=HS)
    classifier = nn.Sequential(
        nn.Linear(last.expanded, hidden), HS(), nn.Dropout(0.2), nn.Linear(hidden, classes)
    )
    return MobileNet(rows, 16, head, classifier, HS)


def _randomized(model: MobileNet) -> tuple[nn.Module, tuple[Tensor, ...]]:
    inputs = (noise(1, 3, 224, 224),)
    return randomize_(model, inputs), inputs


def mobilenet_v2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNetV2 with random weights and an input [1, 3, 224, 224]."""
    return _randomized(make_v2())


def mobilenet_v3_small() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNetV3-small with random weights and an input [1, 3, 224, 224]."""
    return _randomized(make_v3(V3_SMALL, 1024))


def mobilenet_v3_large() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNetV3-large with random weights and an input [1, 3, 224, 224]."""
    return _randomized(make_v3(V3_LARGE, 1280))
