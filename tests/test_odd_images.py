"""Pictures as they are found: transparent, of 16 bits, with a broken EXIF, under other suffixes."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageOps

import cnndeploy
from cnndeploy.errors import DataError
from cnndeploy.images import other_suffixes, suffixes
from helpers import Trained

Cli = Callable[..., Result]


def _encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _drawn(level: int, ground: int = 0) -> bytes:
    pixels = np.full((28, 28, 4), level, np.uint8)
    pixels[..., 3] = ground
    pixels[6:22, 8:20, 3] = 255
    return _encoded(Image.fromarray(pixels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_dark_drawing_on_a_transparent_ground_is_refused(channels: int) -> None:
    for level in (0, 9):
        with pytest.raises(DataError, match=r"dark on a transparent ground.*on white first"):
            cnndeploy.read_image(_drawn(level), channels)
    assert cnndeploy.read_image(_drawn(230), channels).max() == 230
    assert cnndeploy.read_image(_drawn(0, ground=255), channels).max() == 0  # nothing is transparent
    assert cnndeploy.read_image(_encoded(Image.new("RGBA", (4, 4))), channels).max() == 0  # an empty picture


def test_an_alpha_channel_of_zeros_is_refused() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 4), np.uint8)
    pixels[..., 3] = 0
    with pytest.raises(DataError, match="all of the image is transparent"):
        cnndeploy.read_image(_encoded(Image.fromarray(pixels)))


def test_colours_of_16_bits_are_refused_as_grey_levels_are() -> None:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = (b"\0" + bytes(range(12))) * 2
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        cnndeploy.read_image(png, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_read_and_lab_is_refused(mode: str) -> None:
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode)
    assert cnndeploy.read_image(_encoded(image, kind)).shape == (4, 5)
    lab = Image.new("LAB", (5, 4))
    with pytest.raises(DataError, match="colours of Lab; convert it to RGB"):
        cnndeploy.read_image(_encoded(lab, "TIFF"))


TIFF = b"II*\0\x08\0\0\0"
TURN = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("payload", "shape"),
    [
        (b"Exif\0\0" + TIFF + b"\1\0" + TURN + bytes(4), (20, 40)),
        (
            b"Exif\0\0" + TIFF + b"\2\0" + TURN + struct.pack("<HHII", 0x11A, 5, 1, 38) + bytes(12),
            (20, 40),
        ),
        (b"Exif\0\0" + TIFF + b"\5\0" + TURN[:6], (40, 20)),
        (b"Exif\0\0http://ns.adobe.com/", (40, 20)),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_what_is_wrong_in_exif_costs_nothing(
    payload: bytes, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("as in Pillow 11.0")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    jpeg = _encoded(Image.new("L", (20, 40), 99), "JPEG")
    photo = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]
    assert cnndeploy.read_image(photo).shape == shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation: int) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.array_equal(cnndeploy.read_image(buffer.getvalue()), expected)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html>", "a web page"),
    ],
)
def test_what_a_failed_download_left_is_named(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, tmp_path / "a.png"):
        with pytest.raises(DataError, match=kind):
            cnndeploy.read_image(source)


def test_a_cut_file_is_refused() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    jpeg = _encoded(Image.fromarray(pixels), "JPEG")
    for cut in (jpeg[: len(jpeg) // 2], jpeg[:-2]):
        with pytest.raises(DataError, match="truncated"):
            cnndeploy.read_image(cut)


def test_suffixes_that_are_read_and_those_that_are_passed_over(
    cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    assert not suffixes() & other_suffixes()
    jpeg = _encoded(Image.new("L", (28, 28), 99), "JPEG")
    for name in ("a.jpg", "b.jfif", "c.JPE"):
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / "e.cr2").write_bytes(b"x")
    (tmp_path / "._a.heic").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    result = cli("predict", trained.onnx, tmp_path)
    assert result.exit_code == 0
    assert [Path(line.partition(":")[0]).name for line in result.stdout.splitlines()] == [
        "a.jpg",
        "b.jfif",
        "c.JPE",
    ]
    assert "1 picture passed over, of kinds that are not read: .cr2 1" in result.stderr


@pytest.mark.parametrize("pattern", ["shoes [1]/*.png", "shoes [1]/shoe[1].png", "shoes [1]", "shoes*/*.png"])
def test_a_folder_with_brackets_is_meant_as_itself(
    pattern: str, cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shoes [1]").mkdir()
    Image.new("L", (28, 28), 99).save("shoes [1]/shoe[1].png")
    result = cli("predict", trained.onnx, pattern)
    assert result.exit_code == 0, result.stderr
    assert os.path.join("shoes [1]", "shoe[1].png") in result.stdout  # noqa: PTH118
