"""Numbers, durations and sizes in the form that a reader wants, and foreign text made harmless to show."""

from __future__ import annotations

import math
import re
from typing import Any

MISSING = "not measured"
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def number(value: Any) -> float | None:
    """``value`` as a finite float; None for all else: a metric that was not measured may be absent, null or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        x = float(value)
    except OverflowError:  # an integer beyond what a float holds
        return None
    return x if math.isfinite(x) else None


def figure(value: Any, unit: str = "") -> str:
    """A number with about four significant digits and its unit: ``1,234 ms``, ``12.35 samples/s``."""
    x = number(value)
    if x is None:
        return MISSING
    if x == int(x) or abs(x) >= 1000:
        shown = f"{x:,.0f}"
    elif abs(x) >= 100:
        shown = f"{x:.1f}"
    elif abs(x) >= 1:
        shown = f"{x:.2f}"
    else:
        shown = f"{x:.3g}"
    return f"{shown} {unit}".rstrip()


def duration(seconds: Any) -> str:
    """Seconds in the two largest units that matter: ``0.42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    x = number(seconds)
    if x is None:
        return MISSING
    if x < 60:
        return f"{x:.1f} s" if x >= 10 else figure(x, "s")
    if x < 3600:
        minutes, rest = divmod(round(x), 60)
        if minutes < 60:
            return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(x / 60), 60)
    return f"{hours:,} h {rest:02d} min"


def size(count: Any) -> str:
    """Bytes in binary units: ``512 B``, ``1.4 MiB``."""
    x = number(count)
    if x is None:
        return "size not known"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(x) < 1024:
            return f"{x:.0f} B" if unit == "B" else f"{x:.1f} {unit}"
        x /= 1024
    return f"{x:.1f} TiB"


def plain(value: Any, limit: int = 4000) -> str:
    """Foreign text without control characters and terminal escapes, cut to ``limit`` characters, saying so."""
    text = _CONTROL.sub("", value if isinstance(value, str) else str(value))
    # A lone surrogate cannot be encoded as UTF-8 and would cost the whole page.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"
