"""Between two nodes, over plain TCP as their pods or hosts have it: port reach, latency, bandwidth, clock offset.

Whatever carries it (Calico, another overlay, the hosts' own network) is shown by its figures: an overlay that is no
bottleneck comes close to the link's rate, at a fraction of a millisecond.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_CHUNK = 1 << 20
_STREAMS = 4
_PINGS = 300
_TIMEOUT_S = 10.0
_PING, _FLOOD = b"P", b"F"


@dataclass(frozen=True, slots=True)
class Link:
    """What was measured from one node to another. Times of the round trip in ms; ``offset_ms``: the other's clock."""

    connect_ms: float
    latency_ms: float
    latency_p99_ms: float
    gbit_s: float
    offset_ms: float


class Server:
    """Answers the measurements of other nodes on a port that the system chooses."""

    def __init__(self, host: str = "") -> None:
        self._socket = socket.create_server((host, 0), backlog=64)
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, name="doctor", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server, closed at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def measure(host: str, port: int, seconds: float) -> Link:
    """Measure towards a server.

    Raises:
        OSError: the port is not reached, or the connection breaks.
    """
    began = time.perf_counter()
    with _connected(host, port) as connection:
        connect_ms = (time.perf_counter() - began) * 1000
        connection.sendall(_PING)
        trips, offsets = [], []
        for _ in range(_PINGS):
            sent = time.time()
            begun = time.perf_counter()
            connection.sendall(b"?" * 8)
            (theirs,) = struct.unpack("!d", _exactly(connection, 8))
            trip = time.perf_counter() - begun
            trips.append(trip)
            offsets.append((trip, theirs - (sent + trip / 2)))
    return Link(
        connect_ms,
        statistics.median(trips) * 1000,
        statistics.quantiles(trips, n=100)[98] * 1000,
        _bandwidth(host, port, seconds),
        min(offsets)[1] * 1000,  # of the quickest answer: its two ways differ the least
    )


def _bandwidth(host: str, port: int, seconds: float) -> float:
    """Gbit/s over a few connections at once, of what the other side has received."""
    received = [0] * _STREAMS
    faults: list[OSError] = []

    def flood(i: int) -> None:
        try:
            with _connected(host, port) as connection:
                connection.sendall(_FLOOD)
                block, end = bytes(_CHUNK), time.perf_counter() + seconds
                while time.perf_counter() < end:
                    connection.sendall(block)
                connection.shutdown(socket.SHUT_WR)
                (received[i],) = struct.unpack("!q", _exactly(connection, 8))
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=flood, args=(i,)) for i in range(_STREAMS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return sum(received) * 8 / 1e9 / (time.perf_counter() - began)


def _answer(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        connection.settimeout(_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _exactly(connection, 1) == _PING:
            while True:
                _exactly(connection, 8)
                connection.sendall(struct.pack("!d", time.time()))
        total, buffer = 0, bytearray(_CHUNK)
        while count := connection.recv_into(buffer):
            total += count
        connection.sendall(struct.pack("!q", total))


def _connected(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return data
