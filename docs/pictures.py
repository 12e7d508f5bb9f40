"""Make the pictures in docs/ again: the top of the demo's report, a page of bench, and the plot of a tuning.

Runs the commands that they show, some ten minutes in all, and keeps what they write in the given folder; a second run
uses what is there. Measure on a machine that does nothing else.

    .venv/bin/python docs/pictures.py build/pictures
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from cnndeploy.files import make_folder, write_file

DOCS = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COLOURS = 128  # keep a picture small


def main(folder: Path) -> None:
    if CHROMIUM is None:
        sys.exit("The pictures need a browser: apt-get install chromium")
    make_folder(folder)
    checkpoint, deployment = folder / "lenet.pt", folder / "lenet.deploy"
    onnx, int8 = folder / "lenet.onnx", folder / "lenet.int8.onnx"
    report, page = folder / "report.html", folder / "bench.html"
    _run(
        folder / "bench.json", "demo", "--output", folder
    )  # its report is there, unfinished, from the beginning
    _run(int8, "quantize", checkpoint, "--output", int8)
    _run(page, "bench", checkpoint, onnx, int8, "--batch-size", "1,64", "--html", page)
    _run(deployment, "tune", checkpoint, "--output", deployment)
    _write("report.png", _screenshot(report, height=1400))
    _write("bench.png", _screenshot(page, height=1400))
    _write("tune.png", Image.open(deployment / "frontier.png"))


def _run(result: Path, *arguments: object) -> None:
    """Run a command of cnndeploy, unless its result is there."""
    if not result.exists():
        subprocess.run([sys.executable, "-m", "cnndeploy", *map(str, arguments)], check=True)  # noqa: S603


def _screenshot(page: Path, height: int) -> Image.Image:
    """Return the top of a page on a wide screen, in its light colours."""
    target, profile = page.with_suffix(".png"), page.with_name("profile")
    look = ("--blink-settings=preferredColorScheme=1", "--hide-scrollbars", f"--window-size=1280,{height}")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *look)
    subprocess.run(  # noqa: S603
        [str(CHROMIUM), *options, f"--screenshot={target}", page.resolve().as_uri()],
        check=True,
        capture_output=True,
    )
    return Image.open(target)


def _write(name: str, picture: Image.Image) -> None:
    content = io.BytesIO()
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    write_file(DOCS / name, content.getvalue())
    sys.stdout.write(f"Wrote {DOCS / name}, {len(content.getvalue()) / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
