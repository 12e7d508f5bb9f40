"""What a request costs: `cnndeploy serve` by REST and gRPC, beside the same file in process. See docs/DEPLOYING.md.

Clients and server share the machine, so with as few CPUs as here the clients' work counts too. Each way is measured
for some seconds with one connection and with several, one way after the other: small differences say nothing.

    .venv/bin/python benchmarks/serving.py lenet.onnx
    .venv/bin/python benchmarks/serving.py lenet.onnx --soak 60        # 64 connections: any error? is memory steady?
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

import cnndeploy
from cnndeploy.display.cells import duration, machine_line
from cnndeploy.machine import environment

Ask = Callable[[], object]
MANY, SOAKING = 16, 64


@contextlib.contextmanager
def server(model: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run a server in a process of its own; yield it and its addresses."""
    command = [sys.executable, "-m", "cnndeploy", "serve", f"model={model}", "--unverified"]
    command += ["--port", "0", "--grpc-port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            lines = ""
            for line in process.stdout or ():
                lines += line
                if "Ready." in line:
                    break
            else:
                sys.exit("the server ended")
            yield process, *re.findall(r"(?:http://|gRPC on )([\d.:]+)", lines)
        finally:
            process.kill()


def rest(address: str, body: bytes, headers: dict[str, str]) -> Callable[[], Ask]:
    """Return what opens a connection, and returns what asks on it."""

    def connect() -> Ask:
        connection = http.client.HTTPConnection(address)

        def ask() -> None:
            connection.request("POST", "/v2/models/model/infer", body, headers)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(content.decode())

        return ask

    return connect


def grpc(address: str, name: str, image: Any) -> Callable[[], Ask]:
    """Return what opens a connection, and returns what asks on it."""

    def connect() -> Ask:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all share one connection
        client = grpcclient.InferenceServerClient(address, channel_args=options)
        given = grpcclient.InferInput(
            name, list(image.shape), "FP32" if image.dtype == np.float32 else "UINT8"
        )
        given.set_data_from_numpy(image)

        def ask() -> None:
            client.infer("model", [given])

        return ask

    return connect


def measured(connect: Callable[[], Ask], connections: int, seconds: float) -> tuple[float, float, float]:
    """Return requests in a second, and the median and the 99th percentile of seconds."""
    asks = [connect() for _ in range(connections)]
    for ask in asks:
        for _ in range(20):
            ask()
    ends = time.perf_counter() + seconds
    samples: list[list[float]] = [[] for _ in asks]
    failures: list[BaseException] = []

    def work(ask: Ask, taken: list[float]) -> None:
        try:
            while (started := time.perf_counter()) < ends:
                ask()
                taken.append(time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(asks, samples, strict=True)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"{len(failures)} connections failed: {failures[0]}")
    every = np.concatenate(samples)
    return len(every) / (time.perf_counter() - started), *np.percentile(every, (50, 99)).tolist()


def memory_bytes(process: subprocess.Popen[str]) -> int:
    """Return the memory that a process holds now, on Linux."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", text)
    return 1024 * int(kilobytes)


def ways(model: Path, addresses: tuple[str, str]) -> Iterator[tuple[str, Callable[[], Ask]]]:
    """Yield each way to ask, and what opens a connection."""
    opened = cnndeploy.load(model, threads=1)
    (spec,) = opened.session.inputs
    shape = spec.with_batch(1, opened.manifest.preprocessing.size[0])
    image = np.random.default_rng(0).integers(0, 256, shape).astype(spec.dtype)
    described = {
        "name": spec.name,
        "shape": shape,
        "datatype": "FP32" if spec.dtype == "float32" else "UINT8",
    }
    as_json = json.dumps({"inputs": [{**described, "data": image.ravel().tolist()}]}).encode()
    parameters = {"binary_data_size": image.nbytes}
    head = json.dumps(
        {"inputs": [{**described, "parameters": parameters}], "parameters": {"binary_data_output": True}}
    ).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    preprocessing = opened.manifest.preprocessing
    colours = () if preprocessing.channels == 1 else (3,)
    raw = np.random.default_rng(0).integers(0, 256, (*preprocessing.size, *colours)).astype(np.uint8)
    yield "in process, `cnndeploy.load(...).classify`", lambda: lambda: opened.classify(raw)
    yield "in process, its `session.run`", lambda: lambda: opened.session.run({spec.name: image})
    yield "REST, tensors as bytes", rest(addresses[0], head + image.tobytes(), length)
    yield "REST, JSON", rest(addresses[0], as_json, {})
    yield "gRPC", grpc(addresses[1], spec.name, image)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a request costs.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way (default: 5)")
    parser.add_argument("--soak", type=float, help="instead, for so many seconds, 64 connections by bytes")
    arguments = parser.parse_args()
    with server(arguments.model) as (process, *addresses):
        known = dict(ways(arguments.model, (addresses[0], addresses[1])))
        if arguments.soak:
            way = known["REST, tensors as bytes"]
            measured(way, SOAKING, arguments.soak / 6)
            before = memory_bytes(process)
            rate, _, p99 = measured(way, SOAKING, arguments.soak)
            after = memory_bytes(process)
            print(
                f"{SOAKING} connections, {arguments.soak:g} s: {rate:,.0f} requests/s, p99 {duration(p99)}, no error; "
                f"memory {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
            )
            return
        print("| way | requests/s, 1 connection | p50 | p99 | requests/s, 16 connections | p50 | p99 |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name, connect in known.items():
            cells = []
            for connections in (1, MANY):
                rate, p50, p99 = measured(connect, connections, arguments.seconds)
                cells += [f"{rate:,.0f}", duration(p50), duration(p99)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(machine_line(environment()))


if __name__ == "__main__":
    main()
