"""What a file is that bears another's name: told by its first bytes, for messages."""

from __future__ import annotations

import zipfile
from pathlib import Path

HEAD = 512  # so many bytes tell
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "compressed by gzip. Unpack it first"),
    (b"BZh", "compressed by bzip2. Unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz. Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd. Unpack it first"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes it. Write the network as ONNX where it was trained"),
    (b"\x93NUMPY", "an array of NumPy"),
)
_AT_FOUR: tuple[tuple[bytes, str], ...] = (
    (b"TFL3", "a TensorFlow Lite file. Write the network as ONNX where it was trained"),
    (b"ORTM", "a file in ONNX Runtime's own format. Use the ONNX file that it was made of"),
)
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER, pickled
_IMPORT = "make a checkpoint of it with: cnndeploy import NETWORK --weights"


def stand_in(head: bytes) -> str:
    """Say what a failed download left in a file's place, to follow "is"; empty if it is nothing known."""
    if head.startswith(
        (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
    ):
        return (
            "a pointer of Git LFS, and not the file itself. Fetch the file with: git lfs pull, or download it from the "
            "repository's own link"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, as a download returns if its link leads to a page. Download the file itself"
    if text.startswith(b"<?xml") and b"<net " in text:
        return "OpenVINO's own format. Use the ONNX file that it was made of"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML document, perhaps a server's message about a failed download. Download it again"
    if text.startswith((b'{"', b"{\r", b"{\n", b"[")):
        return "a JSON document, perhaps a server's message about a failed download"
    return ""


def kind_of(path: Path) -> str:
    """Say what a file is and what to do about it, to follow "is"; empty if it is not known."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    starts = (kind for start, kind in _STARTS if head.startswith(start))
    inner = (kind for start, kind in _AT_FOUR if head[4:8] == start)
    return stand_in(head) or next(starts, "") or next(inner, "") or _kind_of_weights(head, path)


def _kind_of_weights(head: bytes, path: Path) -> str:
    if head[:1] == b"\x80" and head[2:].startswith(_TORCH_LEGACY):
        return f"in the format of torch.save before torch 1.6; if it holds weights, {_IMPORT} {path}"
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a pickle, which is a program and is not opened. Save the weights with: torch.save"
    # safetensors: the length of a JSON header, and the header
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return f"a file of safetensors: it holds weights alone; {_IMPORT} {path}"
    if head[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        return "a zip archive that torch did not write. If a model is in it, unpack it first"
    return ""
