"""Whether a shared object is whole: what the loader maps beyond a file's end ends the process."""

from __future__ import annotations

import struct
from typing import Any

IDENT = b"\x7fELF\x02\x01"  # 64 bits, little-endian: all machines we build for
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr, elf(5)
SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr


def elf_problem(code: Any) -> str | None:
    """Why the bytes are no whole ELF file; None when every part lies within them."""
    data = memoryview(code)
    if len(data) < HEADER.size or bytes(data[: len(IDENT)]) != IDENT:
        return "it is no ELF file of 64 bits"
    fields = HEADER.unpack_from(data)
    segments, sections = fields[5], fields[6]
    segment_size, segment_count, section_size, section_count = fields[9:13]
    if segment_size != SEGMENT.size or segments + segment_size * segment_count > len(data):
        return "its program headers are cut off"
    if sections + section_size * section_count > len(data):
        return "its section headers are cut off"
    for k in range(segment_count):
        _, _, offset, _, _, size, _, _ = SEGMENT.unpack_from(data, segments + k * SEGMENT.size)
        if offset + size > len(data):
            return "a segment of it is cut off"
    return None
