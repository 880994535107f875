"""An environment with SkyPilot, apart from the project's: its pins do not fit beside vLLM's and MLflow's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

VERSION = "0.14.1"


def environment() -> str:
    """Its interpreter, with ``uv`` beside it: made once a machine (a minute), as the guide says."""
    cache = _cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    python = cache / "bin" / "python"
    with FileLock(f"{cache}.lock"):
        if not (cache / "complete").exists() or not python.with_name("uv").exists():
            venv.create(cache, clear=True, with_pip=True)
            install = [str(python), "-m", "pip", "install", "-q", f"skypilot[kubernetes]=={VERSION}", "uv"]
            subprocess.run(install, check=True, timeout=800)
            (cache / "complete").touch()
    return str(python)


@contextlib.contextmanager
def server(environment: dict[str, str]) -> Iterator[str]:
    """SkyPilot's command, for as long as nobody else here may use it: a machine has one API server, on one port.

    The server, which the command starts in this environment, is stopped at the end.
    """
    sky = str(_cache() / "bin" / "sky")
    with FileLock(f"{_cache()}.server"):
        try:
            yield sky
        finally:
            subprocess.run([sky, "api", "stop"], env=environment, capture_output=True, timeout=120, check=False)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mlperf_exp", f"skypilot-{VERSION}")
