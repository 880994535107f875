"""A real Slurm with accounting on this machine: two pretend hosts (``net.sh``) with one pretend A30 each.

    .venv/bin/python tests/clusters/slurm.py up FOLDER [PREFIX SUBNET]      # then: export SLURM_CONF=FOLDER/slurm.conf
    .venv/bin/python tests/clusters/slurm.py down FOLDER

munge, MariaDB, slurmdbd, slurmctld and a slurmd a host, all with files, ports and sockets of their own in ``FOLDER``:
several live side by side, also with a Slurm of the machine's own. Where Debian's packages are missing and this is
root on Debian, they are installed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.clusters.debian import gone

HERE = Path(__file__).resolve().parent
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "ip", "nsenter", "unshare")
HOSTS = 2
CPUS = 4


def missing() -> str | None:
    """Why no Slurm can be started here, after trying to install it; None where one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if why := gone(PROGRAMS, PACKAGES):
        return why
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces: {probe.stderr.strip()}" if probe.returncode else None


class Slurm:
    """A cluster; ``start``, ``stop``, and what happens to clusters in between.

    Args:
        folder: for all files; must be short enough for a socket in it (about 90 characters).
        prefix: of the hosts' names: ``s`` makes s1 and s2.
        subnet: the first three bytes of the hosts' network.

    ``small`` is a disk of 8 MiB that all hosts see: one that can be filled.
    """

    def __init__(self, folder: Path, prefix: str = "s", subnet: str = "10.97.1") -> None:
        self.folder, self.prefix, self.subnet = folder.absolute(), prefix, subnet
        self.hosts = [f"{prefix}{i + 1}" for i in range(HOSTS)]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.small = self.folder / "small"
        self.files: dict[str, str] = {}  # of the hosts' own /etc
        self._processes: dict[str, int] = {}

    def start(self) -> None:
        """Start everything; returns once both nodes are idle (10 s).

        Raises:
            RuntimeError: with the end of the log of what did not start.
        """
        for name in ("state", "log", "mysql", "small", *(f"spool.{host}" for host in self.hosts)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # Before the daemons, whose mount namespaces see what is mounted by then.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(self.small)], check=True)
        subprocess.run([str(HERE / "net.sh"), "up", self.prefix, self.subnet], check=True)
        for host, (name, text) in itertools.product(self.hosts, self.files.items()):
            Path("/etc/netns", host, name).write_text(text)
        self._munge()
        self._database()
        self._configure()
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._until("slurmdbd", lambda: self._ok("sacctmgr", "--noheader", "show", "cluster"))
        self._ok("sacctmgr", "-i", "add", "cluster", self.prefix)
        self.controller()
        for host in self.hosts:
            self.node(host)
        self.settle()

    def stop(self) -> None:
        """Stop everything, and whatever still runs on the hosts."""
        for host in self.hosts:
            self._empty(host)
        for name in list(self._processes):
            self.kill(name, signal.SIGKILL)
        subprocess.run(["umount", "--lazy", str(self.small)], check=False, stderr=subprocess.DEVNULL)
        subprocess.run([str(HERE / "net.sh"), "down", self.prefix, self.subnet], check=False)

    # -- what happens to clusters --------------------------------------------------------------------------------------

    def controller(self) -> None:
        """Start slurmctld."""
        self._spawn("slurmctld", "slurmctld", "-D")

    def node(self, host: str) -> None:
        """Start a host's slurmd."""
        self._spawn(f"slurmd.{host}", str(HERE / "onhost.sh"), host, "slurmd", "-D", "-N", host)

    def lose(self, host: str) -> None:
        """The host loses its power: nothing that ran there runs any more."""
        self.kill(f"slurmd.{host}", signal.SIGKILL)
        self._empty(host)

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one of the daemons, if need be by force; it is gone on return.

        Raises:
            RuntimeError: it cannot be ended.
        """
        process = self._processes.pop(name, None)
        if process is None:
            return
        for patience_s, each in ((20.0, number), (60.0, signal.SIGKILL)):
            with contextlib.suppress(OSError):
                os.killpg(process, each)
            end = time.monotonic() + patience_s
            while time.monotonic() < end:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process, os.WNOHANG)
                if not Path(f"/proc/{process}").exists():
                    return
                time.sleep(0.05)
        raise RuntimeError(f"{name} (process {process}) does not end")

    def settle(self, seconds: float = 180.0) -> None:
        """Wait until all nodes are idle and answer; a node that Slurm has given up is resumed.

        Raises:
            RuntimeError: with what Slurm says of the nodes, and the end of the logs.
        """
        asked = 0.0

        def idle() -> bool:
            nonlocal asked
            states = self.states()
            if time.monotonic() > asked + 2 and any(re.match("down|drain|fail", state) for state in states):
                asked = time.monotonic()
                for host in self.hosts:
                    self._ok("scontrol", "update", f"nodename={host}", "state=resume")
            return states == {"idle"}

        try:
            self._until("slurm", idle, seconds)
        except RuntimeError as error:
            told = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T %E") + self.ask("squeue")
            raise RuntimeError(f"{error}\n{told}") from None

    def states(self) -> set[str]:
        """Of all nodes, as sinfo has them."""
        return set(self.ask("sinfo", "--noheader", "--Node", "--format=%T").split())

    def ask(self, *words: str) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=self._env(), timeout=60)
        return done.stdout

    def on(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        command = [str(HERE / "onhost.sh"), host, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self._env(), timeout=60)

    # -- how -----------------------------------------------------------------------------------------------------------

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _ok(self, *words: str) -> bool:
        return subprocess.run(words, capture_output=True, check=False, env=self._env(), timeout=60).returncode == 0

    def _spawn(self, name: str, *words: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=self._env(), start_new_session=True)
        self._processes[name] = process.pid
        (self.folder / f"{name}.pid").write_text(str(process.pid))

    def _until(self, name: str, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until:
                logs = sorted((self.folder / "log").glob(f"{name}*"))
                said = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
                raise RuntimeError(f"{name} is not ready after {seconds:g} s:\n{said}")
            time.sleep(0.2)

    def _empty(self, host: str) -> None:
        listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
        for process in listed.stdout.split():
            with contextlib.suppress(OSError):
                os.kill(int(process), signal.SIGKILL)

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "log/munge.log",
            "seed-file": "munge.seed",
        }
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        # --force: the test's folder may be open to others, which munged does not like
        self._spawn("munged", "munged", "--foreground", "--force", f"--key-file={key}", *options)
        self._until("munged", lambda: self._ok("munge", "-n", f"--socket={self.folder / 'munge.socket'}"))

    def _database(self) -> None:
        data, self._db_port = self.folder / "mysql", _free_port()
        log = self.folder / "log" / "install.log"
        with log.open("wb") as file:
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
                 "--auth-root-authentication-method=normal"], check=True, stdout=file, stderr=file,
            )  # fmt: skip
        sock = self.folder / "mysql.socket"
        self._spawn(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}",
            f"--port={self._db_port}", "--bind-address=127.0.0.1", f"--pid-file={self.folder / 'mysql.pid'}",
            "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve",
        )  # fmt: skip
        self._until("mariadbd", lambda: self._ok("mariadb-admin", "--no-defaults", f"--socket={sock}", "ping"))
        sql = ("create database acct; create user slurm@'127.0.0.1' identified by 'ci';"
               "grant all on acct.* to slurm@'127.0.0.1';")  # fmt: skip
        subprocess.run(["mariadb", "--no-defaults", f"--socket={sock}", "-e", sql], check=True)

    def _configure(self) -> None:
        ports = {name: _free_port() for name in ("ctld", "dbd", "d")}
        auth = f"AuthType=auth/munge\nAuthInfo=socket={self.folder / 'munge.socket'}\nSlurmUser=root\n"
        nodes = "\n".join(
            f"NodeName={host} NodeHostname={host} NodeAddr={self.subnet}.{i} CPUs={CPUS} RealMemory=4000 "
            "Gres=gpu:a30:1 State=UNKNOWN"
            for i, host in enumerate(self.hosts, 1)
        )
        settings = f"""ClusterName={self.prefix}
SlurmctldHost={socket.gethostname()}({self.subnet}.254)
SlurmdUser=root
CredType=cred/munge
SlurmctldPort={ports["ctld"]}
SlurmdPort={ports["d"]}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool.%n
SlurmctldPidFile={self.folder}/ctld.pid
SlurmdPidFile={self.folder}/d.%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports["dbd"]}
AccountingStoragePass={self.folder}/munge.socket
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=30
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes={",".join(self.hosts)} Default=YES MaxTime=120 OverSubscribe=NO State=UP
PartitionName=shut Nodes={self.hosts[0]} MaxTime=120 State=INACTIVE
"""
        (self.folder / "slurm.conf").write_text(settings + auth)
        gres = []
        for i, host in enumerate(self.hosts):
            device = self.folder / f"gpu{i}"
            if not device.exists():
                os.mknod(device, 0o020666, os.makedev(1, 3))
            gres.append(f"NodeName={host} Name=gpu Type=a30 File={device}\n")
        (self.folder / "gres.conf").write_text("".join(gres))
        dbd = self.folder / "slurmdbd.conf"
        dbd.write_text(
            f"{auth}DbdHost=localhost\nDbdPort={ports['dbd']}\nPidFile={self.folder}/dbd.pid\n"
            f"LogFile={self.folder}/log/slurmdbd.log\nStorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
            f"StoragePort={self._db_port}\nStorageUser=slurm\nStoragePass=ci\nStorageLoc=acct\n"
        )
        dbd.chmod(0o600)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    verb, folder, *rest = sys.argv[1:]
    slurm = Slurm(Path(folder), *rest)
    if verb == "up":
        why = missing()
        if why:
            sys.exit(f"slurm.py: {why}")
        slurm.folder.mkdir(parents=True, exist_ok=True)
        (slurm.folder / "hosts").write_text(f"{slurm.prefix} {slurm.subnet}")
        try:
            slurm.start()
        except BaseException:
            slurm.stop()
            raise
        print(slurm.ask("sinfo", "-N", "-o", "%N %T %c %m %G"), end="")
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}")
        return
    slurm = Slurm(Path(folder), *(Path(folder) / "hosts").read_text().split())
    slurm._processes = {
        path.stem: int(path.read_text()) for path in Path(folder).glob("*.pid") if path.stem in _spawned(slurm)
    }
    slurm.stop()


def _spawned(slurm: Slurm) -> set[str]:
    return {"munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd.{host}" for host in slurm.hosts)}


if __name__ == "__main__":
    main()
