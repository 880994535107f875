"""The body of a completions request, put together from parts that are encoded once.

Sources: OpenAI's API reference, "Create completion" (a prompt may be a list of token ids); vLLM's extra parameters
``min_tokens``, ``ignore_eos`` and ``return_token_ids``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """What every query to one server has in common: greedy decoding, streamed, with usage.

    ``min_tokens`` None, ``ignore_eos`` and ``return_token_ids`` False leave the parameter out, for servers that know
    only OpenAI's own.
    """

    model: str
    max_tokens: int
    min_tokens: int | None = None
    ignore_eos: bool = False
    return_token_ids: bool = True

    def tail(self) -> bytes:
        """All of the body that follows the prompt."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            # One usage at the end: usage in every chunk would cost both sides per token.
            "stream_options": {"include_usage": True},
        }
        if self.min_tokens is not None:
            fields["min_tokens"] = self.min_tokens
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.return_token_ids:
            fields["return_token_ids"] = True
        return b"," + json.dumps(fields, separators=(",", ":")).encode()[1:]


def head(tokens: Sequence[int]) -> bytes:
    """The part of the body that holds the prompt, as token ids; ``head(...) + request.tail()`` is the whole."""
    return b'{"prompt":[' + ",".join(map(str, tokens)).encode() + b"]"
