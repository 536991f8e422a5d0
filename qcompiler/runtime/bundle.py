"""A program with all that belongs to it, in memory or mapped from an artifact file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import machine
from qcompiler.runtime.archive import MANIFEST, Archive, sha256, write
from qcompiler.runtime.errors import ArtifactError, MachineError
from qcompiler.runtime.manifest import ALIGNMENT, Manifest, Member, Stored, from_json

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

LIBRARY = "model.so"
WEIGHTS = "weights.bin"
GRAPH = "graph.qir"
CONSTANTS = "constants.safetensors"
REPORT = "report.json"
KERNELS = "kernels.fatbin"
MEMBERS = (GRAPH, REPORT, CONSTANTS, LIBRARY, WEIGHTS)
"""What every artifact has. One for a GPU has KERNELS as well, where it was built with nvcc at hand;
the library holds their text in any case."""


@dataclass(frozen=True)
class Bundle:
    """members: contents by name, all but the weights. tensors: the weights' bytes by digest.
    files: what they are mapped from, kept open."""

    manifest: Manifest
    members: Mapping[str, Any]
    tensors: Mapping[str, Bytes]
    source: Path | None = None
    files: tuple[Any, ...] = field(default=(), repr=False)

    def text(self, name: str) -> str:
        """Raises ArtifactError for a member that is no text."""
        try:
            return bytes(self.members[name]).decode()
        except UnicodeDecodeError:
            where = f"{self.source}: " if self.source else ""
            raise ArtifactError(f"{where}its {name} is no UTF-8 text") from None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each part."""
        weights = sum(t.nbytes for t in self.tensors.values())
        return {**{k: len(v) for k, v in self.members.items()}, WEIGHTS: weights}

    def require_machine(self, features: frozenset[str] | None = None) -> None:
        """Raises MachineError unless this machine has every CPU feature the code needs."""
        here = machine.features() if features is None else features
        lacking = [f for f in self.manifest.cpu_features if f not in here]
        if lacking:
            raise MachineError(
                f"the model was built for {self.manifest.target}, which this machine cannot run: "
                f"its CPU lacks {', '.join(lacking)}; build it for another target"
            )

    def save(self, path: Path | str) -> None:
        """Write the artifact, atomically. Raises OSError naming the path."""
        stored, chunks = _laid_out(self.manifest, self.tensors)
        contents: dict[str, Sequence[Any]] = {
            name: chunks if name == WEIGHTS else [self.members[name]]
            for name in (*MEMBERS, KERNELS)
            if name == WEIGHTS or name in self.members
        }
        members = {
            name: Member(sum(len(memoryview(c)) for c in content), sha256(content))
            for name, content in contents.items()
        }
        manifest = replace(self.manifest, tensors=stored, members=members)
        write(path, manifest.to_json(), contents)


def read(path: Path | str, to_run: bool = True) -> Bundle:
    """An artifact file, checked: version, CPU features (to run it), hashes, weights' places.

    Nothing of it is executed. Raises ArtifactError, or OSError when the file cannot be read.
    """
    try:
        return _read(Path(path), to_run)
    except ArtifactError as e:
        raise type(e)(f"{path}: {e}") from None


def _read(path: Path, to_run: bool) -> Bundle:
    archive = Archive.open(path)
    manifest = from_json(bytes(archive.member(MANIFEST)))
    bundle = Bundle(manifest, {}, {}, path)
    if to_run:
        bundle.require_machine()
    if set(manifest.members) - {KERNELS} != set(MEMBERS):
        raise ArtifactError(f"expected the members {', '.join(MEMBERS)}")
    archive.check(manifest.members)
    weights = np.frombuffer(archive.member(WEIGHTS), dtype=np.uint8)
    tensors = {k: _slice(weights, k, t) for k, t in manifest.tensors.items()}
    _all_stored(manifest)
    members = {name: archive.member(name) for name in manifest.members if name != WEIGHTS}
    return replace(bundle, members=members, tensors=tensors, files=(archive.data,))


def _slice(weights: Bytes, digest: str, stored: Stored) -> Bytes:
    size = math.prod(stored.shape) * numpy_dtype(stored.dtype).itemsize
    end = stored.offset + stored.size
    if size != stored.size or stored.offset % ALIGNMENT or end > len(weights):
        raise ArtifactError(f"weight {digest!r} has no valid place in {WEIGHTS}")
    return weights[stored.offset : end]


def _all_stored(manifest: Manifest) -> None:
    for entry in manifest.entries.values():
        missing = [d for d in (*entry.weights, *entry.initial) if d not in manifest.tensors]
        if missing:
            raise ArtifactError(f"weight {missing[0]!r} is not in {WEIGHTS}")


def _laid_out(
    manifest: Manifest, tensors: Mapping[str, Bytes]
) -> tuple[dict[str, Stored], list[Any]]:
    """The tensors one after the other, aligned, and where each then lies."""
    table: dict[str, Stored] = {}
    chunks: list[Any] = []
    at = 0
    for digest, data in sorted(tensors.items()):
        gap = -at % ALIGNMENT
        chunks += [bytes(gap), data]
        table[digest] = replace(manifest.tensors[digest], offset=at + gap)
        at += gap + data.nbytes
    return table, chunks


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Raises ArtifactError for a name that is no dtype of ours."""
    if name == "bfloat16":
        import ml_dtypes  # apache-tvm depends on it

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    try:
        found = np.dtype(name)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "fiub":
        raise ArtifactError(f"unknown dtype {name!r}")
    return found
