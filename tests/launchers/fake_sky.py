"""A SkyPilot without machines: the few functions of its SDK that the bridge calls; a cluster is a folder here.

Written by ``write`` as a package ``sky``, with an interpreter that finds it and a remote shell for rsync that stays
here. Only for what the bridge and the launcher do with SkyPilot's answers.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

SKY = """
import enum
__version__ = "0"
class StatusRefreshMode(enum.Enum):
    FORCE = "force"
class Task:
    def __init__(self, config, secrets): self.config, self.secrets = config, dict(secrets or ())
    def to_yaml_config(self): return self.config
    @staticmethod
    def from_yaml_config(config, secrets_overrides=None): return Task(config, secrets_overrides)
"""

EXCEPTIONS = """
class ClusterDoesNotExist(ValueError): pass
class ClusterNotUpError(Exception): pass
class ApiServerConnectionError(RuntimeError): pass
class ServerTemporarilyUnavailableError(Exception): pass
class ResourcesUnavailableError(Exception): pass
class NotSupportedError(Exception): pass
class ResourcesMismatchError(Exception): pass
class InvalidClusterNameError(Exception): pass
class NoCloudAccessError(Exception): pass
"""

SDK = """
import enum, json, os, signal, subprocess, time
from pathlib import Path
from types import SimpleNamespace
from sky import exceptions
ROOT = Path(__file__).parents[2] / "clusters"
class Status(enum.Enum):
    RUNNING = "RUNNING"; SUCCEEDED = "SUCCEEDED"; FAILED = "FAILED"; CANCELLED = "CANCELLED"
running, results = {}, {}
def note(what): (ROOT.parent / "calls").open("a").write(what + chr(10))
def done(value=None):
    results[key := f"r{len(results)}"] = value
    return key
def get(request):
    value = results[request]
    if isinstance(value, Exception): raise value
    return value
def launch(task, cluster_name=None, dryrun=False, **options):
    if dryrun:
        accelerators = task.config["resources"].get("accelerators", "")
        return done(ValueError(f"no cloud has {accelerators}") if accelerators.startswith("B200") else None)
    note(f"launch {cluster_name} {json.dumps(options)}")
    if (ROOT.parent / "no_machines").exists():
        (ROOT.parent / "no_machines").unlink()
        return done(exceptions.ResourcesUnavailableError("no quota left"))
    home = ROOT / cluster_name / "sky_workdir"
    home.mkdir(parents=True)
    node = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1"}
    env = {**os.environ, **task.config["envs"], **task.secrets, **node}
    run = ["bash", "-c", task.config["run"]]
    log = (ROOT / cluster_name / "log").open("wb")
    running[cluster_name] = subprocess.Popen(run, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)
    return done((1, None))
def api_info(): pass
def api_status(request_ids=None, all_status=False, cluster_name=None):
    failed = isinstance(results[request_ids[0]], Exception)
    status = "FAILED" if failed else "SUCCEEDED"
    return [SimpleNamespace(status=status, status_msg="", name="launch", request_id=request_ids[0])]
def job_status(cluster, ids):
    if not (ROOT / cluster).exists(): return done(exceptions.ClusterDoesNotExist(f"{cluster} does not exist"))
    code = running[cluster].poll()
    return done({1: Status.RUNNING if code is None else Status.SUCCEEDED if code == 0 else Status.FAILED})
def tail_logs(cluster, job, follow, preload_content):
    process = running[cluster]
    with (ROOT / cluster / "log").open() as log:
        while True:
            ended = process.poll() is not None
            for line in log: yield chr(27) + "[36m(mlperf, pid=1)" + chr(27) + "[0m " + line
            if ended or not follow: break
            time.sleep(0.1)
    yield None
def cancel(cluster, job_ids):
    note(f"cancel {cluster}")
    os.killpg(running[cluster].pid, signal.SIGTERM)
    return done()
def down(cluster):
    note(f"down {cluster}")
    (ROOT / cluster).rename(ROOT.parent / f"gone-{cluster}")
    return done()
"""


def write(folder: Path) -> Path:
    """Make the package in ``folder``; the interpreter that has it."""
    package = folder / "sky" / "client"
    package.mkdir(parents=True)
    (folder / "clusters").mkdir()
    (folder / "sky" / "__init__.py").write_text(SKY)
    (folder / "sky" / "exceptions.py").write_text(EXCEPTIONS)
    (package / "__init__.py").write_text("")
    (package / "sdk.py").write_text(SDK)
    # rsync calls: PROGRAM HOST rsync --server ...; in the cluster's folder, its relative paths are those of the node
    _program(folder / "rsh", f'#!/bin/sh\ncd "{folder}/clusters/$1" && shift && exec "$@"\n')
    start = f"import runpy, subprocess, sys; sys.path.insert(0, {str(folder)!r}); sys.argv = sys.argv[1:]; "
    quiet = "run = subprocess.run; "
    quiet += "subprocess.run = lambda words, **k: None if words[0].endswith('sky') else run(words, **k); "
    go = "runpy.run_path(sys.argv[0], run_name='__main__')"
    return _program(folder / "python", f'#!/bin/sh\nexec "{sys.executable}" -c "{start}{quiet}{go}" "$@"\n')


def _program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
