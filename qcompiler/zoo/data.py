"""Pictures and sentences from installed packages: labelled ones to test on, others to calibrate.

Pictures are uint8 [count, 224, 224, 3] (RGB). Nothing to calibrate on is in a test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.zoo.packages import data_file, require

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Pictures = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 224
# The crop of 7/8 out of the middle with which the paper's networks are scored.
RESIZED = 256
# EfficientNet-Lite's own constants; ImageNet's mean and deviation lose it a tenth of its accuracy.
PIXEL_OFFSET, PIXEL_SCALE = 127.0, 128.0

# Photographs in scikit-image and matplotlib, the varied ones first.
PHOTOS = (
    ("skimage", "data", "astronaut.png"),
    ("skimage", "data", "chelsea.png"),
    ("skimage", "data", "coffee.png"),
    ("skimage", "data", "motorcycle_left.png"),
    ("skimage", "data", "rocket.jpg"),
    ("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"),
    ("skimage", "data", "hubble_deep_field.jpg"),
    ("skimage", "data", "ihc.png"),
    ("skimage", "data", "brick.png"),
    ("skimage", "data", "grass.png"),
    ("skimage", "data", "camera.png"),
    ("skimage", "data", "coins.png"),
    ("skimage", "data", "gravel.png"),
    ("skimage", "data", "motorcycle_right.png"),
)
# Smallest share of a photograph's shorter side that a crop keeps.
SMALLEST_CROP = 0.4
# foolbox's 32 x 32 pictures: many objects, but blurred when enlarged; every third picture is one.
THUMBNAILS = ("cifar10_*.png", "cifar100_*.png")
THUMBNAIL_EVERY = 3


def imagenet20() -> tuple[Pictures, Labels]:
    """foolbox's 20 ImageNet pictures and their classes (0..999), taken from the file names."""
    folder = require("foolbox") / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))
    pictures = np.stack([np.asarray(_centre(_read(file))) for file in files])
    return pictures, np.array([int(file.stem.split("_")[2]) for file in files], dtype=np.int64)


def calibration_images(count: int = 64, seed: int = 0) -> Pictures:
    """`count` natural pictures, none of them in `imagenet20`: the same for the same arguments."""
    photos = [data_file(*parts) for parts in PHOTOS]
    folder = require("foolbox") / "data"
    thumbnails = [file for pattern in THUMBNAILS for file in sorted(folder.glob(pattern))]
    generator = np.random.default_rng(seed)
    pictures = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for i in range(count):
        turn, rest = divmod(i, THUMBNAIL_EVERY)
        if rest == THUMBNAIL_EVERY - 1:
            picture = _resize(_read(thumbnails[turn % len(thumbnails)]), SIDE)
        else:
            picture = _random_crop(_read(photos[(i - turn) % len(photos)]), generator)
        pictures[i] = np.asarray(picture)
    return pictures


def preprocess(pictures: Pictures) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], (pixel - 127) / 128, for EfficientNet-Lite."""
    import torch

    scaled = (pictures.astype(np.float32) - PIXEL_OFFSET) / PIXEL_SCALE
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def lite0_calibration(count: int = 64) -> Iterator[Tensor]:
    """Preprocessed calibration pictures one by one, [1, 3, 224, 224]: DATA for the command line."""
    yield from preprocess(calibration_images(count)).split(1)


def sentences(count: int, split: Literal["test", "calibration"] = "test") -> list[str]:
    """English news sentences of the Lee corpora in gensim; the splits share no document.

    ValueError when the split holds fewer than `count` (about 130 in test, 2,000 in calibration).
    """
    file = {"test": "lee.cor", "calibration": "lee_background.cor"}[split]
    text = data_file("gensim", "test", "test_data", file).read_text(encoding="latin-1")
    found = [s for line in text.splitlines() for s in _split(line)]
    if len(found) < count:
        raise ValueError(f"{count} sentences wanted, the {split} split has {len(found)}")
    return found[:count]


def lee50() -> tuple[list[str], npt.NDArray[np.float64]]:
    """50 news documents, and how similar people found each pair, 0 to 1, symmetric [50, 50] (Lee,
    Pincombe and Welsh 2005)."""
    parts = ("gensim", "test", "test_data")
    texts = data_file(*parts, "lee.cor").read_text(encoding="latin-1").splitlines()
    upper = np.triu(np.loadtxt(data_file(*parts, "similarities0-1.txt")), 1)
    return texts, upper + upper.T + np.eye(len(upper))


def minilm_batches(
    count: int, length: int = 64, split: Literal["test", "calibration"] = "calibration"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask of one sentence after another, int64 [1, length] each."""
    from qcompiler.zoo.minilm import tokenize

    ids, mask = tokenize(sentences(count, split), length)
    yield from zip(ids.split(1), mask.split(1), strict=True)


def _split(line: str) -> list[str]:
    """Sentences of five words or more; a full stop after a capital letter (J. Smith) ends none."""
    parts = re.split(r"(?<=[a-z0-9%)][.!?])\s+(?=[A-Z\"])", line.strip())
    return [part for part in parts if len(part.split()) >= 5]


def _read(file: Path) -> Image.Image:
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB")


def _resize(picture: Image.Image, side: int) -> Image.Image:
    from PIL import Image

    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _centre(picture: Image.Image) -> Image.Image:
    margin = (RESIZED - SIDE) // 2
    box = (margin, margin, margin + SIDE, margin + SIDE)
    return _resize(picture, RESIZED).crop(box)


def _random_crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    from PIL import Image

    short = min(picture.size)
    side = int(generator.integers(int(SMALLEST_CROP * short), short + 1))
    left, top = (int(generator.integers(0, size - side + 1)) for size in picture.size)
    picture = picture.crop((left, top, left + side, top + side))
    if generator.integers(2):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _resize(picture, SIDE)
