"""What the fleet and its replicas tell each other: msgpack behind four bytes of length, batched.

Nothing here can run code where it is read, unlike pickle. A replica first says :class:`Hello` with its one-time token.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

_LENGTH = struct.Struct("<I")
MOST = 1 << 30  # bytes of one frame
MOST_UNKNOWN = 4096  # of one from a peer that has not said its token

BEAT_S = 0.5  # a side that has said nothing for so long says so


class _Message(msgspec.Struct, array_like=True, gc=False):
    """Sent as an array whose first element names its kind."""


class Hello(_Message, tag="hello"):
    """The first word of a replica."""

    replica: int
    token: str
    node: str
    pid: int


class Work(_Message, tag="work"):
    """Queries for a replica: their tickets, and their places in the data set."""

    tickets: list[int]
    samples: list[int]


class Done(_Message):
    """The end of one query: ``tokens`` are int32; ``held_us`` is how long the replica had it, in microseconds."""

    ticket: int
    tokens: bytes
    error: str | None
    n_tokens: int | None
    held_us: int


class Answers(_Message, tag="answers"):
    """First tokens (their ids too, where known: as many, or none) and ends, since the last of these."""

    first: list[int]
    first_ids: list[int]
    done: list[Done]


class Many(_Message, tag="many"):
    """Ends of many queries in arrays, see :class:`mlperf_exp.messages.Answers`; all but ``data`` are int64."""

    tickets: bytes
    data: bytes
    dtype: str
    offsets: bytes
    held_us: bytes


class Lost(_Message, tag="lost"):
    """The replica's engine is lost."""

    reason: str


class Log(_Message, tag="log"):
    """What the engine printed since the last of these."""

    text: bytes


class Warned(_Message, tag="warned"):
    """What the engine warned of as it started."""

    text: str


class Beat(_Message, tag="beat"):
    """Still there."""


class Load(_Message, tag="load"):
    """These samples come next (``wanted``), or are not asked for any more."""

    samples: list[int]
    wanted: bool


class Loaded(_Message, tag="loaded"):
    """The answer to :class:`Load`."""

    error: str | None


class Stop(_Message, tag="stop"):
    """End the engine and hang up."""


ToReplica = Work | Load | Beat | Stop
FromReplica = Hello | Answers | Many | Lost | Log | Warned | Beat | Loaded

to_replica: msgspec.msgpack.Decoder[ToReplica] = msgspec.msgpack.Decoder(ToReplica)
from_replica: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)
_encoder = msgspec.msgpack.Encoder()


def frame(message: ToReplica | FromReplica) -> bytearray:
    """A message as bytes on the wire."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return buffer


class TooLongError(Exception):
    """A frame is longer than allowed: the peer does not speak this protocol, or means harm."""


class Frames:
    """Cuts a stream into messages' bytes. ``most`` is how long one may be; it may be changed on the way."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that ``data`` completes.

        Raises:
            TooLongError: one is longer than ``most``.
        """
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        try:
            while end - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > self.most:
                    raise TooLongError(f"a message of {length} bytes")
                if end - start < _LENGTH.size + length:
                    return
                start += _LENGTH.size
                yield bytes(buffer[start : start + length])
                start += length
        finally:
            del buffer[:start]
