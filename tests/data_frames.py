"""Readers of recorded frames."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import zstandard


def unpack_zstd(path: Path) -> bytes:
    """Return a zstandard file's content."""
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()


def split_frames(raw: bytes, length_format: str) -> list[bytes]:
    """Return the frames of a recording in which each follows its 4-byte length."""
    frames = []
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from(length_format, raw, position)
        frames.append(raw[position + 4 : position + 4 + length])
        position += 4 + length
    return frames


def corpus_frames(folder: Path) -> list[bytes]:
    """Return the window of real relay frames."""
    return split_frames(unpack_zstd(folder / "frames.bin.zst"), "<I")


def corpus_documents(folder: Path) -> dict[str, Any]:
    """Return the DID documents of the window's accounts."""
    documents: dict[str, Any] = json.loads(unpack_zstd(folder / "did_docs.json.zst"))
    return documents
