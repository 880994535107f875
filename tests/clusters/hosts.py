"""Two pretend hosts of this machine, each with a network of its own (``net.sh``)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Hosts:
    """Their names, which each of them resolves, and their network's first three numbers."""

    prefix: str
    subnet: str

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.prefix}1", f"{self.prefix}2"

    def on(self, name: str, *command: str) -> list[str]:
        """The command, to be started here, that runs ``command`` on one of them."""
        return [str(HERE / "onhost.sh"), name, *command]

    def cut(self, name: str) -> None:
        """Pull the cable of one of them."""
        subprocess.run(["ip", "link", "set", f"v-{name}", "down"], check=True)

    def mend(self, name: str) -> None:
        """Put it back."""
        subprocess.run(["ip", "link", "set", f"v-{name}", "up"], check=True)


def unused(prefix: str) -> int:
    """Of a pair of hosts whose names and network nobody uses."""
    first = os.getpid()
    numbers = ((first + i) % 250 + 1 for i in range(250))
    return next(number for number in numbers if not Path(f"/sys/class/net/br-{prefix}{number}n").exists())


@contextlib.contextmanager
def two_hosts(letter: str) -> Iterator[Hosts]:
    """While they are up; ``letter`` tells the pairs of one process apart. Skips where they cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("two hosts are network namespaces, which need root, iproute2 and util-linux")
    number = unused(letter)
    made = Hosts(f"{letter}{number}n", f"10.{100 + ord(letter) % 100}.{number}")
    up = subprocess.run([str(HERE / "net.sh"), "up", made.prefix, made.subnet], capture_output=True, text=True)
    if up.returncode:
        pytest.skip(f"network namespaces cannot be made here: {up.stderr.strip()}")
    try:
        yield made
    finally:
        subprocess.run([str(HERE / "net.sh"), "down", made.prefix, made.subnet], capture_output=True)
