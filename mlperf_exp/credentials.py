"""User names and passwords inside URLs: found, so that they are refused, and taken out of what is written down."""

from __future__ import annotations

import re

# "user@", or "user:password@" where the password may hold anything; "host:5000/folder@2" is neither
_CREDENTIALS = re.compile(r"://([^/?#\s@]*@|[^/?#\s@:]+:(?!\d+(/|$))\S*@)")


def has_credentials(text: str) -> bool:
    """Whether a URL in ``text`` carries a user name or a password."""
    return _CREDENTIALS.search(text) is not None


def redact(text: str) -> str:
    """``text`` with the credentials of every URL in it replaced by ``***``."""
    return _CREDENTIALS.sub("://***@", text)
