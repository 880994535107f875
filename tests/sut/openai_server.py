"""A small server of OpenAI's completions API on 127.0.0.1, in a thread of its own, which can also misbehave.

How it answers a query is told by the prompt's first token (see ``Kind``), so that good and bad queries mix in one run.
The output for a prompt is ``expected(prompt)``.
"""

from __future__ import annotations

import asyncio
import json
import threading
from enum import IntEnum, auto
from typing import Any

from aiohttp import web

MODEL = "tiny"
OUTPUT = 4


class Kind(IntEnum):
    GOOD = auto()
    TEXT_ONLY = auto()
    SLOW_START = auto()  # a chunk without a token, a comment, and only later the first token
    SILENT_TOKEN = auto()  # a token without text or ids; only the usage tells of it
    HANG = auto()
    HANG_MID = auto()
    HANG_AFTER_DONE = auto()
    CLOSE_BEFORE = auto()
    CLOSE_MID = auto()
    HALF_EVENT = auto()
    NO_DONE = auto()
    BROKEN_JSON = auto()
    NO_OBJECT = auto()
    WRONG_TYPES = auto()
    NOT_UTF8 = auto()
    NO_USAGE = auto()
    NO_TOKEN = auto()
    ERROR_EVENT = auto()
    ABORTED = auto()
    BROKEN_HTTP = auto()
    NO_STREAM = auto()
    STATUS_400 = auto()
    STATUS_429 = auto()
    STATUS_500 = auto()
    REDIRECT = auto()
    TOO_MANY = auto()
    ENDLESS_TOKENS = auto()
    ENDLESS_COMMENTS = auto()
    TRICKLE = auto()  # a comment now and then, for ever


def expected(prompt: list[int] | tuple[int, ...], count: int = OUTPUT) -> list[int]:
    return [(sum(prompt) * 31 + i) % 1000 + 1 for i in range(count)]


def event(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"data: " + data + b"\n\n"


def chunk(ids: list[int] | None, text: str = "", **more: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": None, **more}
    if ids is not None:
        choice["token_ids"] = ids
    return event({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})


def usage(count: int) -> bytes:
    return event({"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": count}})


DONE = event(b"[DONE]")


class Server:
    """Start it with ``with``; the attributes may be changed while it runs."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.models: Any = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]}
        self.health = 200
        self.models_status = 200
        self.key: str | None = None
        self.strict = False  # refuses all parameters that are not OpenAI's own
        self.everything: Kind | None = None  # overrides the prompt
        self.hold: float = 0.0  # seconds before each first token
        self.bodies: list[dict[str, Any]] = []
        self.connections: set[Any] = set()  # peers seen on /v1/completions
        self.now = 0  # queries that it holds
        self.most = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def kill(self) -> None:
        """Die as a process does: every connection is reset, and the next one refused."""
        asyncio.run_coroutine_threadsafe(self._kill(), self._loop).result(10)

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._get_models)
        app.router.add_get("/health", self._get_health)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _kill(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in tuple(runner.sites):
            await site.stop()
        for transport in self._transports:
            transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=5)
        await runner.cleanup()

    def _check_key(self, request: web.Request) -> None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            shown = request.headers.get("Authorization", "")
            message = json.dumps({"error": {"message": f"Incorrect API key provided:\n {shown}"}})
            raise web.HTTPUnauthorized(text=message, content_type="application/json")

    async def _get_models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.json_response(self.models, status=self.models_status)

    async def _get_health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        assert request.transport is not None
        self._transports.add(request.transport)
        self.connections.add(request.transport.get_extra_info("peername"))
        body = await request.json()
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._answer(request, body)
        finally:
            self.now -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        unknown = set(body) - {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
        if self.strict and unknown:
            message = f"Unrecognized request argument supplied: {', '.join(sorted(unknown))}"
            return web.json_response({"error": {"message": message}}, status=400)
        if body["model"] not in [entry["id"] for entry in self.models.get("data", [])] and self.models_status == 200:
            return web.json_response({"error": {"message": f"The model {body['model']} does not exist"}}, status=404)
        kind = Kind(body["prompt"][0]) if self.everything is None else self.everything
        transport = request.transport
        assert transport is not None
        match kind:
            case Kind.HANG:
                await asyncio.sleep(3600)
            case Kind.CLOSE_BEFORE:
                transport.close()
            case Kind.BROKEN_HTTP:
                transport.write(b"HTP/9 what\r\n\r\n")
                transport.close()
            case Kind.NO_STREAM:
                return web.json_response({"choices": [{"text": "hello"}], "usage": {"completion_tokens": 1}})
            case Kind.STATUS_400:
                return web.json_response({"object": "error", "message": "This prompt\nis too long"}, status=400)
            case Kind.STATUS_429:
                return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "7"})
            case Kind.STATUS_500:
                return web.Response(status=500, text="<html>" + "x" * 5000)
            case Kind.REDIRECT:
                return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/v1/completions"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with_ids = bool(body.get("return_token_ids"))
        ids = expected(body["prompt"], min(OUTPUT, body["max_tokens"]))
        await self._stream(kind, response, transport, ids, with_ids)
        return response

    async def _stream(
        self, kind: Kind, response: web.StreamResponse, transport: asyncio.Transport, ids: list[int], with_ids: bool
    ) -> None:
        write = response.write

        def token(i: int) -> bytes:
            return chunk([i] if with_ids and kind != Kind.TEXT_ONLY else None, text=f" {i}")

        if self.hold:
            await asyncio.sleep(self.hold)
        match kind:
            case Kind.SLOW_START:
                await write(b": ping\n\n" + chunk(None))
                await asyncio.sleep(0.3)
            case Kind.SILENT_TOKEN:
                await write(chunk(None, finish_reason="stop") + usage(1) + DONE)
                return
            case Kind.NO_TOKEN:
                await write(chunk(None, finish_reason="stop") + usage(0) + DONE)
                return
            case Kind.ENDLESS_TOKENS:
                while True:
                    await write(token(1))
            case Kind.ENDLESS_COMMENTS:
                while True:
                    await write(b": ping\n" * 1000)
            case Kind.TRICKLE:
                await write(token(1))
                while True:
                    await write(b": ping\n\n")
                    await asyncio.sleep(0.05)
        await write(token(ids[0]))
        await asyncio.sleep(0.001)
        match kind:
            case Kind.HANG_MID:
                await asyncio.sleep(3600)
            case Kind.CLOSE_MID:
                transport.close()
                return
            case Kind.HALF_EVENT:
                await write(token(ids[1])[:20])
                return
            case Kind.BROKEN_JSON:
                await write(b'data: {"choices": [{"text": \n\n')
            case Kind.NO_OBJECT:
                await write(event([1, 2]))
            case Kind.WRONG_TYPES:
                await write(chunk(["one"]))  # type: ignore[list-item]
            case Kind.NOT_UTF8:
                await write(b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n')
            case Kind.ERROR_EVENT:
                await write(event({"error": {"message": "the engine\ndied", "code": 500}}))
            case Kind.ABORTED:
                await write(chunk(None, finish_reason="abort"))
            case Kind.TOO_MANY:
                await write(usage(100_000) + DONE)
        # The rest in two writes, cut inside an event.
        rest = b"".join(token(i) for i in ids[1:])
        rest += b"" if kind == Kind.NO_USAGE else usage(len(ids))
        rest += b"" if kind == Kind.NO_DONE else DONE
        await write(rest[:31])
        await write(rest[31:])
        if kind == Kind.HANG_AFTER_DONE:
            await asyncio.sleep(3600)
