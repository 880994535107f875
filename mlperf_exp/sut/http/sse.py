"""An incremental parser of server-sent events, for streams cut at any byte.

Follows the event stream format of the WHATWG HTML standard, section 9.2 (lines end with LF, CRLF or CR; a colon
starts a comment; several data lines are one event), and keeps only what OpenAI's streams use: the data. It works on
bytes, so that a cut inside a character, or bytes that are no UTF-8, are the reader's concern and not the framing's.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"
DONE = b"[DONE]"  # the data of the last event of an OpenAI stream


class SSEParser:
    """Feed it bytes as they come; it returns the data of every event that they completed."""

    def __init__(self) -> None:
        self._tail: list[bytes] = []  # pieces of the line that has not ended; joined only once it has
        self._data: list[bytes] = []  # data lines of the event that has not ended
        self._after_cr = False  # the last byte was a CR: an LF that comes next belongs to it
        self._at_start = True

    @property
    def incomplete(self) -> bool:
        """Whether bytes came after the last whole event: the stream was cut if it ends now."""
        return bool(self._data) or any(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that ``chunk`` completes, in order; events without data are left out."""
        if not chunk:
            return []
        if self._after_cr and chunk[0] == 0x0A:
            chunk = chunk[1:]
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk[-1] == 0x0D
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._after_cr = False
        if b"\n" not in chunk:
            self._tail.append(chunk)
            return []
        lines = chunk.split(b"\n")
        if self._tail:
            self._tail.append(lines[0])
            lines[0] = b"".join(self._tail)
        self._tail = [lines.pop()]
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> list[bytes]:
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                data.append(b"")
            elif not line and data:
                events.append(b"\n".join(data))
                data.clear()
            # Anything else is a comment, or one of the fields event, id and retry.
        return events
