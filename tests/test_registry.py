from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cnndeploy import registry
from cnndeploy.errors import MissingDependencyError, UnknownNameError


def test_names_are_the_files() -> None:
    assert {"alexnet", "googlenet", "lenet", "nin", "vgg11", "vgg11_small"} <= set(
        registry.names("architectures")
    )
    assert {"onnx", "torchscript"} <= set(registry.names("exporters"))
    assert {"eager", "onnxruntime", "torchscript"} <= set(registry.names("runtimes"))
    assert "_torch" not in registry.names("runtimes")


@pytest.mark.parametrize("kind", ["architectures", "exporters", "runtimes", "formats"])
def test_every_name_can_be_had(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        assert registry.get(kind, name) is not None


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown runtime 'onnxrt'.*Did you mean 'onnxruntime'"):
        registry.get("runtimes", "onnxrt")


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
    assert registry.get("runtimes", "theirs") == "theirs"  # type: ignore[comparison-overlap]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, tmp_path, "import no_such_package_here")
    with pytest.raises(MissingDependencyError, match="no_such_package_here"):
        registry.get("runtimes", "theirs")


def test_any_other_import_failure_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, tmp_path, "from json import no_such_name")
    with pytest.raises(ImportError, match="no_such_name"):
        registry.get("runtimes", "theirs")
