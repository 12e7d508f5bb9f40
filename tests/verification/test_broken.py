"""The check is checked: every broken artifact is rejected, with a reason that names its defect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import broken_images  # noqa: F401 - they join the others
import pytest
from broken import DEFECTS, Defect, good_files, importable

from cnndeploy.verification.reference import Reference
from helpers import Once, Trained

IMAGES = 9
FORMATS = ("onnx", "torchscript")
FAST = {(name, "lenet") for name in ("labels permuted", "batch axis fixed")}


@pytest.fixture(scope="session")
def good(once: Once) -> Callable[[str], Trained]:
    def files(architecture: str) -> Trained:
        folder = once(f"good-{architecture}", lambda folder: good_files(architecture, 0, folder, FORMATS))
        return Trained(*(folder / f"{architecture}-0.{suffix}" for suffix in ("pt", *FORMATS)))

    return cache(files)


@pytest.fixture(scope="session")
def reference(good: Callable[[str], Trained]) -> Iterator[Callable[[str], Reference]]:
    """Each checkpoint runs once, however many files are compared with it."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(Reference(good(name).checkpoint)))


@pytest.mark.parametrize(
    ("defect", "architecture"),
    [
        pytest.param(
            defect,
            architecture,
            id=f"{defect.name}, {defect.format}, {architecture}",
            marks=() if (defect.name, architecture) in FAST else pytest.mark.slow,
        )
        for defect in DEFECTS
        for architecture in defect.architectures
    ],
)
def test_a_broken_artifact_is_rejected(
    defect: Defect,
    architecture: str,
    good: Callable[[str], Trained],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    with importable(tmp_path):
        outcome = defect.outcome(good(architecture), tmp_path, IMAGES, reference(architecture))
    assert outcome.named, outcome.reasons
