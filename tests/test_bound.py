"""Arrays that ONNX Runtime is bound to once: as if each call had its own."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.run import Run
from cnndeploy.runtimes import Session, _bound, open_session
from helpers import Trained

Arrays = NDArray[np.float32]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls whose arrays were bound, so that a test can tell that it tests them."""
    calls: list[Any] = []
    run = _bound._Arrays.run

    def noted(self: _bound._Arrays, given: NDArray[Any]) -> list[NDArray[Any]]:
        calls.append(given.shape)
        return run(self, given)

    monkeypatch.setattr(_bound._Arrays, "run", noted)
    return calls


@pytest.fixture
def session(trained: Trained) -> Iterator[Session]:
    with open_session(Artifact.open(trained.onnx), Run(threads=1)) as session:
        yield session


def _images(count: int, seed: int) -> Arrays:
    return np.random.default_rng(seed).random((count, 1, 28, 28), np.float32)


def test_every_call_computes_its_own_input(session: Session, bound: list[Any], trained: Trained) -> None:
    drawn = [_images(count, seed) for seed, count in enumerate((1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 2))]
    given = [session.run({"image": images})["logits"] for images in drawn]
    assert bound == [(1, 1, 28, 28), (2, 1, 28, 28), (1, 1, 28, 28), (1, 1, 28, 28)]
    copies = [one.copy() for one in given]
    with open_session(Artifact.open(trained.onnx), Run(threads=1)) as fresh:
        for images, logits, copy in zip(drawn, given, copies, strict=True):
            assert (logits == copy).all()  # no later call wrote into an earlier one's
            assert (fresh.run({"image": images})["logits"] == logits).all()
            assert not np.shares_memory(images, logits)
    given[-1][:] = 0  # the caller's own
    assert (session.run({"image": drawn[-1]})["logits"] == copies[-1]).all()


def test_an_input_of_any_layout_is_copied_right(session: Session, bound: list[Any]) -> None:
    images = _images(1, 0)
    right = [session.run({"image": images})["logits"] for _ in range(3)][-1]
    turned = np.asfortranarray(images)
    strided = np.repeat(images, 2, axis=3)[..., ::2]
    wide = np.broadcast_to(images[:, :, :1], images.shape)
    assert (session.run({"image": turned})["logits"] == right).all()
    assert (session.run({"image": strided})["logits"] == right).all()
    expected = session.run({"image": np.ascontiguousarray(wide)})["logits"]
    assert (session.run({"image": wide})["logits"] == expected).all()
    assert len(bound) == 5


def test_batches_in_turn_do_not_bind_again_and_again(session: Session, bound: list[Any]) -> None:
    for size in (1, 1, *(2, 1) * 4, 2, 2, 2):
        session.run({"image": _images(size, 0)})
    assert [len_ for len_, *_ in bound] == [1] * 4 + [2]


def test_threads_do_not_share_arrays(session: Session, bound: list[Any]) -> None:
    drawn = [_images(1, seed) for seed in range(8)]
    expected = [session.run({"image": images})["logits"] for images in drawn]

    def work(number: int) -> bool:
        runs = (session.run({"image": drawn[number]})["logits"] for _ in range(300))
        return all((logits == expected[number]).all() for logits in runs)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert len(bound) > 2000


def test_a_call_in_the_middle_of_another_does_not_change_its_result(
    session: Session, bound: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler, or a finaliser, runs in the same thread, and may run the same session."""
    images, others = _images(1, 0), _images(1, 1)
    right, other = ([session.run({"image": one})["logits"] for _ in range(3)][-1] for one in (images, others))
    came = []

    class Interrupted:
        """A session that is called again once the input of a call has been copied."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def run_with_iobinding(self, binding: Any) -> None:
            came.append(session.run({"image": others})["logits"])
            self._inner.run_with_iobinding(binding)

    arrays: Any = session._bound._of_thread.arrays  # type: ignore[attr-defined]
    monkeypatch.setattr(arrays, "_session", Interrupted(arrays._session))
    given = session.run({"image": images})["logits"]
    assert (given == right).all()
    assert (came[0] == other).all()
    assert len(came) == 1
    assert (right != other).any()
    assert (session.run({"image": images})["logits"] == right).all()


def test_they_are_released_with_the_session_and_with_their_thread(trained: Trained) -> None:
    session = open_session(Artifact.open(trained.onnx), Run(threads=1))
    images = _images(1, 0)
    alive: list[weakref.ref[Any]] = []
    done = threading.Barrier(2)

    def work() -> None:
        for _ in range(3):
            session.run({"image": images})
        alive.append(weakref.ref(session._bound._of_thread.arrays))  # type: ignore[attr-defined]
        done.wait()
        done.wait()

    ends = threading.Thread(target=work)
    ends.start()
    done.wait()
    done.wait()
    ends.join()
    gc.collect()
    assert alive.pop()() is None
    stays = threading.Thread(target=work)
    stays.start()
    done.wait()
    session.close()
    gc.collect()
    assert alive.pop()() is None  # although the thread has not ended
    with pytest.raises(ArtifactError, match="closed"):
        session.run({"image": images})
    done.wait()
    stays.join()


def test_outputs_whose_shape_depends_on_the_values_are_right(tmp_path: Path, bound: list[Any]) -> None:
    """NonZero gives as many columns as there are values that are not 0."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    onnx.save(model, tmp_path / "nonzero.onnx")
    with open_session(Artifact.open(tmp_path / "nonzero.onnx"), Run(threads=1)) as session:
        for values in ([1, 0, 0, 2], [1, 0, 0, 2], [0, 3, 0, 0], [4, 5, 6, 7], [0, 0, 0, 0], [1, 0, 1, 0]):
            places = session.run({"x": np.array(values, np.float32)})["y"]
            assert places.tolist() == [[place for place, value in enumerate(values) if value]]
    assert len(bound) == 1  # and then no more


def test_an_output_that_is_an_input_is_right(tmp_path: Path, bound: list[Any]) -> None:
    """ONNX Runtime would leave its array unwritten."""
    node = helper.make_node("Neg", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y, x]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    onnx.save(model, tmp_path / "through.onnx")
    with open_session(Artifact.open(tmp_path / "through.onnx"), Run(threads=1)) as session:
        for value in range(5):
            outputs = session.run({"x": np.array([value, 7], np.float32)})
            assert outputs["x"].tolist() == [value, 7]
            assert outputs["y"].tolist() == [-value, -7]
    assert not bound


def test_large_inputs_are_not_copied(trained: Trained, bound: list[Any]) -> None:
    with open_session(Artifact.open(trained.onnx), Run(threads=1)) as session:
        for _ in range(3):
            session.run({"image": _images(32, 0)})
    assert not bound
