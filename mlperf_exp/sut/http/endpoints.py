"""Addresses of servers, the key to them, and texts that are safe to show. Light: nothing here touches the network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from mlperf_exp.errors import UserError

_KEY = "backend.urls"
_EXAMPLE = "Give base URLs such as backend.urls=[http://host:8000]"


def base_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """The URLs as they are used: checked, without a trailing slash, and each ending in ``/v1``.

    Raises:
        UserError: there is none, one is no http(s) base URL, one comes twice, or one carries credentials.
    """
    if not urls:
        raise UserError(_KEY, "names no server", _EXAMPLE)
    bases: list[str] = []
    for number, url in enumerate(urls, start=1):
        base = _base_url(url, number)
        if base in bases:
            raise UserError(_KEY, f"{base} comes twice", "Name each server once")
        bases.append(base)
    return tuple(bases)


def _base_url(url: str, number: int) -> str:
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(_KEY, f"entry {number} is no URL", _EXAMPLE) from error
    # Before all else, and without the URL in the message: it may hold a password.
    if "@" in parts.netloc:
        where = f"{host}:{port}" if port else f"{host}"
        raise UserError(
            _KEY,
            f"entry {number} ({where}) carries a user name or password",
            "Leave them out; the key is read from the environment variable that backend.api_key_env names",
        )
    if parts.query or parts.fragment:  # not shown either: gateways take keys in a query
        raise UserError(_KEY, f"entry {number} has a query or a fragment behind its path", _EXAMPLE)
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url.strip()):
        raise UserError(_KEY, f"{one_line(url)!r} is no http or https URL", _EXAMPLE)
    path = parts.path.rstrip("/")
    if path.endswith("/completions"):
        raise UserError(_KEY, f"{url} is an endpoint and not a base URL", _EXAMPLE)
    if not path.endswith("/v1"):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def api_key(variable: str) -> str | None:
    """The key in the environment variable of this name, or None where it is not set or empty.

    Raises:
        UserError: it cannot stand in an HTTP header. The key itself is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise UserError(
            "backend.api_key_env",
            f"the key in ${variable} holds characters that no HTTP header can carry",
            f"Set {variable} to the key alone, on one line",
        )
    return key


def one_line(text: str, secret: str | None = None, limit: int = 300) -> str:
    """``text`` on one line of at most ``limit`` characters, with ``secret`` and all control characters taken out."""
    if secret:
        text = text.replace(secret, "***")  # before it is cut, or half of it could stay
    text = text[: 16 * limit]  # a server's error page can be long, and this runs beside the load
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
