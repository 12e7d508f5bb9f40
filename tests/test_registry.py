from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cnndeploy import registry
from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.errors import MissingDependencyError, UnknownNameError
from cnndeploy.exporters import EXPORTERS
from cnndeploy.formats import FORMATS
from cnndeploy.registry import Registry
from cnndeploy.runtimes import RUNTIMES


def test_names_are_the_files() -> None:
    assert {"alexnet", "googlenet", "lenet", "nin", "vgg11", "vgg11_small"} <= set(
        registry.names("architectures")
    )
    assert {"onnx", "torchscript"} <= set(registry.names("exporters"))
    assert {"eager", "onnxruntime", "torchscript"} <= set(registry.names("runtimes"))
    assert "_torch" not in registry.names("runtimes")


@pytest.mark.parametrize(
    "registered", [ARCHITECTURES, EXPORTERS, FORMATS, RUNTIMES], ids=lambda registered: str(registered.kind)
)
def test_every_name_can_be_had(registered: Registry[object]) -> None:
    assert registered.names()
    for name in registered.names():
        assert registered.get(name) is not None


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown runtime 'onnxrt'.*Did you mean 'onnxruntime'"):
        RUNTIMES.get("onnxrt")


def _add(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "third_party_runtime.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "third_party_runtime", raising=False)
    point = EntryPoint("theirs", "third_party_runtime:RUNTIME", "cnndeploy.runtimes")
    monkeypatch.setattr(
        registry, "_entry_points", lambda kind: {"theirs": point} if kind == "runtimes" else {}
    )


def test_a_third_party_adds_a_name_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, tmp_path, "RUNTIME = 'theirs'")
    assert "theirs" in registry.names("runtimes")
    assert RUNTIMES.get("theirs") == "theirs"  # type: ignore[comparison-overlap]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, tmp_path, "import no_such_package_here")
    with pytest.raises(MissingDependencyError, match="no_such_package_here"):
        RUNTIMES.get("theirs")


def test_any_other_import_failure_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, tmp_path, "from json import no_such_name")
    with pytest.raises(ImportError, match="no_such_name"):
        RUNTIMES.get("theirs")
