"""cnndeploy serve, by stock tritonclient and over real sockets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import cnndeploy
from cnndeploy.errors import ArtifactError, ServingError
from cnndeploy.serving import server as server_module
from helpers import Trained

WHY = "the extra serve is not installed; it would run this"
pytest.importorskip("uvicorn", reason=WHY)
grpcclient: Any = pytest.importorskip("tritonclient.grpc", reason=WHY)
httpclient: Any = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.field]

IMAGES = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
RAW = np.random.default_rng(1).integers(0, 256, (2, 40, 32), np.uint8)


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    rest: str
    grpc: str

    def get(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Return the status and body of a request, a POST if it has a body."""
        request = urllib.request.Request(f"http://{self.rest}/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - our own server
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def error(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Return the status of a request that fails, and the message."""
        status, content = self.get(path, body, **headers)
        return status, json.loads(content)["error"]


@contextlib.contextmanager
def serving(*models: object, options: tuple[object, ...] = ("--unverified",)) -> Iterator[Running]:
    command = [sys.executable, "-m", "cnndeploy", "serve", *models, "--port", 0, "--grpc-port", 0, *options]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = ""
            while "Ready." not in lines:
                line = process.stdout.readline()
                assert line, f"it ended: {lines}"
                lines += line
            rest, grpc = re.search(r"http://(.*)/v2", lines), re.search(r"gRPC on (.*)", lines)
            assert rest is not None
            yield Running(process, rest[1], grpc[1] if grpc else "")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[Running]:
    with serving(
        trained.onnx, f"raw={trained.onnx_image}", options=("--unverified", "--max-body", 1)
    ) as running:
        yield running


@pytest.fixture
def rest(server: Running) -> Iterator[Any]:
    with contextlib.closing(httpclient.InferenceServerClient(server.rest)) as client:
        yield client


@pytest.fixture
def grpc(server: Running) -> Iterator[Any]:
    with contextlib.closing(grpcclient.InferenceServerClient(server.grpc)) as client:
        yield client


def expected(path: Path, images: NDArray[Any]) -> NDArray[np.float32]:
    with cnndeploy.load(path) as model:
        (spec,) = model.session.inputs
        logits: NDArray[np.float32] = model.session.run({spec.name: images})["logits"]
        return logits


def tensor(library: Any, images: NDArray[Any], **settings: Any) -> Any:
    given = library.InferInput("image", list(images.shape), "FP32" if images.dtype == np.float32 else "UINT8")
    given.set_data_from_numpy(images, **settings)
    return given


@pytest.mark.parametrize("client", ["rest", "grpc"])
def test_health_metadata_index_and_statistics(client: str, request: pytest.FixtureRequest) -> None:
    triton = request.getfixturevalue(client)
    as_json = {} if client == "rest" else {"as_json": True}
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("lenet")
    assert triton.is_model_ready("lenet", "1")
    assert triton.get_server_metadata(**as_json)["name"] == "cnndeploy"
    told = triton.get_model_metadata("lenet", **as_json)
    (given,), (output,) = told["inputs"], told["outputs"]
    assert (given["name"], given["datatype"], list(map(int, given["shape"]))) == (
        "image",
        "FP32",
        [-1, 1, 28, 28],
    )
    assert (output["name"], output["datatype"], list(map(int, output["shape"]))) == (
        "logits",
        "FP32",
        [-1, 10],
    )
    index = triton.get_model_repository_index(**as_json)
    names = {one["name"] for one in (index if client == "rest" else index["models"])}
    assert names == {"lenet", "raw"}
    before = _successes(triton, as_json)
    library = httpclient if client == "rest" else grpcclient
    triton.infer("lenet", [tensor(library, IMAGES)])
    assert _successes(triton, as_json) == before + 1


def _successes(triton: Any, as_json: dict[str, bool]) -> int:
    (statistics,) = triton.get_inference_statistics("lenet", **as_json)["model_stats"]
    return int(statistics["inference_stats"]["success"].get("count", 0))


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_rest_computes_what_load_does(
    server: Running, rest: Any, trained: Trained, binary_in: bool, binary_out: bool
) -> None:
    del server
    given = tensor(httpclient, IMAGES, binary_data=binary_in)
    wanted = httpclient.InferRequestedOutput("logits", binary_data=binary_out)
    answer = rest.infer("lenet", [given], outputs=[wanted], request_id="seven", model_version="1")
    assert answer.get_response()["id"] == "seven"
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(trained.onnx, IMAGES))


def test_grpc_computes_what_load_does(grpc: Any, trained: Trained) -> None:
    answer = grpc.infer("lenet", [tensor(grpcclient, IMAGES)], request_id="seven")
    assert answer.get_response().id == "seven"
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(trained.onnx, IMAGES))


@pytest.mark.parametrize("client", ["rest", "grpc"])
def test_raw_images_and_all_outputs(client: str, request: pytest.FixtureRequest, trained: Trained) -> None:
    library = httpclient if client == "rest" else grpcclient
    answer = request.getfixturevalue(client).infer("raw", [tensor(library, RAW)])
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(trained.onnx_image, RAW))
    np.testing.assert_allclose(answer.as_numpy("probabilities").sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("model", ["lenet", "raw"])
def test_an_image_file_gets_the_labels_of_load(server: Running, trained: Trained, model: str) -> None:
    content = io.BytesIO()
    Image.fromarray(RAW[0]).save(content, "PNG")
    status, body = server.get(f"v2/models/{model}/classify?top=3", content.getvalue())
    assert status == 200, body
    classes = json.loads(body)["classes"]
    with cnndeploy.load(trained.onnx if model == "lenet" else trained.onnx_image) as opened:
        (first,) = opened.classify(RAW[:1], top=3)
    told = [(one["label"], one["probability"]) for one in classes]
    assert told == [(one.label, pytest.approx(one.probability)) for one in (first, *first.runners_up)]


@pytest.mark.parametrize("client", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("model", "version", "images", "message"),
    [
        ("alexnet", "", IMAGES, "no model 'alexnet'"),
        ("lenet", "2", IMAGES, "no version '2'"),
        ("lenet", "", IMAGES.astype(np.uint8), "expected float32"),
        ("lenet", "", IMAGES[:, :, :27], "expected float32 (batch, 1, 28, 28)"),
        ("lenet", "", np.zeros((65, 1, 28, 28), np.float32), "1 to 64 images"),
        ("lenet", "", np.zeros((0, 1, 28, 28), np.float32), "1 to 64 images"),
        ("lenet", "", np.full_like(IMAGES, np.nan), "NaN"),
    ],
)
def test_what_is_wrong_is_said(
    client: str, request: pytest.FixtureRequest, model: str, version: str, images: NDArray[Any], message: str
) -> None:
    library = httpclient if client == "rest" else grpcclient
    triton = request.getfixturevalue(client)
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        triton.infer(model, [tensor(library, images)], model_version=version)
    code = "404" if "no " in message else "400"
    if client == "grpc":
        code = {"404": "NOT_FOUND", "400": "INVALID_ARGUMENT"}[code]
    error: Any = caught.value
    assert code in str(error.status())


def _body(**changes: Any) -> bytes:
    given = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.0] * 784, **changes}
    return json.dumps({"inputs": [given]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "inputs is a list"),
        (b'{"inputs": [7]}', "an input is a JSON object"),
        (b'{"inputs": [{"name": 7}]}', "a name of its own"),
        (_body(datatype="FP33"), "the datatype is one of"),
        (_body(shape="1"), "the shape is a list"),
        (_body(shape=[1, 1, -28, -28]), "the shape is a list"),
        (_body(shape=[2**30] * 8), "reshape"),
        (_body(shape=[1] * 9), "the shape is a list"),
        (
            _body(shape=[0, 2**31 - 1, 2**31 - 1, 2**31 - 1], data=None, parameters={"binary_data_size": 0}),
            "image",
        ),
        (_body(data=None), "has no data"),
        (_body(data=["a"] * 784), "not all numbers"),
        (
            _body(data=["a" * 100_000, *[""] * 50_000]),
            "not all numbers",
        ),  # an array of texts would take 20 GB
        (_body(data=[True] * 784), "not all numbers"),
        (_body(data=[0.5, *[True] * 783]), "not all numbers"),
        (_body(data=[[0.0], [0.0, 1.0]]), "not all numbers"),
        (_body(data=[0.0] * 783), "reshape"),
        (_body(data=[1e400] * 784), "NaN or infinite"),
        (_body(datatype="UINT8", data=[256] * 784), "out of bounds"),
        (_body(datatype="UINT8", data=[0.5] * 784), "whole numbers"),
        (_body(data=None, parameters={"binary_data_size": 3136}), "bytes were announced"),
        (_body(data=None, parameters={"binary_data_size": "x"}), "bytes were announced"),
        (_body(parameters=7), "parameters is a JSON object"),
        (b'{"inputs": [], "outputs": [{"name": "labels"}]}', "no output 'labels'"),
        (b'{"inputs": [], "outputs": [{"name": "logits", "parameters": {"classification": 3}}]}', "classify"),
        (
            b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"shared_memory_region": "x"}}]}',
            "shared memory",
        ),
    ],
)
def test_a_malformed_request_gets_400_and_says_why(server: Running, body: bytes, message: str) -> None:
    status, error = server.error("v2/models/lenet/infer", body)
    assert status == 400
    assert message in error


def test_paths_methods_and_lengths(server: Running) -> None:
    assert server.error("nowhere")[0] == 404
    assert server.error("v2/models/lenet/nothing")[0] == 404
    assert server.error("v2/models/lenet/infer") == (405, "this path takes POST, and not GET")
    assert server.error("v2/models/lenet", b"{}")[0] == 405
    assert server.error("v2/models/lenet/infer", b" " * 1_000_001) == (
        413,
        "a body of at most 1,000,000 bytes is read",
    )
    for length in ("900", "9" * 5000, "x"):
        header = {"Inference-Header-Content-Length": length}
        assert server.error("v2/models/lenet/infer", b"{}", **header)[0] == 400
    assert server.error("v2/models/lenet/infer", b"{}", **{"Content-Encoding": "gzip"})[0] == 415
    assert server.error("v2/models/lenet/classify", b"no image")[0] == 400
    for top in ("0", "9" * 5000, "x"):
        assert server.error(f"v2/models/lenet/classify?top={top}", b"no image")[0] == 400
    # as KServe's own client reads them
    assert json.loads(server.get("v2/health/live")[1]) == {"live": True}
    assert json.loads(server.get("v2/models/lenet/ready")[1]) == {"name": "lenet", "ready": True}


def test_what_is_wrong_by_grpc_is_said(server: Running, grpc: Any) -> None:
    given = tensor(grpcclient, IMAGES)
    for shape in ([2**62] * 1000, [1] * 100, [-1, 1, 28, 28]):
        given.set_shape(shape)
        with pytest.raises(grpcclient.InferenceServerException, match="the shape is a list") as caught:
            grpc.infer("lenet", [given])
        assert "INVALID_ARGUMENT" in caught.value.status()
    with pytest.raises(grpcclient.InferenceServerException, match="classify"):
        grpc.infer(
            "lenet", [tensor(grpcclient, IMAGES)], outputs=[grpcclient.InferRequestedOutput("logits", 3)]
        )
    with pytest.raises(grpcclient.InferenceServerException):
        grpc.infer("lenet", [tensor(grpcclient, IMAGES)], compression_algorithm="gzip")
    with pytest.raises(grpcclient.InferenceServerException, match="sides of 8192"):
        grpc.infer("raw", [tensor(grpcclient, np.zeros((1, 1, 8193), np.uint8))])
    assert (
        'endpoint="grpc_infer",model="lenet",status="INVALID_ARGUMENT"' in server.get("metrics")[1].decode()
    )


def test_bytes_cut_short_by_a_client_that_leaves_do_no_harm(server: Running) -> None:
    host, _, port = server.rest.partition(":")
    for content in (b"POST /v2/models/lenet/infer HTTP/1.1\r\ncontent-length: 100\r\n\r\n{", b"\0" * 50):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(content)
    assert server.get("v2/health/ready")[0] == 200


def test_metrics_count_answers(server: Running) -> None:
    server.error("v2/models/lenet/infer", b"{")
    server.error("v2/models/anything/infer", b"{")
    text = server.get("metrics")[1].decode()
    assert re.search(
        r'cnndeploy_requests_total\{endpoint="rest_infer",model="lenet",status="400"\} [1-9]', text
    )
    assert "anything" not in text, "a client must not make labels"


def test_many_clients_at_once(server: Running, trained: Trained) -> None:
    batches = [np.random.default_rng(seed).random((1, 1, 28, 28), np.float32) for seed in range(16)]
    wanted = [expected(trained.onnx, batch) for batch in batches]

    def ask(number: int) -> None:
        with contextlib.closing(httpclient.InferenceServerClient(server.rest)) as client:
            for turn in range(8):
                place = (number + turn) % 16
                answer = client.infer("lenet", [tensor(httpclient, batches[place])])
                np.testing.assert_array_equal(answer.as_numpy("logits"), wanted[place])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))


def test_a_signal_lets_what_has_begun_end(trained: Trained) -> None:
    with serving(trained.onnx) as running:
        host, _, port = running.rest.partition(":")
        body = _body()
        with (
            socket.create_connection((host, int(port)), timeout=30) as connection,
            contextlib.closing(grpcclient.InferenceServerClient(running.grpc)) as client,
        ):
            head = f"POST /v2/models/lenet/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:100])
            assert running.get("v2/health/ready")[0] == 200  # the first bytes have been read by now
            assert client.is_server_ready()
            running.process.send_signal(signal.SIGTERM)
            while _is_ready(client):
                threading.Event().wait(0.05)
            connection.sendall(body[100:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert running.process.wait(30) == 0


def _free_ports() -> list[int]:
    """Two ports that no client is given, as the system's own choices may be."""
    free = list[int]()
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == 2:
            return free
    raise AssertionError("all ports are taken")


def test_after_kill_9_it_starts_again_on_the_same_ports(trained: Trained) -> None:
    """Clients that were connected go on, by both protocols."""
    rest_port, grpc_port = _free_ports()
    options = ("--unverified", "--port", rest_port, "--grpc-port", grpc_port)
    with contextlib.ExitStack() as clients:

        def logits() -> list[NDArray[np.float32]]:
            return [
                client.infer("lenet", [tensor(library, IMAGES)]).as_numpy("logits")
                for client, library in connected
            ]

        with serving(trained.onnx, options=options) as first:
            connected = [
                (clients.enter_context(contextlib.closing(library.InferenceServerClient(address))), library)
                for library, address in ((httpclient, first.rest), (grpcclient, first.grpc))
            ]
            before = logits()
            first.process.send_signal(signal.SIGKILL)
            assert first.process.wait(30) == -signal.SIGKILL
        with serving(trained.onnx, options=options) as second:
            assert (second.rest, second.grpc) == (first.rest, first.grpc)
            assert np.array_equal(logits(), before)


def _is_ready(client: Any) -> bool:
    try:
        return bool(client.is_server_ready())
    except grpcclient.InferenceServerException:
        return False


def test_a_connection_that_asks_nothing_is_closed(trained: Trained) -> None:
    script = """
import http.client, os, signal, socket, sys, threading, cnndeploy
from cnndeploy.serving import server
server._TO_ASK_S = 2.0
def ask(address):
    whole = b"GET /v2/health/live HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n"
    for before, sent in (b"", b""), (b"", b"GET /v2 HTTP/1.1\\r\\nho"), (whole, b"G"):
        with socket.create_connection((address.host, address.port), timeout=30) as connection:
            connection.sendall(before)
            received = connection.recv(4096) if before else b""
            threading.Event().wait(0.5)  # it is answered, and waits for another request
            connection.sendall(sent)
            while part := connection.recv(4096):
                received += part
            print(received[:12])
    asking = http.client.HTTPConnection(address.host, address.port, timeout=30)
    ports = []
    for _ in range(2):
        asking.request("GET", "/v2")
        ports.append(asking.sock.getsockname())
        print(ports[0] == ports[-1], asking.getresponse().read()[:8])
        threading.Event().wait(3)
    os.kill(os.getpid(), signal.SIGTERM)
ready = lambda address, _: threading.Thread(target=ask, args=[address]).start()
cnndeploy.serve({"a": sys.argv[1]}, port=0, grpc_port=None, require_verified=False, on_ready=ready)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, trained.onnx], capture_output=True, text=True, timeout=90, check=False
    )
    answered = "True b'{\"name\":'\n"
    closed = "b''\nb''\nb'HTTP/1.1 200'\n"
    assert (ended.returncode, ended.stdout) == (0, closed + answered * 2), ended.stderr


def test_a_script_that_serves_goes_on_after_a_signal(trained: Trained) -> None:
    script = (
        "import os, signal, sys, cnndeploy\n"
        "end = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cnndeploy.serve({'a': sys.argv[1]}, port=0, grpc_port=0, require_verified=False, on_ready=end)\n"
        "print('it went on', signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, trained.onnx], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "it went on True\n"), ended.stderr


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_beginning() -> None:
    with contextlib.closing(server_module._socket("127.0.0.1", 0)) as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_and_a_file_without_certificate_are_refused(
    trained: Trained, server: Running
) -> None:
    port = int(server.rest.partition(":")[2])
    with pytest.raises(ServingError, match="not available"):
        cnndeploy.serve({"lenet": trained.onnx}, port=port, require_verified=False)
    with pytest.raises(ArtifactError, match="no certificate"):
        cnndeploy.serve({"lenet": trained.onnx}, port=0, grpc_port=None)
    for name in ("a/b", "stats", "..", ""):
        with pytest.raises(ServingError, match="no name"):
            cnndeploy.serve({name: trained.onnx}, port=0, require_verified=False)
    with pytest.raises(ServingError, match="no model"):
        cnndeploy.serve({})
