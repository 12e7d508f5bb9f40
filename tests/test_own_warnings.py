"""Which warnings reach a terminal: ours and those of the user's code, and not those of installed packages."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from cnndeploy import exporters
from cnndeploy.own_warnings import DEBUG, CnndeployWarning, showing_own
from helpers import RESNET, Trained

PACKAGES = [torch.__file__, np.__file__, json.__file__, exporters.__file__, "<eval_with_key>.1"]


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python itself would show."""
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    return shown


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("debug", [False, True])
def test_packages_are_logged_and_shown_only_for_debugging(
    debug: bool, usual: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if debug:
        monkeypatch.setenv(DEBUG, "1")
    ours: list[Warning] = []
    with showing_own(ours.append), caplog.at_level(logging.DEBUG, "cnndeploy"):
        for number, file in enumerate(PACKAGES):
            warnings.warn_explicit(f"of package {number}", UserWarning, file, 1)
        for _ in range(2):
            warnings.warn_explicit("of the user", UserWarning, "/home/me/mymodel.py", 1)
        warnings.warn_explicit(CnndeployWarning("of ours"), None, torch.__file__, 1)
    of_packages = [f"of package {number}" for number in range(len(PACKAGES))]
    assert usual == [*(of_packages if debug else ()), "of the user"]
    assert [str(warning) for warning in ours] == ["of ours"]
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * (0 if debug else len(PACKAGES))


def test_a_worker_warns_in_our_words_and_of_nothing_else(
    trained_resnet: Trained,
    tmp_path: Path,
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = Path(RESNET.removesuffix(":build")).read_text()
    noisy = "torch.meshgrid(torch.arange(2), torch.arange(2)); print('of the user')"  # of which torch warns
    (tmp_path / "resnet.py").write_text(
        code.replace("    return ResNet(", f"    {noisy}\n    return ResNet(")
    )
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    source = ("--source", tmp_path / "resnet.py:build")
    exported = shutil.copy(trained_resnet.onnx, tmp_path)
    result: Any = cli("verify", exported, "--against", trained_resnet.checkpoint, "--images", 3, *source)
    assert result.exit_code == 0, result.output
    changed = f"Warning: {tmp_path}/resnet.py has changed since {trained_resnet.checkpoint} was made of it\n"
    assert result.stderr == changed
    by_the_worker = capfd.readouterr().err
    assert "of the user" in by_the_worker
    assert "Warning" not in by_the_worker
