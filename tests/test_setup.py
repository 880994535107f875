"""Set-up: which device, when an environment is kept, which indexes are asked, and the hook that mends torchvision."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pip
import pytest

import bootstrap
from mlperf_exp import torchvision_cpu

ROOT = Path(__file__).resolve().parent.parent


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


# ---- device


@pytest.mark.parametrize(
    ("script", "device"),
    [
        ("echo 'GPU 0: NVIDIA A30 (UUID: GPU-1)'", "cuda"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", "cpu"),
        ("echo 'No devices found.'", "cpu"),
    ],
)
def test_nvidia_smi_decides_where_there_are_no_device_files(tmp_path: Path, script: str, device: str) -> None:
    smi = executable(tmp_path / "nvidia-smi", script)
    assert bootstrap.find_device(tmp_path, tmp_path, smi) == device


def test_without_nvidia_smi_and_device_files_it_is_cpu(tmp_path: Path) -> None:
    assert bootstrap.find_device(tmp_path, tmp_path, str(tmp_path / "absent")) == "cpu"


@pytest.mark.parametrize("made", ["nvidia0", "driver/nvidia/gpus/0000:01:00.0"])
def test_device_files_are_enough(tmp_path: Path, made: str) -> None:
    (tmp_path / made).mkdir(parents=True)
    assert bootstrap.find_device(tmp_path, tmp_path, str(tmp_path / "absent")) == "cuda"


def test_control_files_of_a_driver_without_a_gpu_are_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert bootstrap.find_device(tmp_path, tmp_path, str(tmp_path / "absent")) == "cpu"


# ---- stamp


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints/cpu.txt", "constraints/cuda.txt", "mlperf_exp/torchvision_cpu.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def venv(project: Path) -> Path:
    """An environment as an installation leaves it halfway; it borrows pip, whose own installation takes seconds."""
    made = project / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    site = made / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    executable(made / "bin" / "pip", f"exec {made}/bin/python -m pip")
    (made / bootstrap.MARKER).touch()
    return made


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_fingerprint_follows_what_is_installed_and_nothing_else(project: Path) -> None:
    before = bootstrap.fingerprint(project, "cpu")
    edit(project / "pyproject.toml", "line-length = 120", "line-length = 100")
    edit(project / "constraints/cuda.txt", "vllm==", "vllm>=")
    assert bootstrap.fingerprint(project, "cpu") == before
    assert bootstrap.fingerprint(project, "cuda") != before
    edit(project / "pyproject.toml", '"rich>=13.9"', '"rich>=14.0"')
    changed = bootstrap.fingerprint(project, "cpu")
    assert changed != before
    edit(project / "constraints/cpu.txt", "torch==", "torch>=")
    assert bootstrap.fingerprint(project, "cpu") not in (before, changed)


def finish(project: Path, **values: object) -> None:
    stamp = {"key": bootstrap.fingerprint(project, "cpu"), "device": "cpu", "dev": False, **values}
    (project / ".venv" / bootstrap.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    (project / ".venv" / bootstrap.MARKER).unlink(missing_ok=True)


def installs(project: Path, monkeypatch: pytest.MonkeyPatch, *, device: str = "cpu", dev: bool = False) -> list[bool]:
    """What set_up would install: ``base_done`` of each call. The installation itself is `make test`'s own beginning."""
    calls: list[bool] = []
    monkeypatch.setattr(bootstrap, "install", lambda venv, device, dev, base_done: calls.append(base_done))
    bootstrap.set_up(project, device, dev)
    return calls


def test_a_finished_environment_is_left_alone(project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(project)
    assert installs(project, monkeypatch) == []
    assert installs(project, monkeypatch, dev=True) == [True]  # only the tools are added
    assert installs(project, monkeypatch, dev=True) == []
    assert installs(project, monkeypatch) == []


def test_an_unfinished_environment_is_made_afresh(project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = venv / "lib" / "half_a_package.py"
    leftover.touch()
    assert installs(project, monkeypatch) == [False]
    assert not leftover.exists()
    assert installs(project, monkeypatch) == []


def test_an_installation_that_fails_leaves_no_stamp(project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(project, key="other")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bootstrap.set_up(project, "cpu", False)
    assert bootstrap.read_stamp(venv) == {}
    assert not bootstrap.is_reusable(venv, "cpu")


def test_an_environment_without_interpreter_is_made_afresh(
    project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(project)
    (venv / "bin" / "python").unlink()
    assert installs(project, monkeypatch) == [False]
    assert os.access(venv / "bin" / "python", os.X_OK)


def test_a_changed_requirement_is_installed_into_what_is_there(
    project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(project, key="other")
    (venv / "kept").touch()
    assert installs(project, monkeypatch) == [False]
    assert (venv / "kept").exists()


def test_another_device_gets_a_new_environment(project: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(project)
    (venv / "lost").touch()
    assert installs(project, monkeypatch, device="cuda") == [False]
    assert not (venv / "lost").exists()


def test_a_moved_environment_is_not_reused(venv: Path, tmp_path: Path) -> None:
    (venv / bootstrap.MARKER).unlink()
    assert bootstrap.is_reusable(venv, "cpu")
    assert not bootstrap.is_reusable(shutil.move(venv, tmp_path / "moved"), "cpu")


# ---- indexes


@pytest.fixture
def live_index() -> Iterator[str]:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Accepts connections and never says a word."""
    monkeypatch.setattr(bootstrap, "PROBE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_an_extra_index_that_is_silent_is_left_out(
    live_index: str, silent_index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"extra-index-url": [live_index, silent_index, f"file://{tmp_path}"]}
    options, variables = bootstrap.index_options(settings, None)
    assert options == []
    assert variables == {"PIP_EXTRA_INDEX_URL": f"{live_index} file://{tmp_path}"}
    assert capsys.readouterr().out.count("leaving out") == 1


def test_pip_obeys_when_no_extra_index_is_left(silent_index: str, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\nextra-index-url = {silent_index}\n", encoding="utf-8")
    _, variables = bootstrap.index_options({"extra-index-url": [silent_index]}, None)
    env = {
        **os.environ,
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "PIP_INDEX_URL": f"file://{tmp_path}",
        **variables,
    }
    download = [sys.executable, "-m", "pip", "download", "--timeout", "1", "--retries", "0", "nothing-of-this-name"]
    said = subprocess.run(download, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert said.returncode != 0
    assert silent_index not in said.stdout + said.stderr


@pytest.mark.parametrize("settings_key", ["index-url", None])
def test_a_silent_index_that_is_wanted_is_refused_in_one_line(silent_index: str, settings_key: str | None) -> None:
    settings = {settings_key: [silent_index]} if settings_key else {}
    with pytest.raises(bootstrap.SetupError, match="does not answer") as error:
        bootstrap.index_options(settings, None if settings_key else silent_index)
    assert silent_index in str(error.value)
    assert "\n" not in str(error.value)


def test_torch_index_may_be_an_index_or_a_folder(live_index: str, tmp_path: Path) -> None:
    assert bootstrap.index_options({}, live_index) == (["--extra-index-url", live_index], {})
    assert bootstrap.index_options({}, str(tmp_path)) == (["--find-links", str(tmp_path)], {})


def test_settings_of_pip_are_read_with_its_precedence() -> None:
    listing = ":env:.find-links='/a /b'\nglobal.extra-index-url='x\\ny'\nglobal.find-links='/c'\ninstall.timeout='3'\n"
    assert bootstrap.parse_pip_settings(listing) == {
        "find-links": ["/a", "/b"],
        "extra-index-url": ["x", "y"],
        "timeout": ["3"],
    }


def test_a_missing_cpu_build_is_told_in_one_line(venv: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    with pytest.raises(bootstrap.SetupError, match="TORCH_INDEX") as error:
        bootstrap.require_cpu_torch(venv, [], env)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("uv_ends_with", "chosen"), [("exit 0", "uv"), ("exit 1", "pip")])
def test_uv_is_used_where_it_can_resolve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv_ends_with: str, chosen: str
) -> None:
    executable(tmp_path / "uv", uv_ends_with)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    command = bootstrap.choose_installer(Path(sys.prefix), "auto", {}, [], dict(os.environ), ["anything"])
    assert ("uv" if command[0] == str(tmp_path / "uv") else "pip") == chosen


# ---- make


def test_an_old_python_is_told_in_one_line(tmp_path: Path) -> None:
    old = executable(
        tmp_path / "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit $([ "$1" = --version ]; echo $?)'
    )
    said = subprocess.run(["make", "demo", f"PYTHON={old}"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode != 0
    first = said.stderr.splitlines()[0]
    assert "Python 3.9.2" in first
    assert "make demo PYTHON=python3.11" in first
    assert "Traceback" not in said.stderr


# ---- torchvision


def test_torchvision_works_in_a_fresh_process() -> None:
    code = (
        "import torch, torchvision; from torchvision.transforms import v2;"
        "print(tuple(torchvision.models.resnet18()(v2.Resize((64, 64))(torch.zeros(1, 3, 32, 32))).shape))"
    )
    tried = start("-c", code)
    assert tried.stdout.strip() == "(1, 1000)", tried.stderr


def test_an_interpreter_start_imports_no_torch() -> None:
    imported = start("-X", "importtime", "-c", "pass").stderr
    assert "site" in imported
    assert "torch\n" not in imported
    assert "subprocess" not in imported
    assert "typing\n" not in imported


FAKE_EXTENSION = "def _has_ops():\n    return {has_ops}\n"
FAKE_TORCH = """
class Operators: pass
class Library:
    def define(self, name, schema): print("declared", name)
class ops: torchvision = Operators()
library = Library()
"""


@pytest.mark.parametrize(("has_ops", "declared"), [(False, ["nms", "qnms"]), (True, [])])
def test_the_hook_declares_only_what_is_missing(tmp_path: Path, has_ops: bool, declared: list[str]) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from . import extension\n")
    (tmp_path / "torchvision" / "extension.py").write_text(FAKE_EXTENSION.format(has_ops=has_ops))
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    files = torchvision_cpu.install(tmp_path)
    assert [file.suffix for file in files] == [".py", ".pth"]
    code = (
        f"import sys, site; site.addsitedir({str(tmp_path)!r}); sys.path.insert(0, {str(tmp_path)!r});"
        "import importlib.util; importlib.util.find_spec('torchvision'); assert 'torch' not in sys.modules;"
        "import torchvision, inspect; inspect.getsource(torchvision.extension)"
    )
    said = start("-c", code)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [f"declared torchvision::{name}" for name in declared]


# ---- wheel


def test_the_wheel_holds_configs_and_plugins_where_they_are_looked_for(tmp_path: Path) -> None:
    built = start("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {"mlperf_exp/__init__.py", "mlperf_exp/conf/config.yaml"} <= names
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"mlperf_exp/{name}" for name in shipped} <= names
    plugins = {path.relative_to(ROOT / "launchers").as_posix() for path in (ROOT / "launchers").rglob("*.py")}
    assert plugins <= names
    assert "hydra_plugins/__init__.py" not in names  # a namespace package, or Hydra's own plugins vanish
