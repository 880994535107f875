"""The fleet's side of the connections: who is there, what they say, and who has fallen silent.

Lives on one event loop. A peer that does not begin with the one-time token of a replica is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from mlperf_exp.sut.replicas import wire

_log = logging.getLogger(__name__)

_HELLO_S = 10.0  # for a peer to say who it is
_LOOK_S = 0.25  # between two looks for those that are silent
_LATE_S = 1.0  # this loop itself was late by so much: the silence was its own


class Link(asyncio.Protocol):
    """One replica's connection; until its :class:`wire.Hello`, anybody's."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._frames = wire.Frames(wire.MOST_UNKNOWN)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self.hello: wire.Hello | None = None
        self.heard_at = links.clock()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give it some seconds to say who it is."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of it
        self._peer = str(transport.get_extra_info("peername"))
        opened = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.loop.call_later(_HELLO_S, self._known_by_now)

    def data_received(self, data: bytes) -> None:
        """Cut into messages and hand them on."""
        self.heard_at = self._links.clock()
        try:
            for each in self._frames.feed(data):
                message = wire.from_replica.decode(each)
                if self.hello is not None:
                    self._links.on_message(self.hello.replica, message)
                elif isinstance(message, wire.Hello) and self._links.admit(message, self):
                    self.hello = message
                    self._frames.most = wire.MOST
                    self._links.on_hello(message)
                else:
                    _log.warning("a peer at %s said no valid token, and was hung up on", self._peer)
                    self.close()
                    return
        except (msgspec.DecodeError, wire.TooLongError) as error:
            self._broken(f"it sent what is no message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side hung up, or the network did."""
        if self.hello is not None:
            why = f" ({exc.strerror or exc})" if isinstance(exc, OSError) else ""
            self._links.gone(self.hello.replica, f"its connection was closed{why}")

    def send(self, message: wire.ToReplica) -> None:
        """Send it, or nothing where the connection is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.frame(message))

    def close(self) -> None:
        """Hang up at once; what was not sent is not sent."""
        if self._transport is not None:
            self._transport.abort()

    def _known_by_now(self) -> None:
        if self.hello is None:
            self.close()

    def _broken(self, why: str) -> None:
        if self.hello is not None:
            self._links.gone(self.hello.replica, why)
        self.close()


class Links:
    """All connections; made on the loop's thread.

    Args:
        tokens: of each replica, its one-time token.
        silent_s: a replica that said nothing for so long is lost, once :meth:`watch` was called.
        on_hello, on_message, on_gone: what the fleet does with a replica's first word, its others, and its end, which
            is told once.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        silent_s: float,
        *,
        on_hello: Callable[[wire.Hello], None],
        on_message: Callable[[int, wire.FromReplica], None],
        on_gone: Callable[[int, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self.on_hello, self.on_message, self._on_gone = on_hello, on_message, on_gone
        self._tokens: list[str | None] = list(tokens)
        self._links: dict[int, Link] = {}
        self._silent_s = silent_s
        self._server: asyncio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._watching = False

    async def listen(self, host: str) -> int:
        """Begin to take connections at this address; returns the port."""
        self._server = await self.loop.create_server(lambda: Link(self), host, 0, backlog=4096)
        self._watcher = self.loop.create_task(self._look())
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def watch(self) -> None:
        """Count silence from now on; an engine that is being loaded may keep its process from saying a word."""
        self._watching = True
        self._hear_all()

    def admit(self, hello: wire.Hello, link: Link) -> bool:
        """Whether the token is this replica's and was not used before."""
        known = self._tokens[hello.replica] if 0 <= hello.replica < len(self._tokens) else None
        if known is None or not hmac.compare_digest(known.encode(), hello.token.encode()):
            return False
        self._tokens[hello.replica] = None
        self._links[hello.replica] = link
        return True

    def send(self, replica: int, message: wire.ToReplica) -> None:
        """To one replica, if it is there."""
        if (link := self._links.get(replica)) is not None:
            link.send(message)

    def send_all(self, message: wire.ToReplica) -> None:
        """To all that are there."""
        for link in self._links.values():
            link.send(message)

    def connected(self) -> list[int]:
        """The replicas that are there."""
        return list(self._links)

    def gone(self, replica: int, why: str) -> None:
        """Hang up on a replica; the fleet is told why, the first time."""
        link = self._links.pop(replica, None)
        if link is not None:
            link.close()
            self._on_gone(replica, why)

    async def close(self) -> None:
        """Hang up on all, and take no more."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.close()
        self._links.clear()
        await asyncio.sleep(0)

    def _hear_all(self) -> None:
        now = self.clock()
        for link in self._links.values():
            link.heard_at = now

    async def _look(self) -> None:
        """Beat, and look for those that are silent; a beat of theirs that waits to be read is not silence."""
        due, beat_at = self.clock(), self.clock()
        while True:
            due = self.clock() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            now = self.clock()
            if now - due > _LATE_S:
                self._hear_all()
                continue
            if now >= beat_at:
                beat_at = now + 2 * wire.BEAT_S
                self.send_all(wire.Beat())
            for replica, link in list(self._links.items()) if self._watching else ():
                if now - link.heard_at > self._silent_s:
                    self.gone(replica, f"nothing came from it for {self._silent_s:g} s (ray.heartbeat_timeout_s)")
