"""Resource bombs: small files that ask for far more memory or time than any classifier needs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch

_CLASSIFIER = """
<ir_version: 8, opset_import: ["": 17 %s]>
bomb (float[batch, 1, 28, 28] image) => (float[batch, 10] logits)
<
  float[10] ten = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, float zero = {0}, float one = {1}, float many = {4294967296},
  float[1] value = {1}, float[2] values = {0, 1}, float[4] scales = {1, 1, 65536, 65536}, int64 depth = {4294967296},
  int64[1] size = {4294967296}, int64[2] times = {1, 4294967296}, int64[4] sizes = {1, 1, 65536, 65536},
  int64[4] pads = {0, 0, 0, 4294967296}, int64[1] place = {0}, bool on = {1}
>
{
  mean = GlobalAveragePool(image)
  flat = Flatten(mean)
  %s
  small = ReduceMax<keepdims = 0>(big)
  wide = Add(flat, ten)
  logits = Add(wide, small)
}
%s
"""
_NODES = {
    "range": "big = Range(zero, many, one)",
    "constant-of-shape": "big = ConstantOfShape(size)",
    "a-constant-node": "own = Constant<value = int64[1] {4294967296}>() big = ConstantOfShape(own)",
    "expand": "big = Expand(value, size)",
    "tile": "big = Tile(flat, times)",
    "resize-to-sizes": 'big = Resize(mean, "", "", sizes)',
    "resize-by-scales": 'big = Resize(mean, "", scales)',
    "pad": "big = Pad(flat, pads)",
    "one-hot": "big = OneHot(place, depth, values)",
    "random": "big = RandomNormal<shape = [4294967296]>()",
    "in-a-branch": """big = If(on) <
    then_branch = a () => (float[n] x) { own = Constant<value = int64[1] {4294967296}>() x = ConstantOfShape(own) },
    else_branch = b () => (float[n] y) { y = Identity(value) }>""",
}


def models() -> Mapping[str, Callable[[], bytes]]:
    """Return ONNX files by name; what each asks for is told by its constants and its structure."""
    sized = {name: lambda nodes=nodes: _model(nodes) for name, nodes in _NODES.items()}
    return {
        **sized,
        "functions-in-a-circle": lambda: _calling(_function("a", "b") + _function("b", "a"), "a"),
        "functions-in-powers": lambda: _calling(
            "".join(map(_doubling, range(20))) + _function("f20", "f21"), "f0"
        ),
        "a-chain": lambda: _with_graph(b"".join(map(_link, range(60_000)))),
        "graphs-in-graphs": lambda: _with_graph(_nested(10_000)),
        "a-long-manifest": lambda: _with_manifest(json.dumps({"labels": "x" * 10**8})),
    }


def _model(nodes: str, functions: str = "") -> bytes:
    domain = ', "own": 1' if functions else ""
    content: bytes = onnx.parser.parse_model(_CLASSIFIER % (domain, nodes, functions)).SerializeToString()
    return content


def _calling(functions: str, name: str) -> bytes:
    return _model(f"big = own.{name}(flat)", functions)


def _doubling(number: int) -> str:
    return _function(f"f{number}", *[f"f{number + 1}"] * 2)


def _function(name: str, *called: str) -> str:
    body = "\n".join(f"x{n + 1} = own.{one}(x{n})" for n, one in enumerate(called))
    head = '<domain: "own", opset_import: ["": 17, "own": 1]>'
    return f"\n{head} {name} (x0) => (x{len(called)}) {{ {body} }}"


def _link(number: int) -> bytes:
    given, returned = b"y%d" % number, b"y%d" % (number + 1)
    return _field(1, _field(1, given) + _field(2, returned) + _field(4, b"Neg"))


def _nested(depth: int) -> bytes:
    """Return the node If, with a graph in its branch that has a node If, and so on."""
    node = b""
    for _ in range(depth):
        graph = node + _field(2, b"g")
        node = _field(
            1, _field(2, b"x") + _field(4, b"If") + _field(5, _field(1, b"then_branch") + _field(6, graph))
        )
    return node


def _with_graph(more: bytes) -> bytes:
    """Return a model with more fields in its graph."""
    model = onnx.load_from_string(_model("big = Identity(flat)"))
    graph = model.graph.SerializeToString() + more
    model.ClearField("graph")
    content: bytes = model.SerializeToString()
    return content + _field(7, graph)


def _with_manifest(text: str) -> bytes:
    entry = _field(1, b"cnndeploy.manifest") + _field(2, text.encode())
    return _model("big = Identity(flat)") + _field(14, entry)


def outside(location: str) -> bytes:
    """Return a model with weights in another file."""
    model = onnx.load_from_string(_model("big = Identity(flat)"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    content: bytes = model.SerializeToString()
    return content


def _field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def archives(sound: Path) -> Mapping[str, Callable[[], bytes]]:
    """Return checkpoints by name, made of a ``sound`` one."""
    one = torch.zeros(1)

    def saved(*more: tuple[str, torch.Tensor]) -> bytes:
        content, buffer = torch.load(sound, weights_only=True), io.BytesIO()
        content["weights"].update(more)
        torch.save(content, buffer)
        return buffer.getvalue()

    return {
        "unpacks-to-10-gb": lambda: unpacking(sound),
        "very-many-tensors": lambda: _with_members(
            sound, {}, b"\x80\x02}(" + b"X\3\0\0\0w00N" * 10**6 + b"u."
        ),
        "very-many-members": lambda: _with_members(
            sound, {f"data/x{number}": b"" for number in range(10_001)}
        ),
        "elements-that-share-memory": lambda: saved(("features.0.weight", one.expand(10**12))),
        "a-deep-pickle": lambda: _with_members(sound, {}, b"\x80\x02)" + b"\x85" * 10**6 + b"."),
        "a-long-manifest": lambda: _with_members(sound, {}, pickle.dumps({"manifest": "x" * 10**7}, 2)),
    }


def _with_members(sound: Path, more: Mapping[str, bytes], pickled: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(buffer, "w") as new:
        folder = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            is_replaced = pickled is not None and name.endswith("/data.pkl")
            new.writestr(name, pickled if is_replaced and pickled is not None else old.read(name))
        for name, content in more.items():
            new.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


def unpacking(sound: Path, size: int = 10**10) -> bytes:
    """Return an archive with a member that says to have so many bytes; fewer are in it, to be quick."""
    buffer = io.BytesIO(_with_members(sound, {"extra/x": b"x"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.infolist()[-1].file_size = size
        archive.writestr("end", b"")  # this makes zipfile write the list of members again
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(side: int, content: bytes, more: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _gif(side: int, frames: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04\0\0\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def _tiff(side: int) -> bytes:
    size = (
        (256, side),
        (257, side),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, side),
        (279, 100),
    )
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in size)
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(size)) + tags + bytes(4)


def _jpeg(side: int, scans: int = 1) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, "JPEG", progressive=True)
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\xc2") + 5
    content[place : place + 4] = struct.pack(">HH", side, side)
    last = content.rindex(b"\xff\xda")
    return bytes(content[:last] + content[last:-2] * scans + content[-2:])


def _webp(side: int) -> bytes:
    size = struct.pack("<I", (side - 1) | (side - 1) << 14)
    data = b"\x2f" + size + bytes(8)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def pictures() -> Mapping[str, bytes]:
    """Return pictures by file name that are to be refused."""
    side = 65_535
    bmp = struct.pack("<2sIII", b"BM", 154, 0, 54) + struct.pack("<IiiHH", 40, side, side, 1, 24) + bytes(124)
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    return {
        "claims.png": _png(side, zlib.compress(bytes(10**6))),
        "claims.bmp": bmp,
        "claims.gif": _gif(side, 1),
        "claims.tiff": _tiff(side),
        "claims.jpg": _jpeg(side),
        "claims.webp": _webp(16_383),
        "claims.pgm": b"P5 65535 65535 255\n" + bytes(100),
        "text.png": _png(28, zlib.compress(bytes(29 * 28)), text),
        "scans.jpg": _jpeg(8192, 1000),
    }


def animation() -> bytes:
    """Return a GIF of very many frames, of which only the first is read."""
    return _gif(28, 100_000)
