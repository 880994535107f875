"""What is asked of a server before the load: is it there, does it let us in, which model, does it answer as needed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, NoReturn

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.sut.http.completions import Client, Exchange, ExchangeError, NoIdsError
from mlperf_exp.sut.http.request import Request, head

_KEY = "backend.urls"
_START = "Start the server, or correct the URL"


class Probe:
    """Asks servers, and turns what is wrong with them into errors that name the key and the remedy.

    Args:
        has_key: whether an API key is set.
        context: tokens of the longest prompt with its output.
    """

    def __init__(self, client: Client, config: OpenaiBackend, *, has_key: bool, context: int) -> None:
        self._client, self._config, self._has_key, self._context = client, config, has_key, context

    async def model(self, base: str, fallback: str) -> str:
        """The name under which the server at ``base`` knows the model; ``fallback`` decides where it has several.

        Raises:
            UserError: the server cannot be used, with the reason.
        """
        wanted = self._config.served_model
        try:
            listing = await self._client.get(f"{base}/models")
        except ExchangeError as fault:
            if fault.status not in (404, 405, 501):
                self._refused(fault)
            await self._health(base)
            if wanted is not None:
                return wanted
            raise UserError(
                "backend.served_model",
                f"is needed, because {base} does not list its models",
                "Set backend.served_model to the name that the server gives the model",
            ) from fault
        offered = _models(listing)
        if not offered:
            raise UserError(_KEY, f"{base}/models lists no models", "Give the base URL of an OpenAI-compatible server")
        if wanted is None:
            wanted = next(iter(offered)) if len(offered) == 1 else fallback
        if wanted not in offered:
            unknown = self._client.clean(f"{base} has no model {wanted}; it offers: {', '.join(offered)}")
            raise UserError("backend.served_model", unknown, "Set it to one of these")
        room = offered[wanted]
        if room is not None and room < self._context:
            raise UserError(
                _KEY,
                f"{base} serves {wanted} with a context of {room} tokens; the longest prompt with its output needs "
                f"{self._context}",
                "Start the server with a longer context (vLLM: --max-model-len)",
            )
        return wanted

    async def warm_up(self, base: str, request: Request, prompt: tuple[int, ...]) -> Request:
        """Send one short query, and return the request as the server takes it.

        A server that refuses ``return_token_ids`` is asked again without.

        Raises:
            UserError: the server refuses the query, or answers in a way that cannot be measured.
            RunFailed: it broke.
        """
        max_tokens = min(8, request.max_tokens)
        short = replace(request, max_tokens=max_tokens)
        if short.min_tokens is not None:
            short = replace(short, min_tokens=min(short.min_tokens, max_tokens))
        limit = min(self._config.idle_timeout_s, self._config.request_timeout_s)
        try:
            async with asyncio.timeout(limit):
                try:
                    await self._client.complete(base, head(prompt) + short.tail(), Exchange(-1))
                except ExchangeError as fault:
                    if fault.status not in (400, 422):
                        raise
                    request, short = replace(request, return_token_ids=False), replace(short, return_token_ids=False)
                    await self._client.complete(base, head(prompt) + short.tail(), Exchange(-1))
        except TimeoutError as error:
            raise RunFailed(f"{base} did not finish the warm-up query within {limit:g} s") from error
        except ExchangeError as fault:
            if fault.status == 404:
                remedy = "Set it to the name that the server gives the model"
                raise UserError("backend.served_model", fault.line, remedy) from fault
            if isinstance(fault, NoIdsError):
                raise UserError(_KEY, fault.line, "Use vLLM 0.10.2 or later, or give the model's tokenizer") from fault
            if fault.status is None or fault.status == 429 or fault.status >= 500:
                raise RunFailed(f"the warm-up query failed: {fault.line}") from fault
            self._refused(fault)
        return request

    async def _health(self, base: str) -> None:
        root = base.removesuffix("/v1")
        try:
            await self._client.get(f"{root}/health")
        except ExchangeError as fault:
            if fault.status is None:
                self._refused(fault)
            problem = f"{root} answers neither on /v1/models nor on /health"
            raise UserError(_KEY, problem, "Give the base URL of an OpenAI-compatible server") from fault

    def _refused(self, fault: ExchangeError) -> NoReturn:
        variable = self._config.api_key_env
        if fault.status in (401, 403):
            what = f"the key in ${variable} was refused" if self._has_key else f"there is no key in ${variable}"
            raise UserError(_KEY, f"{fault.line} ({what})", f"Set {variable} to a key that the server takes") from fault
        remedy = _START
        if fault.status in (400, 422) and self._config.send_min_tokens:
            remedy = "If the server knows only OpenAI's own parameters, set backend.send_min_tokens=false"
        raise UserError(_KEY, fault.line, remedy) from fault


def _models(listing: Any) -> dict[str, int | None]:
    """The models of a ``/v1/models`` answer, each with its context in tokens where the server says it (vLLM does)."""
    data = listing.get("data") if isinstance(listing, dict) else None
    models: dict[str, int | None] = {}
    for entry in data if isinstance(data, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            room = entry.get("max_model_len")
            models[entry["id"]] = room if type(room) is int else None
    return models
