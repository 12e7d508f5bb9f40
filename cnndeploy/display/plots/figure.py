"""A figure that stands in a page, in the page's colours, or in a file, with a title and what it was measured on."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#3b6fd4", "#d9822b", "#2f9e6e", "#b0509c", "#8a7a2f", "#4aa3b5", "#c4473d", "#7d6bd1")
FONT_SIZE = 11.0
# A telephone shows a figure of this width at its own size, so that a point is about a pixel there.
_WIDTH_IN = 5.4
_SMALL, _SMALL_LINE_IN, _LETTERS_IN_A_LINE = 8.0, 0.16, 84
_TITLE_IN = 0.35
_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "cnndeploy")
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


class Plot:
    """What ``draw`` draws into a figure; ``title`` and ``note`` say in words what it shows, ``context`` of what."""

    def __init__(
        self, title: str, note: str, draw: Callable[[Figure], None], *, height: float, context: str
    ) -> None:
        self.title = title
        self.note = note
        self.context = context
        self._draw = draw
        self._height = height

    def png(self) -> bytes:
        """Return an image on white, with its title and context."""
        return self._saved("png", with_context=True, dpi=150)

    def svg(self) -> bytes:
        """Return an SVG file on white, with its title and context."""
        return self._saved("svg", with_context=True)

    def inline(self) -> str:
        """Return SVG to stand in a page, in its colours and below its headings; it names nothing outside the page."""
        text = self._saved("svg", with_context=False, transparent=True).decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        head, _, rest = text.partition(">")
        head = re.sub(r' (xmlns(:\w+)?|width|height)="[^"]*"', "", head)
        return f"{head}>{rest}".replace(INK, "currentColor").replace("xlink:href", "href")

    def _saved(self, kind: str, *, with_context: bool, **settings: Any) -> bytes:
        content = io.BytesIO()
        # the salt makes the names of clip paths differ between the plots of a page
        with mpl.rc_context({**_STYLE, "svg.hashsalt": self.title}):
            metadata = {"Date": None} if kind == "svg" else None
            self._figure(with_context).savefig(content, format=kind, metadata=metadata, **settings)
        return content.getvalue()

    def _figure(self, with_context: bool) -> Figure:
        lines = [
            line
            for text in (self.note, self.context)
            for line in textwrap.wrap(text, _LETTERS_IN_A_LINE, break_on_hyphens=False)
        ]
        extra = _TITLE_IN + _SMALL_LINE_IN * len(lines) if with_context else 0.0
        figure = Figure(figsize=(_WIDTH_IN, self._height + extra), layout="constrained")
        if with_context:
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=_SMALL, alpha=0.75)
        self._draw(figure)
        return figure


def machine_context(environment: Mapping[str, Any], *facts: str) -> str:
    """Return in one line the machine, the versions of what ran on it, and what else the reader of a file must know."""
    versions = environment.get("versions", {})
    libraries = (f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
    cpus = f"{environment['usable_cpus']} CPUs" if "usable_cpus" in environment else ""
    machine = filter(None, (environment.get("cpu"), cpus, *environment.get("gpus", ())))
    return "; ".join(filter(None, (*facts, ", ".join(machine), ", ".join(libraries))))
