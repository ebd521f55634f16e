"""What the head of an executable file says: whose processor it is for, and whether it needs libraries."""

from __future__ import annotations

import struct
from typing import IO

_MACHINES = {62: "amd64", 183: "arm64"}
_PROGRAM_HEADER_INTERPRETER = 3


def architecture(stream: IO[bytes]) -> str:
    """Architecture of an ELF file, empty when it is none; the stream is left at its beginning."""
    head = stream.read(20)
    stream.seek(0)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return ""
    [machine] = struct.unpack("<H", head[18:20])
    return _MACHINES.get(machine, f"ELF machine {machine}")


def is_static(content: bytes) -> bool:
    """Tell whether a 64-bit little-endian ELF file runs without a loader and libraries (elf(5))."""
    if content[:6] != b"\x7fELF\x02\x01" or len(content) < 64:
        return False
    [offset] = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    if size < 4 or offset + size * count > len(content):
        return False
    kinds = [struct.unpack_from("<I", content, offset + number * size)[0] for number in range(count)]
    return _PROGRAM_HEADER_INTERPRETER not in kinds
