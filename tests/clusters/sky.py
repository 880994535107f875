"""SkyPilot's way to a real Slurm on this machine: a login by ssh, a home folder on all hosts, a way out for installers.

SkyPilot logs in as root, whose home folder is one of the test's: an ``/etc/passwd`` of the test's own is what the login
and the hosts see, so that nothing is written to anybody's home. On a node SkyPilot installs uv and itself by uv; the
installer of uv is fetched by ``curl``, for which a copy of uv stands in here, since not every machine reaches it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.clusters.debian import gone
from tests.clusters.slurm import Slurm, _free_port
from tests.launchers.sky_environment import server

CURL = """#!/bin/bash
# Stands in for curl: uv's installer puts a copy of uv in its place.
case "$*" in
*astral.sh/uv/install.sh*) echo 'mkdir -p "$UV_INSTALL_DIR" && cp {uv} "$UV_INSTALL_DIR/uv"' ;;
*) exec {curl} "$@" ;;
esac
"""
SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {home}/.ssh/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
Subsystem sftp internal-sftp
SetEnv {environment}
"""
CONFIG = """Host testbed
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile {home}/.ssh/id_ed25519
    IdentitiesOnly yes
    StrictHostKeyChecking no
"""


def missing() -> str | None:
    """Why SkyPilot cannot be let onto a Slurm here, after trying to install what it takes; None where it can."""
    return gone(("/usr/sbin/sshd", "ssh-keygen", "iptables", "rsync"), ("openssh-server", "iptables", "rsync"))


@contextlib.contextmanager
def slurm_for_sky(folder: Path, sky_python: str, prefix: str, subnet: str) -> Iterator[tuple[Slurm, dict[str, str]]]:
    """A Slurm, and the environment in which SkyPilot knows it as ``slurm/testbed``.

    Args:
        folder: for everything; short, open to all, empty.
        sky_python: the interpreter that has SkyPilot; ``uv`` stands beside it.
        prefix, subnet: of the hosts.
    """
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".slurm").mkdir()
    (folder / "bin").mkdir()
    for name in (home / ".ssh" / "id_ed25519", folder / "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(name)], check=True)
    shutil.copy(home / ".ssh" / "id_ed25519.pub", home / ".ssh" / "authorized_keys")
    entries = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    lines = [":".join([*entry[:5], str(home), "/bin/bash"] if entry[0] == "root" else entry) for entry in entries]
    (folder / "passwd").write_text("\n".join(lines) + "\n")
    uv = Path(sky_python).with_name("uv")
    (folder / "bin" / "curl").write_text(CURL.format(uv=uv, curl=shutil.which("curl") or "false"))
    (folder / "bin" / "curl").chmod(0o755)
    python = _python_3_10()
    if python is not None:  # else uv fetches one
        (folder / "bin" / "python3.10").symlink_to(python)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    for name in (".profile", ".bashrc"):  # a login's own files come after the system's, which set the path
        (home / name).write_text(f"export PATH='{path}'\n")

    slurm = Slurm(folder / "slurm", prefix, subnet)
    slurm.folder.mkdir()
    slurm.files = {"passwd": (folder / "passwd").read_text(), "resolv.conf": Path("/etc/resolv.conf").read_text(),
                   "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"}  # fmt: skip
    port = _free_port()
    kept = {name: value for name, value in os.environ.items() if name.startswith(("SSL_", "UV_"))}
    packages = {"UV_CACHE_DIR": str(Path(sky_python).parents[2] / "uv")}  # else each cluster fetches all of SkyPilot
    session = {**kept, **packages, **slurm.environment, "PATH": path, "HOME": str(home)}
    (home / ".slurm" / "config").write_text(CONFIG.format(port=port, home=home))
    environment = " ".join(f'"{name}={value}"' for name, value in session.items())
    (folder / "sshd").write_text(SSHD.format(port=port, folder=folder, home=home, environment=environment))
    Path("/run/sshd").mkdir(exist_ok=True)
    mine = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "USER": "root"}
    login: subprocess.Popen[bytes] | None = None
    try:
        with server(mine) as sky, _way_out(subnet):
            slurm.start()
            command = f"mount --bind {folder / 'passwd'} /etc/passwd && exec /usr/sbin/sshd -D -e -f {folder / 'sshd'}"
            with (folder / "sshd.log").open("wb") as log:
                login = subprocess.Popen(["unshare", "--mount", "bash", "-c", command], stdout=log, stderr=log)
            time.sleep(1)
            # As the guide has it, once: SkyPilot places nothing where it has not looked before.
            subprocess.run([sky, "check", "slurm"], env=mine, check=True, capture_output=True, timeout=600)
            yield slurm, mine
    finally:
        if login is not None:
            with contextlib.suppress(psutil.Error):  # sessions outlive the daemon
                for process in psutil.Process(login.pid).children(recursive=True):
                    process.kill()
            login.kill()
            login.wait()
        slurm.stop()


def _python_3_10() -> Path | None:
    """What SkyPilot's own environment is made of."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    for path in [*map(Path, os.environ["PATH"].split(":")), *(one / "bin" for one in pyenv.glob("3.10.*"))]:
        found = path / "python3.10"
        if found.exists() and subprocess.run([str(found), "--version"], capture_output=True).returncode == 0:
            return found
    return None


@contextlib.contextmanager
def _way_out(subnet: str) -> Iterator[None]:
    """Lets the hosts reach what this machine reaches."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    before = forward.read_text()
    rule = ["POSTROUTING", "-s", f"{subnet}.0/24", "!", "-d", f"{subnet}.0/24", "-j", "MASQUERADE"]
    forward.write_text("1")
    subprocess.run(["iptables", "-t", "nat", "-A", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-t", "nat", "-D", *rule], check=False)
        forward.write_text(before)
