"""Fuzz one parser by coverage, or all of them: ``make fuzz``.

    python -m tests.fuzz [NAME ...] [--seconds 600]

Needs ``pip install atheris``. Each parser runs in a process of its own; one that raises what it may not, or hangs for
ten seconds, ends with exit status 1 and leaves the input in ``crash-*``.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz(name: str, arguments: list[str]) -> None:
    """In this process, until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["mlperf_exp"]):
        from tests.fuzz.parsers import PARSERS
    parser = PARSERS[name]

    def one(data: bytes) -> None:
        with contextlib.suppress(parser.allowed):
            parser.call(data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz them one after the other; see the module."""
    from tests.fuzz.parsers import PARSERS

    options = argparse.ArgumentParser("python -m tests.fuzz")
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARSERS))
    options.add_argument("--seconds", type=int, default=600, help="for each parser")
    options.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen, _ = options.parse_known_args()
    names = chosen.names or list(PARSERS)
    if unknown := set(names) - set(PARSERS):
        options.error(f"there is no parser {', '.join(unknown)}; there are {', '.join(PARSERS)}")
    worst = 0
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(PARSERS[name].seeds):
                (Path(corpus) / str(number)).write_bytes(seed)
            settings = [
                f"-max_total_time={chosen.seconds}",
                "-timeout=10",
                "-rss_limit_mb=4096",
                "-print_final_stats=1",
            ]
            program = f"from tests.fuzz.__main__ import fuzz; fuzz({name!r}, {[corpus, *settings]!r})"
            done = subprocess.run([sys.executable, "-c", program], check=False)
        print(f"{name}: {'no finding' if done.returncode == 0 else f'exit status {done.returncode}'}", flush=True)
        worst = max(worst, int(done.returncode != 0))
    return worst


if __name__ == "__main__":
    sys.exit(main())
