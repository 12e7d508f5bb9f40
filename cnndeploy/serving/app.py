"""The REST server as an ASGI application: which path does what."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

from cnndeploy.serving.metrics import Metrics
from cnndeploy.serving.model import SERVER, VERSION, RequestError, ServedModel, find
from cnndeploy.serving.protocol import HEADER_LENGTH, is_whole, metadata, read_request, response, statistics

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
_MOST_TOP = 1000
_PASSED_OVER = 2**28  # bytes of a body that is too long: few clients read an answer before they have sent all
_AT_ONCE = 16  # of the longest body, in all bodies that are held
_TO_SEND_S = 60  # that a client has for a body
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: its status, its body, and its headers but for the length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class App:
    """The application: ``models`` by name; a body has at most ``most_bytes``."""

    def __init__(self, models: Mapping[str, ServedModel], metrics: Metrics, most_bytes: int) -> None:
        self._models, self._metrics, self._most_bytes = models, metrics, most_bytes
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        started = time.perf_counter()
        path = [unquote(part) for part in scope["raw_path"].decode("latin-1").split("/") if part]
        try:
            reply = await self._answer(scope["method"], path, scope, receive)
        except RequestError as error:
            # what is left of the body would be taken for the next request, or read for ever
            closing = () if scope["method"] in ("GET", "HEAD") else ((b"connection", b"close"),)
            reply = _json({"error": str(error)}, error.status, closing)
        except _Gone:
            return
        except Exception:  # noqa: BLE001 - a fault of ours is no reason to leave a client without an answer
            traceback.print_exc(file=sys.stderr)
            reply = _json({"error": "the server failed; its log says how"}, 500, ((b"connection", b"close"),))
        if len(path) > 2 and path[:2] == ["v2", "models"] and path[-1] in ("infer", "classify"):
            known = path[2] if path[2] in self._models else ""
            self._metrics.note(known, f"rest_{path[-1]}", reply.status, time.perf_counter() - started)
        length = (b"content-length", str(len(reply.body)).encode())
        headers = [*reply.headers, length]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    async def _answer(self, method: str, path: list[str], scope: Scope, receive: Receive) -> Reply:
        match path:
            case ["v2", "models", "stats"]:
                pass
            case ["v2", "models", name, "versions", version, *rest]:
                return await self._of_model(find(self._models, name, version), rest, method, scope, receive)
            case ["v2", "models", name, *rest]:
                return await self._of_model(find(self._models, name), rest, method, scope, receive)
        _require(method, "POST" if path == ["v2", "repository", "index"] else "GET")
        return self._of_server("/".join(path))

    def _of_server(self, path: str) -> Reply:
        match path:
            case "v2":
                return _json(SERVER)
            case "v2/health/live" | "v2/health/ready":
                return _json({path.rpartition("/")[2]: True})
            case "v2/repository/index":
                return _json([{"name": n, "version": VERSION, "state": "READY"} for n in self._models])
            case "v2/models/stats":
                return _json({"model_stats": list(map(statistics, self._models.values()))})
            case "metrics":
                content, kind = self._metrics.text()
                return Reply(200, content, ((b"content-type", kind.encode()),))
        raise RequestError(404, f"there is nothing at /{path[:200]}")

    async def _of_model(
        self, model: ServedModel, rest: list[str], method: str, scope: Scope, receive: Receive
    ) -> Reply:
        headers = dict(scope["headers"])
        _require(method, "POST" if rest in (["infer"], ["classify"]) else "GET")
        match rest:
            case []:
                return _json(metadata(model))
            case ["ready"]:
                return _json({"name": model.name, "ready": True})
            case ["stats"]:
                return _json({"model_stats": [statistics(model)]})
            case ["infer"]:
                length = headers.get(HEADER_LENGTH.encode())
                about = length and length.decode("latin-1")
                return await self._with_body(headers, receive, partial(_infer, header_length=about), model)
            case ["classify"]:
                top = _top(scope["query_string"].decode("latin-1"))
                return await self._with_body(headers, receive, partial(_classify, top=top), model)
        raise RequestError(404, f"a model has no {'/'.join(rest)[:200]}")

    async def _with_body(
        self,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        work: Callable[[ServedModel, bytearray], tuple[Reply, int]],
        model: ServedModel,
    ) -> Reply:
        """Read the body, and have a worker answer, so that others are heard meanwhile."""
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestError(415, "a compressed body is not understood; send it as it is")
        body = bytearray()
        try:
            async with asyncio.timeout(_TO_SEND_S):
                await self._read(body, receive)
            return await model.answer(lambda served: work(served, body))
        except TimeoutError:
            raise RequestError(408, f"the body did not come within {_TO_SEND_S} seconds") from None
        finally:
            self._held -= len(body)

    async def _read(self, body: bytearray, receive: Receive) -> None:
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part, ends = message.get("body", b""), not message.get("more_body", False)
            length += len(part)
            if length <= self._most_bytes:
                if self._held + len(part) > _AT_ONCE * self._most_bytes:
                    raise RequestError(503, "too many requests are being read; ask again")
                self._held += len(part)
                body += part
                if ends:
                    return
            elif ends or length > self._most_bytes + _PASSED_OVER:
                raise RequestError(413, f"a body of at most {self._most_bytes:,} bytes is read")


class _Gone(Exception):  # noqa: N818 - no error: nobody waits for an answer
    """The client has left."""


def _infer(model: ServedModel, body: bytearray, header_length: str | None) -> tuple[Reply, int]:
    request = read_request(body, header_length)
    outputs = model.infer(request.feeds, request.wanted)
    images = len(next(iter(request.feeds.values())))
    content, length = response(model, request, outputs)
    if length is None:
        return Reply(200, content), images
    kind = (b"content-type", b"application/octet-stream")
    return Reply(200, content, (kind, (HEADER_LENGTH.encode(), str(length).encode()))), images


def _classify(model: ServedModel, body: bytearray, top: int) -> tuple[Reply, int]:
    return _json({"model_name": model.name, "classes": model.classify(body, top)}), 1


def _top(query: str) -> int:
    """Return how many classes a query asks for."""
    given = parse_qs(query).get("top", ["1"])[-1]
    if not is_whole(given) or not 1 <= int(given) <= _MOST_TOP:
        raise RequestError(400, f"top is a whole number of 1 to {_MOST_TOP}, and not {given!r:.20}")
    return int(given)


def _json(values: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return Reply(status, json.dumps(values).encode(), (_JSON, *headers))


def _require(method: str, expected: str) -> None:
    if method != expected and not (expected == "GET" and method == "HEAD"):
        raise RequestError(405, f"this path takes {expected}, and not {method}")
