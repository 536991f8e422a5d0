"""Small compiled models that the runtime's tests share; each is compiled once."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc


class Mixed(nn.Module):
    """Float work, an input passed through, an output given twice, a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-2, 2, 24).reshape(4, 6))

    def forward(self, x, y):
        z = torch.tanh(x * self.w) + y
        return {"sum": z, "same": (x, z)}


class Counter(nn.Module):
    """Adds its input to a buffer, and returns the buffer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((8,), 10.0))

    def forward(self, x):
        self.total.add_(x)
        return self.total


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 16)

    def forward(self, ids):
        return torch.relu(self.table(ids))


class Wide(nn.Module):
    """Enough work for TVM to share it among threads."""

    def forward(self, x):
        for _ in range(3):
            x = torch.nn.functional.gelu(x) + torch.tanh(x)
        return x


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 128)
    )


def compiled(name: str) -> qc.CompiledModel:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    if name == "mixed":
        return qc.compile(Mixed().eval(), (x, x), recipe="float32")
    if name == "counter":
        return qc.compile(Counter().eval(), (torch.randn(8),), recipe="float32")
    if name == "embed":
        return qc.compile(Embed().eval(), (torch.arange(5)[None],), recipe="float32")
    if name == "wide":
        return qc.compile(Wide().eval(), (torch.randn(64, 2048),), recipe="float32")
    if name == "batch":
        shapes = {"x": {0: torch.export.Dim("batch", min=2, max=8)}}
        module, example = Wide().eval(), (torch.randn(3, 64),)
        return qc.compile(module, example, recipe="float32", dynamic_shapes=shapes)
    assert name == "layers"
    pictures = [torch.randn(1, 3, 6, 6) for _ in range(4)]
    return qc.compile(layers().eval(), (pictures[0],), calibration=pictures)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """`artifacts(name)` is the path of a saved model, not to be written to."""
    folder = tmp_path_factory.mktemp("artifacts")

    def path_of(name: str) -> Path:
        path = folder / f"{name}.qcm"
        if not path.exists():
            compiled(name).save(path)
        return path

    return path_of


@pytest.fixture
def artifact(artifacts, tmp_path) -> Path:
    """A copy of a saved model, to be spoiled."""
    return Path(shutil.copy(artifacts("layers"), tmp_path / "m.qcm"))


@pytest.fixture
def load(artifacts):
    """`load(name)` is a fresh model."""
    return lambda name, **options: qc.load(artifacts(name), **options)
