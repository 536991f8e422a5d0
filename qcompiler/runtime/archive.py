"""The zip layer: members stored as they are, aligned, and every byte accounted for by a hash.

The archive's comment holds the SHA-256 of the frame: all bytes of the file except the comment
itself and the members other than the manifest, whose hashes the manifest has. So no byte can
change unnoticed. Members are stored uncompressed, which lets weights be mapped into memory.
"""

from __future__ import annotations

import hashlib
import mmap
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qcompiler.atomic import replacing
from qcompiler.runtime.errors import ArtifactError
from qcompiler.runtime.manifest import ALIGNMENT, Member
from qcompiler.runtime.pages import in_huge_pages

MANIFEST = "manifest.json"
MEMBERS_MAX = 64
"""Far above what an artifact has; more is an attempt to waste time."""
COMMENT = b"qcompiler sha256="
COMMENT_SIZE = len(COMMENT) + 64
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
EXTRA_ID = 0xD935  # an extra field of padding, the number that Android's zipalign uses
ZIP64_EXTRA = 20  # bytes that zipfile puts before ours into the header of a huge member
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that zip can say: equal contents, equal files

Chunk = Any
"""Anything with the buffer protocol."""


def write(path: Path | str, manifest: str, members: Mapping[str, Sequence[Chunk]]) -> None:
    """Write the archive, atomically. Raises OSError naming `path`."""
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = COMMENT + b"0" * 64
            _add(archive, file, MANIFEST, [manifest.encode()])
            for name, chunks in members.items():
                _add(archive, file, name, chunks)
        file.flush()
        archive = _parsed(file)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            regions = _regions(archive, data)
            digest = _frame(data, [regions[name] for name in members])
        file.seek(-64, 2)
        file.write(digest.encode())


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, chunks: Sequence[Chunk]) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = sum(memoryview(c).nbytes for c in chunks)
    huge = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule
    start = file.tell() + LOCAL_HEADER.size + len(name.encode()) + 4 + ZIP64_EXTRA * huge
    gap = -start % ALIGNMENT
    info.extra = struct.pack("<HH", EXTRA_ID, gap) + bytes(gap)
    with archive.open(info, "w") as out:
        for chunk in chunks:
            out.write(memoryview(chunk).cast("B"))


@dataclass(frozen=True)
class Archive:
    """A mapped file: writing to the map changes a private copy of the page, never the file."""

    data: mmap.mmap
    regions: Mapping[str, slice]

    @staticmethod
    def open(path: Path | str) -> Archive:
        """Raises ArtifactError for what is no archive of ours, OSError when it cannot be read."""
        path = Path(path)
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size == 0:
            raise ArtifactError("expected a .qcm artifact, got an empty or no plain file")
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            in_huge_pages(data, 0, len(data))
            regions = _regions(_parsed(file), data)
        return Archive(data, regions)

    def member(self, name: str) -> memoryview:
        if name not in self.regions:
            raise ArtifactError(f"it has no {name!r}")
        return memoryview(self.data)[self.regions[name]]

    def check(self, members: Mapping[str, Member]) -> None:
        """Raises ArtifactError unless all bytes are those that were written."""
        if set(self.regions) != {MANIFEST, *members}:
            found = ", ".join(map(repr, sorted(set(self.regions) ^ {MANIFEST, *members})))
            raise ArtifactError(f"its members differ from its manifest: {found}")
        if bytes(self.data[-COMMENT_SIZE:]) != COMMENT + self.frame().encode():
            raise ArtifactError(f"it was damaged or changed (hash of {MANIFEST})")
        for name, member in members.items():
            content = self.member(name)
            if len(content) != member.size or sha256([content]) != member.sha256:
                raise ArtifactError(f"it was damaged or changed (hash of {name})")

    def frame(self) -> str:
        return _frame(self.data, [r for name, r in self.regions.items() if name != MANIFEST])


def _frame(data: mmap.mmap, hidden: Iterable[slice]) -> str:
    """The hash of all bytes before the comment that no hidden region holds."""
    digest, at = hashlib.sha256(), 0
    for region in sorted(hidden, key=lambda r: int(r.start)):
        digest.update(data[at : region.start])
        at = max(at, region.stop)
    digest.update(data[at : len(data) - COMMENT_SIZE])
    return digest.hexdigest()


def _parsed(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except Exception:  # zipfile raises a dozen kinds on damaged files
        raise ArtifactError("expected a .qcm artifact; it is none, or it was cut off") from None


def _regions(archive: zipfile.ZipFile, data: mmap.mmap) -> dict[str, slice]:
    """Where the members' contents lie. They must be plain files, stored, and not overlap."""
    infos = archive.infolist()
    if len(infos) > MEMBERS_MAX or len({i.filename for i in infos}) != len(infos):
        raise ArtifactError(f"expected at most {MEMBERS_MAX} members with names of their own")
    regions: dict[str, slice] = {}
    free = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ArtifactError(f"member {name!r} is compressed or encrypted, expected stored")
        if info.header_offset < free or info.header_offset + LOCAL_HEADER.size > len(data):
            raise ArtifactError(f"member {name!r} lies outside the file or over another one")
        header = LOCAL_HEADER.unpack_from(data, info.header_offset)
        start = info.header_offset + LOCAL_HEADER.size + header[-2] + header[-1]
        free = start + info.file_size
        if header[0] != zipfile.stringFileHeader or free > len(data):  # type: ignore[attr-defined]
            raise ArtifactError(f"member {name!r} is damaged or cut off")
        regions[name] = slice(start, free)
    return regions


def sha256(chunks: Sequence[Chunk]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(memoryview(chunk).cast("B"))
    return digest.hexdigest()
