"""Why a file is not decoded, said for people."""

from __future__ import annotations

from collections.abc import Sequence

CUT_OFF = "cut off: the file ends before the picture does"

# How other things that people keep among their pictures begin.
_FOREIGN = (
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftyp", "a video"),
)
_SIGNATURES = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WebP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)


def why_unidentified(data: bytes, formats: Sequence[str]) -> str:
    """The reason for a file that is none of `formats`, as far as its first bytes tell what it is."""
    for offset, signature, what in _FOREIGN:
        if data.startswith(signature, offset):
            return f"{what}; supported are {', '.join(formats)}"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return f"it begins like a {name} picture, but is cut off, damaged or of an unsupported kind"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page, not a picture"
    if start.startswith((b"<svg", b"<?xml")):
        return f"an SVG or XML document; supported are {', '.join(formats)}"
    n_ascii = sum(byte < 128 for byte in start)
    if 2 * n_ascii > len(start) and all(byte in b"\t\r\n\f" or byte >= 32 for byte in start):
        return "text, not a picture"
    return f"not a picture of a supported format ({', '.join(formats)})"


def why_broken(error: Exception, data: bytes) -> str:
    """The reason for a picture at which Pillow raised `error`."""
    message = str(error) or type(error).__name__
    webp_bytes = 8 + int.from_bytes(data[4:8], "little") if data.startswith(b"RIFF") else 0
    if isinstance(error, EOFError) or "truncated" in message.lower() or webp_bytes > len(data):
        return CUT_OFF
    return f"damaged ({message})"
