"""R-Net and O-Net, the small face nets of MTCNN (Zhang et al., 2016), pretrained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qcompiler.zoo.packages import data_file
from qcompiler.zoo.randomize import noise

PACKAGE = "facenet_pytorch"


def _stage(c_in: int, c_out: int, kernel: int, pool: int = 0) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel), nn.PReLU(c_out)]
    if pool:
        layers.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
    return layers


class FaceNet(nn.Module):
    """Convolutions, one dense layer, then a head per output: boxes, (landmarks,) probabilities."""

    def __init__(self, features: list[nn.Module], flat: int, dense: int, heads: tuple[int, ...]):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.dense = nn.Sequential(nn.Linear(flat, dense), nn.PReLU(dense))
        self.regressions = nn.ModuleList(nn.Linear(dense, size) for size in heads)
        self.classifier = nn.Sequential(nn.Linear(dense, 2), nn.Softmax(dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # The weights come from Caffe, which stores pictures column by column.
        x = self.features(x).permute(0, 3, 2, 1).flatten(1)
        x = self.dense(x)
        return (*(head(x) for head in self.regressions), self.classifier(x))


class RNet(FaceNet):
    """float32 [N, 3, 24, 24] in -1..1 -> box offsets [N, 4], (no face, face) [N, 2]."""

    def __init__(self) -> None:
        features = [*_stage(3, 28, 3, pool=3), *_stage(28, 48, 3, pool=3), *_stage(48, 64, 2)]
        super().__init__(features, 576, 128, (4,))


class ONet(FaceNet):
    """float32 [N, 3, 48, 48] in -1..1 -> boxes [N, 4], landmarks [N, 10], (no, yes) [N, 2]."""

    def __init__(self) -> None:
        features = [
            *_stage(3, 32, 3, pool=3),
            *_stage(32, 64, 3, pool=3),
            *_stage(64, 64, 3, pool=2),
            *_stage(64, 128, 2),
        ]
        super().__init__(features, 1152, 256, (4, 10))


# Our layer -> the name it has in the published weights.
R_NAMES = {
    "features.0": "conv1",
    "features.1": "prelu1",
    "features.3": "conv2",
    "features.4": "prelu2",
    "features.6": "conv3",
    "features.7": "prelu3",
    "dense.0": "dense4",
    "dense.1": "prelu4",
    "classifier.0": "dense5_1",
    "regressions.0": "dense5_2",
}
O_NAMES = {
    "features.0": "conv1",
    "features.1": "prelu1",
    "features.3": "conv2",
    "features.4": "prelu2",
    "features.6": "conv3",
    "features.7": "prelu3",
    "features.9": "conv4",
    "features.10": "prelu4",
    "dense.0": "dense5",
    "dense.1": "prelu5",
    "classifier.0": "dense6_1",
    "regressions.0": "dense6_2",
    "regressions.1": "dense6_3",
}


def _load(model: FaceNet, file: str, names: dict[str, str]) -> None:
    published = torch.load(data_file(PACKAGE, "data", file), weights_only=True)
    split = (key.rpartition(".") for key in model.state_dict())
    model.load_state_dict(
        {f"{layer}.{leaf}": published[f"{names[layer]}.{leaf}"] for layer, _, leaf in split}
    )
    model.eval()


def load_rnet() -> RNet:
    """Pretrained R-Net in eval mode; ImportError when its package is not installed."""
    model = RNet()
    _load(model, "rnet.pt", R_NAMES)
    return model


def load_onet() -> ONet:
    """Pretrained O-Net in eval mode; ImportError when its package is not installed."""
    model = ONet()
    _load(model, "onet.pt", O_NAMES)
    return model


def rnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Pretrained R-Net and an input [1, 3, 24, 24]."""
    return load_rnet(), (noise(1, 3, 24, 24).clamp(-1, 1),)


def onet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Pretrained O-Net and an input [1, 3, 48, 48]."""
    return load_onet(), (noise(1, 3, 48, 48).clamp(-1, 1),)
