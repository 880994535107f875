"""A client of OpenAI's completions API: one query out, its streamed answer in. The one import of aiohttp.

It knows one exchange and nothing of queues, of other servers or of how long a whole query may take. Whatever goes wrong
in an exchange becomes a :class:`ExchangeError` with one clear line that never holds the API key.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.messages import Completion
from mlperf_exp.sut.http.answer import Answer, AnswerError, NoTokenIdsError, Tokenize, error_message
from mlperf_exp.sut.http.endpoints import one_line
from mlperf_exp.sut.http.sse import DONE, SSEParser

# uvicorn, and so vLLM, closes a connection that was idle for 5 s; a query must not meet it doing so.
_KEEPALIVE_S = 3.0
_DRAIN_S = 1.0  # how long a connection may take to end an answer that is complete already
_ERROR_BODY = 1 << 16
_ANSWER_BYTES, _TOKEN_BYTES = 1 << 20, 1 << 12  # an answer may have so many bytes, and so many more for each token


class ExchangeError(Exception):
    """An exchange failed.

    Args:
        line: why, in one line that names the server.
        status: the HTTP status, where that is what was wrong.
        reached: whether the server answered at all; False counts against it.
        refused: whether nothing listens at its address.
        broken: whether the connection broke, so that the query was not answered, in whatever way.
    """

    def __init__(
        self,
        line: str,
        *,
        status: int | None = None,
        reached: bool = True,
        refused: bool = False,
        broken: bool = False,
    ) -> None:
        super().__init__(line)
        self.line, self.status, self.reached, self.refused, self.broken = line, status, reached, refused, broken

    @property
    def against_server(self) -> bool:
        """Whether it speaks against the server and not against this one query."""
        return not self.reached or self.status == 429 or (self.status or 0) >= 500


class NoIdsError(ExchangeError):
    """The answer was whole, but its token ids are unknown."""


class Exchange:
    """One query on its way: told what happens, and open to whoever watches over it.

    ``last_byte_at`` is in seconds of the event loop's clock, and None before the server has answered; ``started`` says
    whether the first token has come.
    """

    __slots__ = ("last_byte_at", "row", "started")

    def __init__(self, row: int) -> None:
        self.row = row
        self.last_byte_at: float | None = None
        self.started = False

    def on_first_token(self) -> None:
        """Called once, as soon as the first token was read."""

    def on_complete(self, completion: Completion) -> None:
        """Called once, as soon as the answer is whole; not called where there is a fault."""


class Client:
    """Talks to servers over connections that are kept and used again; lives on one event loop."""

    def __init__(self, config: OpenaiBackend, key: str | None, *, max_tokens: int, tokenize: Tokenize | None) -> None:
        self._key = key
        self._connect_timeout_s = config.connect_timeout_s
        self._max_tokens = max_tokens
        self._tokenize = tokenize
        self._clock = asyncio.get_running_loop().time
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            # The router limits the connections: a second queue in here would hide where a query waits.
            # A name is resolved once: doing so again would fall into some query's time to first token.
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=None, socket_factory=_socket
            ),
            # ``connect`` bounds name resolution too. How long an answer may take is the watcher's concern.
            timeout=aiohttp.ClientTimeout(total=None, connect=config.connect_timeout_s),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def clean(self, text: str) -> str:
        """``text`` on one short line without the key."""
        return one_line(text, self._key)

    async def get(self, url: str) -> Any:
        """The JSON at ``url``, or None where the body is something else.

        Raises:
            ExchangeError: no answer within ``connect_timeout_s``, or one other than 200.
        """
        with self._faults(url):
            try:
                async with (
                    asyncio.timeout(self._connect_timeout_s),
                    self._session.get(url, allow_redirects=False) as response,
                ):
                    body = await _read_up_to(response, 1 << 22)
                    if response.status != 200:
                        raise self._refusal(url, response, body)
            except TimeoutError as error:
                limit = f"{self._connect_timeout_s:g} s (backend.connect_timeout_s)"
                raise ExchangeError(f"{url} did not answer within {limit}", reached=False) from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None

    async def complete(self, base: str, body: bytes, exchange: Exchange) -> None:
        """Send one query, tell ``exchange`` of its answer, and leave the connection ready for the next.

        Raises:
            ExchangeError: there is no usable answer.
        """
        answer, parser, limit = Answer(self._max_tokens), SSEParser(), _ANSWER_BYTES + _TOKEN_BYTES * self._max_tokens
        url = f"{base}/completions"
        with self._faults(base, exchange):
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                exchange.last_byte_at = self._clock()
                if response.status != 200:
                    raise self._refusal(base, response, await _read_up_to(response, _ERROR_BODY))
                stream, received = response.content, 0
                while chunk := await stream.readany():
                    exchange.last_byte_at = self._clock()
                    for event in parser.feed(chunk):
                        if event == DONE:
                            completion = answer.completion(exchange.row, self._tokenize)
                            if not exchange.started:  # a first token without text: it has come by now at the latest
                                self._start(exchange)
                            exchange.on_complete(completion)
                            await _drain(stream, limit)
                            return
                        answer.add(event)
                        if answer.started and not exchange.started:
                            self._start(exchange)
                    received += len(chunk)
                    if received > limit:
                        raise AnswerError(f"sent more than {limit} bytes and did not end its answer")
                cut = " in the middle of an event" if parser.incomplete else ""
                kind = "" if answer.started else f" (content type {response.content_type})"
                raise AnswerError(f"ended its answer{cut} before data: [DONE]{kind}")

    @staticmethod
    def _start(exchange: Exchange) -> None:
        exchange.started = True
        exchange.on_first_token()

    def _refusal(self, where: str, response: aiohttp.ClientResponse, body: bytes) -> ExchangeError:
        try:
            message = error_message(json.loads(body))
        except (ValueError, RecursionError):
            message = body.decode("utf-8", "replace")
        wait = response.headers.get("Retry-After")
        after = f" (Retry-After: {wait})" if wait else ""
        line = self.clean(f"{where} answered HTTP {response.status}{after}: {message or response.reason or ''}")
        return ExchangeError(line, status=response.status)

    @contextmanager
    def _faults(self, where: str, exchange: Exchange | None = None) -> Iterator[None]:
        """Turns what aiohttp raises, and bad answers, into faults."""
        refused = False
        try:
            yield
            return
        except NoTokenIdsError as error:
            raise NoIdsError(self.clean(f"{where} {error}")) from error
        except AnswerError as error:
            raise ExchangeError(self.clean(f"{where} {error}")) from error
        except aiohttp.ConnectionTimeoutError:
            what = f"did not accept a connection within {self._connect_timeout_s:g} s (backend.connect_timeout_s)"
        except aiohttp.ClientConnectorDNSError:
            what = "has a host name that cannot be resolved"
        except aiohttp.ClientConnectorError as error:
            refused = error.os_error.errno == errno.ECONNREFUSED
            what = "refused the connection" if refused else f"cannot be connected to: {error.os_error}"
        except aiohttp.ServerDisconnectedError:
            what = "closed the connection before it answered"
        except aiohttp.ClientPayloadError:
            what = "closed the connection in the middle of its answer"
        except aiohttp.ClientResponseError as error:
            what = f"sent broken HTTP: {error.message}"
        except (aiohttp.ClientError, OSError) as error:
            what = f"lost the connection: {str(error) or type(error).__name__}"
        reached = exchange is not None and exchange.last_byte_at is not None
        raise ExchangeError(self.clean(f"{where} {what}"), reached=reached, refused=refused, broken=True)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket on which the kernel sees within four seconds that the other host is gone, however busy its program."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        made.setsockopt(socket.IPPROTO_TCP, option, seconds)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000)  # for what was sent and never confirmed
    return made


async def _read_up_to(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := await response.content.readany()):
        parts.append(part[:limit])
        limit -= len(part)
    return b"".join(parts)


async def _drain(stream: aiohttp.StreamReader, limit: int) -> None:
    """Read to the end of a complete answer, so that its connection can be used again."""
    if stream.at_eof():
        return
    try:
        async with asyncio.timeout(_DRAIN_S):
            while limit > 0 and (part := await stream.readany()):
                limit -= len(part)
    except (TimeoutError, aiohttp.ClientError):
        pass  # the answer is good; only its connection is not
