"""A handful of test images for a page, with their labels and those that a model gave them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_OF_EACH = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """A raw image, uint8 (height, width), its true label, and the label that it was given."""

    image: NDArray[np.uint8]
    label: str
    given: str


def render_samples(samples: Sequence[Sample]) -> str:
    """Return as HTML the first few that are right, of different labels, and the first few that are wrong."""
    right = {sample.label: sample for sample in reversed(samples) if sample.given == sample.label}
    wrong = [sample for sample in samples if sample.given != sample.label]
    first = [sample for sample in samples if right.get(sample.label) is sample]
    return _row("Labelled right", first[:_OF_EACH]) + _row("Labelled wrong", wrong[:_OF_EACH])


def _row(heading: str, samples: Sequence[Sample]) -> str:
    figures = "".join(map(_figure, samples))
    return f'<h3>{heading}</h3><div class="samples">{figures}</div>' if samples else ""


def _figure(sample: Sample) -> str:
    content = io.BytesIO()
    Image.fromarray(sample.image).save(content, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    label, given = escape(sample.label), escape(sample.given)
    caption = label if label == given else f"{label}<br>taken for {given}"
    return f'<figure><img alt="{label}" src="{source}"><figcaption>{caption}</figcaption></figure>'
