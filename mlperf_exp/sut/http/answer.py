"""One query's answer as an OpenAI completions stream tells it, gathered event by event and checked as it comes.

Sources: OpenAI's API reference, "Completions" (streaming, ``stream_options.include_usage``); vLLM's
``return_token_ids`` (vLLM 0.10.2 and later), which adds ``token_ids`` to every choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from mlperf_exp.messages import Completion

Tokenize = Callable[[str], Sequence[int]]
"""Makes token ids, without special tokens, from an answer's text."""

_MAX_ID = 2**31 - 1  # the accuracy log holds int32
_BROKEN_OFF = frozenset({"abort", "error", "content_filter"})


class AnswerError(Exception):
    """The server's answer cannot be used; the text says why, as the end of a sentence about the server.

    It may quote the server at any length: whoever shows it takes secrets out and cuts it.
    """


class NoTokenIdsError(AnswerError):
    """The answer is text only, and there is no tokenizer to make ids from it."""


class Answer:
    """Gathers the events of one stream.

    Args:
        max_tokens: how many output tokens were asked for; more of them are an error.
    """

    __slots__ = ("_max_tokens", "_text", "_tokens", "n_tokens", "started")

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._text: list[str] = []
        self._tokens: list[int] = []
        self.n_tokens: int | None = None  # what the server's usage said last
        self.started = False  # whether a token has come

    def add(self, data: bytes) -> None:
        """Take in one event's data.

        Raises:
            AnswerError: it is no JSON of the right form, reports an error, or exceeds ``max_tokens``.
        """
        try:
            event = json.loads(str(data, "utf-8"))
        except UnicodeDecodeError as error:
            raise AnswerError("sent bytes that are not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"sent broken JSON: {_shown(data)}") from error
        if not isinstance(event, dict):
            raise AnswerError(f"sent an event that is no JSON object: {_shown(data)}")
        if event.get("error") is not None or event.get("object") == "error":
            raise AnswerError(f"reported an error: {error_message(event)}")
        usage = event.get("usage")
        if usage is not None:
            self._count(usage)
        choices = event.get("choices")
        if choices:
            self._choice(choices)

    def completion(self, row: int, tokenize: Tokenize | None) -> Completion:
        """The whole answer as the completion of query ``row``; call it after the last event.

        Raises:
            AnswerError: there is no usage, no token, or no way to know the token ids.
        """
        if self.n_tokens is None:
            raise AnswerError("sent no usage, so the number of tokens is unknown (stream_options.include_usage)")
        if self.n_tokens == 0:
            raise AnswerError("answered without a token")
        tokens: Sequence[int] = self._tokens
        if not tokens:
            if tokenize is None:
                raise NoTokenIdsError("sends text without token ids, and there is no tokenizer to make them from it")
            try:
                tokens = tokenize("".join(self._text))
            except Exception as error:  # a tokenizer is foreign code, and one text must not end the run
                raise AnswerError(f"sent text that the tokenizer refuses: {error}") from error
        return Completion(row, tokens, n_tokens=self.n_tokens)

    def _count(self, usage: Any) -> None:
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if type(count) is not int or count < 0:
            raise AnswerError("sent a usage without a count of completion_tokens")
        if count > self._max_tokens:
            raise AnswerError(f"counts {count} output tokens where at most {self._max_tokens} were asked for")
        self.n_tokens = count

    def _choice(self, choices: Any) -> None:
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            raise AnswerError("sent an event whose choices are no list of objects")
        ids = choice.get("token_ids")
        if ids:
            # One pass for all checks: this runs for every chunk of every query.
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i <= _MAX_ID for i in ids):
                raise AnswerError("sent token_ids that are no list of token ids")
            self._tokens += ids
            self.started = True
            if len(self._tokens) > self._max_tokens:
                raise AnswerError(f"sent more than the {self._max_tokens} output tokens that were asked for")
        text = choice.get("text")
        if text:
            if not isinstance(text, str):
                raise AnswerError("sent a text that is no string")
            self._text.append(text)
            self.started = True
        finish_reason = choice.get("finish_reason")
        if isinstance(finish_reason, str) and finish_reason in _BROKEN_OFF:
            raise AnswerError(f"broke the answer off (finish_reason {finish_reason})")


def error_message(body: Any) -> str:
    """The message inside a server's error object, in any of the forms that are in use; else the object itself."""
    error = body.get("error", body) if isinstance(body, dict) else body
    for key in ("message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return error[key] if isinstance(error[key], str) else json.dumps(error[key])
    return error if isinstance(error, str) else json.dumps(error)


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "replace")
