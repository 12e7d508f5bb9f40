"""What holds for every runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import open_dataset
from cnndeploy.devices import DeviceStatus
from cnndeploy.errors import ArtifactError, DeviceUnavailableError, InputMismatchError
from cnndeploy.formats import FORMATS
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES, Session, open_session
from helpers import EXECUTORCH, Trained, names_of

NAMES = names_of(RUNTIMES)


def _open(trained: Trained, runtime: str, device: str = "cpu") -> Session:
    model_format = RUNTIMES.get(runtime).formats[0]
    return open_session(Artifact.open(trained.file_of(model_format)), Run(runtime, device, threads=1))


def _images(batch: int, trained: Trained) -> NDArray[Any]:
    """Prepared images of the data that the network was trained on, float32 (batch, channels, height, width)."""
    artifact = Artifact.open(trained.checkpoint)
    manifest = artifact.require_manifest()
    test = open_dataset(None, manifest.data, artifact.path).split(
        "test", manifest.preprocessing.channels, manifest.labels
    )
    return test.prepared(range(batch), manifest.preprocessing)


# Every device that works on this machine: the CPU, and where there is one, a GPU.
PLACES = [
    pytest.param(runtime, device, marks=EXECUTORCH if runtime == "executorch" else ())
    for runtime in RUNTIMES.names()
    for device, status in RUNTIMES.get(runtime).devices().items()
    if status.usable
]


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "device"), PLACES)
def test_every_runtime_agrees_with_eager(runtime: str, device: str, network: Trained) -> None:
    """torch.compile takes a quarter of a minute for each size of the deeper network, so it gets one."""
    classes = len(Artifact.open(network.checkpoint).require_manifest().labels)
    with _open(network, runtime, device) as session, _open(network, "eager") as eager:
        for batch in (2,) if runtime == "compiled" else (1, 2, 3, 7):
            feeds = {"image": _images(batch, network)}
            logits = session.run(feeds)["logits"]
            assert logits.shape == (batch, classes)
            assert logits.dtype == np.float32
            assert not np.shares_memory(logits, feeds["image"])
            np.testing.assert_allclose(logits, eager.run(feeds)["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", NAMES)
def test_what_does_not_fit_is_refused(runtime: str, trained: Trained) -> None:
    with _open(trained, runtime) as session:
        expected = r"input 'image': expected float32 \(batch, 1, 28, 28\), got float64 \(8, 28, 28\)"
        with pytest.raises(InputMismatchError, match=expected):
            session.run({"image": np.zeros((8, 28, 28))})
        with pytest.raises(InputMismatchError, match="missing"):
            session.run({"picture": _images(1, trained)})
        with pytest.raises(InputMismatchError, match="picture"):
            session.run({"image": _images(1, trained), "picture": _images(1, trained)})


@pytest.mark.parametrize("runtime", NAMES)
def test_a_closed_session_says_so(runtime: str, trained: Trained) -> None:
    session = _open(trained, runtime)
    session.close()
    session.close()
    with pytest.raises(ArtifactError, match="is closed"):
        session.run({"image": _images(1, trained)})


@pytest.mark.parametrize(("runtime", "device"), PLACES)
def test_everything_is_placed_on_the_device_asked_for(runtime: str, device: str, network: Trained) -> None:
    with _open(network, runtime, device) as session:
        assert session.device == device
        assert set(session.placement().values()) == {session.placed_on}
        assert session.placement()


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("placement", [{}, {"convolution": "elsewhere"}])
def test_what_is_not_seen_to_be_there_is_refused(
    runtime: str, placement: dict[str, str], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(trained, runtime) as session:
        monkeypatch.setattr(type(session), "placement", lambda self: placement)
    with pytest.raises(DeviceUnavailableError, match=r"elsewhere than on cpu|shows no part"):
        _open(trained, runtime)


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "tpu", "cpu:0", " "])
def test_a_device_that_does_not_work_is_an_error(runtime: str, device: str, trained: Trained) -> None:
    devices = RUNTIMES.get(runtime).devices()
    assert devices["cpu"].usable
    name = "cuda:0" if device == "cuda" else device
    if name in devices and devices[name].usable:
        pytest.skip(f"{device} works on this machine")
    with pytest.raises(
        DeviceUnavailableError, match=rf"'{device}' is not available to {runtime}.*Available: cpu"
    ):
        _open(trained, runtime, device)


def test_a_runtime_that_ignores_the_device_is_not_believed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Careless(type(RUNTIMES.get("onnxruntime"))):  # type: ignore[misc]
        def open(self, artifact: Artifact, run: Run) -> Session:
            session: Session = super().open(artifact, replace(run, device="cpu"))
            return session

    careless = Careless()
    monkeypatch.setattr("cnndeploy.runtimes.onnxruntime.RUNTIME", careless)
    for device in ("cuda", "banana"):
        with pytest.raises(DeviceUnavailableError, match=f"'{device}' is not available"):
            _open(trained, "onnxruntime", device)
    careless.status = lambda device: DeviceStatus(True)
    with pytest.raises(DeviceUnavailableError, match="elsewhere than on cuda"):
        _open(trained, "onnxruntime", "cuda")

    def claims_the_device(artifact: Artifact, run: Run) -> Session:
        session: Session = Careless.open(careless, artifact, run)
        session.run_as, session.device = run, run.device
        return session

    monkeypatch.setattr(
        careless, "open", claims_the_device
    )  # and yet its parts are on the CPU, where it says they belong
    with pytest.raises(DeviceUnavailableError, match="elsewhere than on cuda"):
        _open(trained, "onnxruntime", "cuda")


def test_the_default_runtime_of_every_format_opens_it() -> None:
    for name in FORMATS.names():
        assert name in RUNTIMES.get(FORMATS.get(name).default_runtime).formats


@pytest.mark.parametrize("runtime", NAMES)
def test_a_format_it_does_not_open_is_refused(runtime: str, trained: Trained) -> None:
    own = RUNTIMES.get(runtime).formats
    other = next(name for name in ("checkpoint", "onnx") if name not in own)
    with pytest.raises(ArtifactError, match=f"opens {', '.join(own)}, but .* is an? .*Use the runtime"):
        open_session(Artifact.open(trained.file_of(other)), Run(runtime))
