"""The energy counters of CPU packages that Linux shows under /sys/class/powercap (Intel's RAPL; AMD's alike)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Rapl:
    """Joules of all CPU packages since this was made; a counter that wraps round is followed. Made by ``open``."""

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._range = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self._last = [self._read(package) for package in packages]
        self._total_uj = 0

    @classmethod
    def open(cls, root: Path = ROOT) -> tuple[Rapl | None, str | None]:
        """The counters, or None and the reason in one line."""
        try:
            packages = sorted(p for p in root.glob("*rapl:*") if (p / "name").read_text().startswith("package"))
            if not packages:
                return None, f"this machine shows no CPU energy counter in {root}"
            return cls(packages), None
        except PermissionError as error:
            return None, f"{error.filename} may be read by root only"
        except (OSError, ValueError) as error:
            return None, f"CPU energy counters: {error}"

    def joules(self) -> float | None:
        """Joules since the beginning; None where a counter cannot be read any more."""
        try:
            now = [self._read(package) for package in self._packages]
        except (OSError, ValueError):
            return None
        for before, after, most in zip(self._last, now, self._range, strict=True):
            self._total_uj += after - before if after >= before else after + most - before
        self._last = now
        return self._total_uj / 1e6

    @staticmethod
    def _read(package: Path) -> int:
        return int((package / "energy_uj").read_text())
