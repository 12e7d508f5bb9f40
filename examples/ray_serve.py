"""Serve a verified file by Ray Serve, with replicas that grow with the load; needs `pip install '.[cpu,ray]'`.

python examples/ray_serve.py lenet.onnx
curl --data-binary @shoe.png 'localhost:8000/lenet?top=3'

On a cluster, run it on one of its machines with `--address auto`; each machine needs the file at its path. Ctrl-C and
SIGTERM end this application and no other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports its use to its makers

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import cnndeploy
from cnndeploy.errors import CnndeployError, DataError, InputMismatchError

MOST_BYTES = 16 * 2**20


class Served:
    """One replica: a process with the model open in it, which the threads of a few requests share."""

    def __init__(self, path: str) -> None:
        self._model = cnndeploy.load(path, threads=1, require_verified=True)
        self._model.warmup()

    async def __call__(self, request: Request) -> Response:
        """Answer an image file's bytes with its classes, the likeliest first."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                return JSONResponse({"error": f"more than {MOST_BYTES} bytes"}, 413)
        try:
            top = int(request.query_params.get("top", "1"))
            # in a thread, so that the replica still answers Ray's own questions
            return JSONResponse(await asyncio.to_thread(self._classes, bytes(body), top))
        except (ValueError, DataError, InputMismatchError) as error:
            return JSONResponse({"error": str(error)}, 400)

    def _classes(self, body: bytes, top: int) -> dict[str, Any]:
        image = cnndeploy.read_image(body, self._model.manifest.preprocessing.channels)
        (first,) = self._model.classify(image, top=min(top, len(self._model.labels)))
        ranked = (first, *first.runners_up)
        return {"classes": [{"label": one.label, "probability": one.probability} for one in ranked]}


def application(path: str, replicas: int) -> serve.Application:
    """Return the Ray Serve application: one to ``replicas`` replicas, each with one CPU."""
    deployment = serve.deployment(
        autoscaling_config={"min_replicas": 1, "max_replicas": replicas, "target_ongoing_requests": 2},
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=8,
    )
    return deployment(Served).bind(path)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a verified file by Ray Serve.")
    parser.add_argument("model", type=Path, help="a file with its certificate, or a folder that tune wrote")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 accepts other machines (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--replicas", type=int, default=2, help="the most replicas (default: 2)")
    parser.add_argument(
        "--address", default="local", help="the cluster's address, such as auto (default: this machine alone)"
    )
    arguments = parser.parse_args()
    path = str(arguments.model.absolute())
    try:
        cnndeploy.load(path, threads=1, require_verified=True).close()  # a clear error here, not in a replica
    except CnndeployError as error:
        sys.exit(f"Error: {error}")
    alone = arguments.address == "local"
    ray.init(arguments.address, include_dashboard=False if alone else None)
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    name = arguments.model.stem
    serve.run(application(path, arguments.replicas), name=name, route_prefix=f"/{name}")
    print(f"Ready: http://{arguments.host}:{arguments.port}/{name}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have left Ctrl-C ignored in the background
        signal.signal(number, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        if alone:
            ray.shutdown()
        else:
            serve.delete(name)


if __name__ == "__main__":
    main()
