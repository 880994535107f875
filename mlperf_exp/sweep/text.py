"""How a sweep stands, for people."""

from __future__ import annotations

from collections.abc import Mapping


def count_line(counts: Mapping[str, int], remaining_s: float | None) -> str:
    """Such as ``3 done (1 invalid), 1 failed, 8 left, about 12 min``."""
    parts = [f"{counts['done']} done" + (f" ({counts['invalid']} invalid)" if counts["invalid"] else "")]
    parts += [f"{counts[name]} {name}" for name in ("failed", "out of memory", "interrupted") if counts[name]]
    if counts["left"]:
        parts.append(f"{counts['left']} left" + (f", about {span(remaining_s)}" if remaining_s else ""))
    return ", ".join(parts)


def span(seconds: float) -> str:
    """Such as ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
