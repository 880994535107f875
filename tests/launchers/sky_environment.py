"""An environment with SkyPilot, apart from the project's: its pins do not fit beside vLLM's and MLflow's."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

from filelock import FileLock

VERSION = "0.14.1"


def environment() -> str:
    """Its interpreter, with ``uv`` beside it: made once a machine (a minute), as the guide says."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mlperf_exp", f"skypilot-{VERSION}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    python = cache / "bin" / "python"
    with FileLock(f"{cache}.lock"):
        if not (cache / "complete").exists() or not python.with_name("uv").exists():
            venv.create(cache, clear=True, with_pip=True)
            install = [str(python), "-m", "pip", "install", "-q", f"skypilot[kubernetes]=={VERSION}", "uv"]
            subprocess.run(install, check=True, timeout=800)
            (cache / "complete").touch()
    return str(python)
