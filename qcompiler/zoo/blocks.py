"""The block the convolutional networks here are made of: convolution, batch norm, activation."""

from __future__ import annotations

from torch import nn


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """[N, channels_in, H, W] -> [N, channels_out, H/stride, W/stride], padded by kernel // 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels_out),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)
