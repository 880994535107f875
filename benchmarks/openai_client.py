"""How many queries a second the openai backend's client can do by itself, on one machine.

    python benchmarks/openai_client.py [--seconds 5] [--chunks 1 32 128] [--prompt 780] [--connections 256]

A server in a process of its own answers every request at once with prepared bytes: so many chunks of one token each,
written one by one. For each number of chunks the benchmark prints, as JSON, queries/s, chunks/s, and how many cores the
client and the server were given. The client is one thread: ``client_us_per_query`` says what one core can do, also
where other work on the machine took a share of it. Chunks that wait together are read together, which costs less each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import psutil

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.messages import Completion, Query, Sample
from mlperf_exp.sut.openai import OpenAI

_HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(value: Any) -> bytes:
    return _chunked(b"data: " + json.dumps(value).encode() + b"\n\n")


def _token(i: int) -> bytes:
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None, "token_ids": [i]}
    base = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000, "model": "bench"}
    return _event({**base, "choices": [choice]})


class _Protocol(asyncio.Protocol):
    """Just enough HTTP: requests with a length, one after the other."""

    chunks = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head.startswith(b"get"))

    def answer(self, models: bool) -> None:
        write = self.transport.write  # type: ignore[attr-defined]
        if models:
            body = b'{"data":[{"id":"bench"}]}'
            write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            return
        write(_HEADER + _FIRST)
        self._more(1)

    def _more(self, sent: int) -> None:
        # One chunk for each turn of the loop: each reaches the client as a read of its own, as it does from an engine.
        if sent < self.chunks:
            self.transport.write(_FIRST)  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_soon(self._more, sent + 1)
            return
        usage = {"prompt_tokens": 1, "completion_tokens": self.chunks}
        last = _event({"choices": [], "usage": usage}) + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.transport.write(last)  # type: ignore[attr-defined]


_FIRST = _token(17)


def _serve(chunks: int, port: Connection) -> None:
    _Protocol.chunks = chunks

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Protocol, "127.0.0.1", 0, backlog=4096)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


class _Load:
    """A sink that replaces every query that ends by a new one, so that as many are always outstanding."""

    def __init__(self, system: OpenAI) -> None:
        self.system, self.done, self.firsts, self.errors = system, 0, 0, 0
        self.row, self.running = 0, True
        self.failure: str | None = None
        self.idle = threading.Event()
        self.outstanding = 0

    def begin(self, concurrency: int) -> None:
        self.outstanding = concurrency
        self.row = concurrency
        self.system.submit([Query(row, row % 64) for row in range(concurrency)], self)

    def first_token(self, rows: Sequence[int]) -> None:
        self.firsts += len(rows)

    def complete(self, completions: Sequence[Completion]) -> None:
        self.done += len(completions)
        self.errors += sum(completion.error is not None for completion in completions)
        if self.running:
            more = [Query(self.row + i, (self.row + i) % 64) for i in range(len(completions))]
            self.row += len(more)
            self.system.submit(more, self)
        else:
            self.outstanding -= len(completions)
            if not self.outstanding:
                self.idle.set()

    def failed(self, reason: str) -> None:
        self.failure = reason
        self.idle.set()


def measure(chunks: int, *, seconds: float, prompt: int, connections: int) -> dict[str, float]:
    """Queries/s with so many chunks of one token each."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(chunks, send), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{receive.recv()}"
    system = OpenAI(OpenaiBackend(urls=[url], connections=connections), model="bench", max_tokens=max(8, chunks))
    try:
        system.start([Sample(tuple(range(i, i + prompt)), "") for i in range(64)])
        load = _Load(system)
        load.begin(connections)
        time.sleep(min(1.0, seconds / 5))  # connections are opened
        us, server = psutil.Process(), psutil.Process(process.pid)
        began, done, cpu_us, cpu_server = time.perf_counter(), load.done, us.cpu_times(), server.cpu_times()
        time.sleep(seconds)
        wall, done = time.perf_counter() - began, load.done - done
        client_s = sum(us.cpu_times()[:2]) - sum(cpu_us[:2])
        server_s = sum(server.cpu_times()[:2]) - sum(cpu_server[:2])
        load.running = False
        load.idle.wait(30)
    finally:
        system.stop()
        process.terminate()
        process.join()
    if load.failure or load.errors or load.firsts != load.done:
        raise SystemExit(
            f"the load had errors: {load.errors}, first tokens {load.firsts} of {load.done}, {load.failure}"
        )
    return {
        "chunks": chunks,
        "queries_per_second": round(done / wall, 1),
        "chunks_per_second": round(done * chunks / wall, 1),
        "client_cores": round(client_s / wall, 2),
        "client_us_per_query": round(client_s / done * 1e6, 1),
        "queries_per_client_core_second": round(done / client_s, 1),
        "server_cores": round(server_s / wall, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--prompt", type=int, default=780, help="tokens of a prompt")
    parser.add_argument("--connections", type=int, default=256)
    args = parser.parse_args()
    results = [
        measure(chunks, seconds=args.seconds, prompt=args.prompt, connections=args.connections)
        for chunks in args.chunks
    ]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "openai_client", **machine, "prompt": args.prompt, "results": results}, indent=2))


if __name__ == "__main__":
    main()
