"""Debian's packages that the clusters are made of, installed where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection


def gone(programs: Collection[str], packages: Collection[str]) -> str | None:
    """Which of the programs are missing, as a sentence with the remedy; None where all are there.

    As root on Debian the packages are installed first. ``/usr/sbin`` and ``/sbin`` are put on the path.
    """
    folders = os.environ.get("PATH", "").split(":")
    os.environ["PATH"] = ":".join([*folders, *(folder for folder in ("/usr/sbin", "/sbin") if folder not in folders)])
    if _missing(programs) and shutil.which("apt-get") and os.geteuid() == 0:
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-qq"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run([*apt, *words], check=False, env=quiet, stdout=subprocess.DEVNULL)
    missing = _missing(programs)
    return f"{', '.join(missing)} not installed; on Debian: apt-get install {' '.join(packages)}" if missing else None


def _missing(programs: Collection[str]) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]
