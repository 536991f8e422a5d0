"""Convolutions, pools and interpolation in every geometry PyTorch knows."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops import AvgPool2d, Const, Conv2d, Dilate, Gather, Pad, Permute, Slice

X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))

LAYERS = [
    nn.Conv2d(4, 8, 3, groups=2),
    nn.Conv2d(4, 8, 3, groups=4, padding=1),
    nn.Conv2d(4, 4, (3, 2), dilation=2, stride=(2, 1), padding=(2, 1), bias=False),
    nn.Conv2d(4, 4, (4, 3), padding="same"),
    nn.Conv2d(4, 4, 4, padding="same", dilation=(2, 1)),
    nn.Conv2d(4, 4, 2, padding="valid"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="replicate"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 4, 3)),
]
TRANSPOSED = [
    nn.ConvTranspose2d(4, 6, 2, stride=2),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
    nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), padding=2),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=3, output_padding=1),
    nn.ConvTranspose2d(4, 8, 3, stride=3, dilation=2, groups=4, output_padding=(2, 0), bias=False),
]
ALONG_ONE_AXIS = [
    nn.Conv1d(4, 6, 3, padding=1, stride=2),
    nn.Conv1d(4, 6, 4, padding="same", groups=2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, output_padding=1),
    nn.BatchNorm1d(4),
    nn.MaxPool1d(3, 2, ceil_mode=True),
    nn.AvgPool1d(3, 2, 1),
    nn.AdaptiveAvgPool1d(4),
    nn.AdaptiveMaxPool1d(1),
    nn.Upsample(scale_factor=2.5),
    nn.Upsample(size=9, mode="linear"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolution(agrees, layer):
    graph = agrees(layer, X)
    assert sum(isinstance(n.op, Conv2d) for n in graph.nodes()) == 1
    assert {type(n.op) for n in graph.nodes() if n.inputs} <= {Conv2d, Gather, Pad}


@pytest.mark.parametrize("layer", TRANSPOSED, ids=str)
def test_transposed_convolution(agrees, layer):
    graph = agrees(layer, X)
    kinds = {type(n.op) for n in graph.nodes() if n.inputs}
    assert {Dilate, Conv2d} <= kinds <= {Dilate, Conv2d, Slice}, "the weight is turned at once"


@pytest.mark.parametrize("layer", ALONG_ONE_AXIS, ids=str)
def test_along_one_axis(agrees, layer):
    agrees(layer, X[:, :, 0])


def test_same_padding_puts_the_odd_element_after(agrees):
    graph = agrees(nn.Conv2d(4, 4, (4, 3), padding="same"), X)
    (conv,) = [n.op for n in graph.nodes() if isinstance(n.op, Conv2d)]
    assert conv.padding == ((1, 2), (1, 1))


def test_without_a_batch(agrees):
    agrees(nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2)), X[0])


def test_weight_made_by_a_layer(agrees):
    agrees(lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2), X, torch.randn(4, 3, 3, 3))
    agrees(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), X)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(2, 2, 1), (3, 2, 1), (3, 3, 1), (4, 3, 2), (5, 4, 2), (2, 3, 0), (2, 3, 1)],
)
def test_ceil_mode(agrees, kernel, stride, padding):
    def pools(*images):
        return [
            pool
            for x in images
            for pool in (
                F.max_pool2d(x, kernel, stride, padding, ceil_mode=True),
                F.avg_pool2d(x, kernel, stride, padding, ceil_mode=True),
                F.avg_pool2d(x, kernel, stride, padding, True, count_include_pad=False),
            )
        ]

    agrees(pools, *(torch.randn(1, 2, h, h + 1) for h in range(5, 11)))


def test_other_pools(agrees):
    graph = agrees(
        lambda x: (
            F.max_pool2d(x, 3, 2, 1, dilation=2),
            F.max_pool2d(x, (2, 3)),
            F.avg_pool2d(x, 2, divisor_override=3),
            F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool2d(x, (3, 4)),
            F.adaptive_max_pool2d(x, (None, 1)),
        ),
        X,
    )
    windows = [n.op.window.kernel for n in graph.nodes() if isinstance(n.op, AvgPool2d)]
    assert (9, 8) in windows and (3, 2) in windows


def test_mean_over_the_picture_is_one_pool(agrees):
    graph = agrees(lambda x: (x.mean((2, 3)), x.mean((-1, -2), keepdim=True)), X)
    pools = [n.op.window.kernel for n in graph.nodes() if isinstance(n.op, AvgPool2d)]
    assert pools == [(9, 8), (9, 8)]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_interpolation(agrees, mode):
    corners = [{}, {"align_corners": True}] if mode == "bilinear" else [{}]
    sizes = [
        {"scale_factor": 2},
        {"scale_factor": (0.6, 1.7)},
        {"scale_factor": 1.5, "recompute_scale_factor": True},
        {"size": (7, 13)},
    ]
    options = [a | b for a, b in product(sizes, corners)]
    agrees(lambda x: [F.interpolate(x, mode=mode, **o) for o in options], X)


def test_shuffles(agrees):
    graph = agrees(
        lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[..., :8, :], 2),
                   F.channel_shuffle(x, 2)),
        X,
    )  # fmt: skip
    assert sum(isinstance(n.op, Permute) for n in graph.nodes()) == 3


def test_transposed_weight_keeps_its_name(agrees):
    graph = agrees(nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), X)
    assert "0.weight" in [n.name for n in graph.nodes() if isinstance(n.op, Const)]
