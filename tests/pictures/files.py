"""Files of pictures as tests need them: saved by Pillow, and byte by byte where Pillow writes none."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

_SHORT, _LONG = 3, 4  # TIFF's names of 2 and 4 bytes


def encoded(picture: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """``picture``, or an array as Pillow's mode for it, as the bytes of a file."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, depth: int, kind: int, row: bytes, *, transparent: bytes = b"") -> bytes:
    """A PNG of one row: its bits per sample, its colour type (0 grey, 2 RGB), its transparent colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    hidden = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + hidden + data + chunk(b"IEND", b"")


def tiff(width: int, height: int, data: bytes, *, bits: int = 8, **tags: int) -> bytes:
    """A grey TIFF of one strip, or of one tile of the side ``tile``, in little-endian order."""
    fields = {256: width, 257: height, 258: bits, 259: tags.get("compression", 1), 262: tags.get("black", 1)}
    if tile := tags.get("tile"):
        fields |= {277: 1, 322: tile, 323: tile, 324: 0, 325: len(data)}
    else:
        fields |= {273: 0, 277: 1, 278: height, 279: len(data)}
    at = 8 + 2 + 12 * len(fields) + 4
    entries = [
        struct.pack("<HHII", tag, _LONG, 1, at if tag in {273, 324} else value)
        if value > 65_535 or tag in {273, 324}
        else struct.pack("<HHIHH", tag, _SHORT, 1, value, 0)
        for tag, value in fields.items()
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(entries) + bytes(4) + data
