"""A small U-Net (Ronneberger et al., 2015) that goes up three ways: learned, bilinear, nearest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qcompiler.zoo.blocks import conv_bn
from qcompiler.zoo.randomize import noise, randomize_

WIDTHS = (16, 32, 64, 128)


def _double(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(channels_in, channels_out, 3, activation=nn.ReLU),
        conv_bn(channels_out, channels_out, 3, activation=nn.ReLU),
    )


def _ways_up(widths: tuple[int, ...]) -> tuple[nn.Module, ...]:
    """Twice the size, from `widths[i + 1]` to `widths[i]` channels, a different way each time."""
    shallow, middle, deep, deepest = widths
    return (
        nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(middle, shallow, 1)
        ),
        nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(deep, middle, 1),
        ),
        nn.ConvTranspose2d(deepest, deep, 2, stride=2),
    )


class UNet(nn.Module):
    """float32 [N, 3, H, W], H and W divisible by 8 -> class scores [N, classes, H, W]."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        channels = (3, *WIDTHS)
        self.down = nn.ModuleList(map(_double, channels[:-1], channels[1:]))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(_ways_up(WIDTHS))
        self.merge = nn.ModuleList(_double(2 * width, width) for width in WIDTHS[:-1])
        self.scores = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.down[0](x)]
        for down in self.down[1:]:
            skips.append(down(self.pool(skips[-1])))
        x = skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), dim=1))
        return self.scores(x)


def unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The U-Net with random weights and an input [1, 3, 96, 96]."""
    inputs = (noise(1, 3, 96, 96),)
    return randomize_(UNet(), inputs), inputs
